"""``python -m benchmarks.phases``: where a used request spends more, and where less, than the hand-written one.

The hand-written one is there on our engine too: what lies between that and ours is what a unit of work costs.

Holds: one SELECT with an ``AsyncSession``, cut into its phases, in turns of fifty requests.
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
TURN = 50
"""Requests in a row, as a process serves one application."""
HAND, ON_OURS, OURS = "hand-written", "hand-written, on our engine", "ours"
App = Callable[[Any, Any, Any], Awaitable[None]]
marks: list[int] = []


def mark(_message: Any = None) -> None:
    """Note that a phase has ended."""
    marks.append(time.perf_counter_ns())


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
    apps = {
        HAND: hand_written(async_sessionmaker(engine, expire_on_commit=False)),
        ON_OURS: hand_written(async_sessionmaker(database.async_engine, expire_on_commit=False)),
        OURS: ours(database),
    }
    taken: dict[str, list[list[float]]] = {name: [] for name in apps}
    gc.collect()
    gc.disable()
    for number in range(requests // TURN + 1):  # the first turn warms up
        for name, app in random.sample(sorted(apps.items()), len(apps)):
            gc.collect()
            for scope in [Client(app).scope("/read") for _ in range(TURN)]:
                marks.clear()
                mark()
                await app(scope, receive, send)
                mark()
                if number > 0:
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
    rows = [(phase, *(f"{medians[name][index]:.1f}" for name in medians)) for index, phase in enumerate(PHASES)]
    rows.append(("all", *(f"{sum(phases):.1f}" for phases in medians.values())))
    print(table(("Phase", *(f"{name}, µs" for name in medians)), rows))


if __name__ == "__main__":
    main()
