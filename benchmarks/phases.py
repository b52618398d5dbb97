"""``python -m benchmarks.phases``: where a used request spends more, and where less, than the hand-written one.

Holds: one SELECT with an ``AsyncSession``, cut into its phases; the processor's time, not the clock's, of single
requests in random order, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from asgi_sqla import Database, SQLAlchemyMiddleware
from benchmarks import work
from benchmarks.calls import Client, receive
from benchmarks.databases import Place, postgresql
from benchmarks.raw import BODY, START
from benchmarks.tables import table

PHASES = ("until the handler", "a session", "the SELECT", "the COMMIT, until the start", "until the end")
App = Callable[[Any, Any, Any], Awaitable[None]]
marks: list[int] = []


def mark(_message: Any = None) -> None:
    """Note that a phase has ended."""
    marks.append(time.process_time_ns())


async def send(message: Any) -> None:
    """Take a message; its start ends a phase."""
    if message is START:
        mark()


def hand_written(make: Any) -> App:
    """Return what one writes without a library, if one commits before answering."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        mark()
        async with make() as session:
            mark()
            await work.read_async(session)
            mark()
            await session.commit()
            await send(START)
        await send(BODY)

    return app


def ours(database: Database) -> App:
    """Return the same behind the middleware."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        mark()
        session = database.async_session
        mark()
        await work.read_async(session)
        mark()
        await send(START)
        await send(BODY)

    return SQLAlchemyMiddleware(app, database)


async def measure(place: Place, requests: int) -> dict[str, list[list[float]]]:
    """Return the microseconds of each phase of each request, by contender."""
    database, engine = Database(place.url), create_async_engine(place.url)
    apps = {"hand-written": hand_written(async_sessionmaker(engine, expire_on_commit=False)), "ours": ours(database)}
    taken: dict[str, list[list[float]]] = {name: [] for name in apps}
    gc.collect()
    gc.disable()
    for number in range(requests + 50):  # the first ones warm up
        if number % 100 == 0:
            gc.collect()
        for name, app in random.sample(sorted(apps.items()), len(apps)):
            scope = Client(app).scope("/read")
            marks.clear()
            mark()
            await app(scope, receive, send)
            mark()
            if number >= 50:
                taken[name].append([(after - before) / 1000 for before, after in pairwise(marks)])
    await database.async_dispose()
    await engine.dispose()
    return taken


def main() -> None:
    """Measure, and print the medians."""
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    with postgresql() as place:
        taken = asyncio.run(measure(place, requests))
    medians = {name: [statistics.median(phase) for phase in zip(*of, strict=True)] for name, of in taken.items()}
    rows = [
        (phase, f"{theirs:.1f}", f"{own:.1f}", f"{own - theirs:+.1f}")
        for phase, theirs, own in zip(PHASES, medians["hand-written"], medians["ours"], strict=True)
    ]
    print(table(("Phase", "Hand-written, µs", "Ours, µs", "More"), rows))


if __name__ == "__main__":
    main()
