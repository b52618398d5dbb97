"""Round trips of one request, counted on the wire; the tests hold the exact figures.

Must not know: how long anything takes.
"""

from __future__ import annotations

import sys
from typing import Any

from asgi_sqla import Database
from benchmarks import raw, work
from benchmarks.calls import Client, receive
from benchmarks.contenders import ROOT
from benchmarks.databases import Place

sys.path.append(str(ROOT / "tests"))
from support.wire import wire


async def round_trips(place: Place) -> dict[str, int]:
    """Return how often the driver waits for the server in one request, by what the request does."""
    with wire(place.url) as (counting, url):
        database = Database(url)
        apps = {
            "unused": raw.ours_unused(database),
            "SELECT": raw.ours_async(database, work.read_async),
            "INSERT": raw.ours_async(database, work.write_async),
            "SELECT, read-only": raw.ours_async(database, work.read_async, read_only={"GET"}),
        }
        counts = {name: await _count(app, counting) for name, app in apps.items()}
        await database.async_dispose()
    return counts


async def _count(app: Any, counting: Any) -> int:
    client = Client(app)
    for _ in range(3):  # connects, and prepares the statement
        await app(client.scope("/read"), receive, client.send)
    before = counting.round_trips
    await app(client.scope("/read"), receive, client.send)
    return int(counting.round_trips - before)
