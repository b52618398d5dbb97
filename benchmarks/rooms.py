"""``python -m benchmarks.rooms``: what a used request makes Python do, room by room, counted and not timed.

The same request makes the same number of Python's own instructions each time. What is C counts as one, so this says
where our code is long, and not how long anything takes.

Holds: one SELECT and one INSERT of each driver.
Must not know: any clock.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asgi_sqla
from benchmarks.calls import Client, receive
from benchmarks.databases import Place, postgresql, sqlite
from benchmarks.inprocess import HAND, OURS, READS, WRITES, applications
from benchmarks.tables import table

PACKAGE = str(Path(asgi_sqla.__file__).parent)
WARM = 20
"""Requests after which everything is connected, prepared and cached."""
IN_THREADS = ("psycopg sync", "sqlite3")
"""What runs in threads, where nothing is counted."""
MOST = 15
"""Rooms that the table names."""


async def count(app: Callable[..., Awaitable[None]]) -> Counter[str]:
    """Return the instructions of one request by room; what is not ours counts as "others"."""
    client, found = Client(app), Counter[str]()

    def trace(frame: Any, event: str, _argument: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            file = frame.f_code.co_filename
            found[file[len(PACKAGE) + 1 : -3] if file.startswith(PACKAGE) else "others"] += 1
        return trace

    for _ in range(WARM):
        await app(client.scope("/read"), receive, client.send)
    task = asyncio.ensure_future(app(client.scope("/read"), receive, client.send))
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        await task
    finally:
        sys.settrace(before)
    return found


async def measure(place: Place) -> dict[tuple[str, str, str], Counter[str]]:
    """Return the instructions of every async driver and statement, ours and hand-written."""
    found = {}
    async with applications(place) as apps:
        for key, app in apps.items():
            if key[0] not in IN_THREADS and key[1] in (READS, WRITES) and key[2] in (HAND, OURS):
                found[key] = await count(app)
    return found


def main() -> None:
    """Print a table of each driver and statement."""
    found: dict[tuple[str, str, str], Counter[str]] = {}
    for make in (postgresql, sqlite):
        with make() as place:
            found |= asyncio.run(measure(place))
    keys = [key for key in found if key[2] == OURS]
    rooms = sum((found[key] for key in keys), Counter[str]())
    del rooms["others"]
    named = [room for room, _ in rooms.most_common(MOST)]
    rows = [[room, *(str(found[key][room]) for key in keys)] for room in named]
    of_ours = [found[key].total() - found[key]["others"] for key in keys]
    named_here = [sum(found[key][room] for room in named) for key in keys]
    rows.append(["our other rooms", *(str(all_ - some) for all_, some in zip(of_ours, named_here, strict=True))])
    rows.append(["all of ours", *map(str, of_ours)])
    rows.append(["all", *(str(found[key].total()) for key in keys)])
    rows.append(["hand-written", *(str(found[key[0], key[1], HAND].total()) for key in keys)])
    print(table(["Room", *(f"{driver} {statement}" for driver, statement, _ in keys)], rows))


if __name__ == "__main__":
    main()
