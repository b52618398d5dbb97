"""What a rolled-back test costs: 500 of them beside 500 that do the same by hand.

Must not know: the peers. Run it by ``python -m benchmarks.testing``.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Engine, Insert, insert
from sqlalchemy.ext.asyncio import AsyncEngine

from asgi_sqla import Database, session_scope
from asgi_sqla.testing import rolled_back
from benchmarks.databases import Item, Place, postgresql, sqlite

TESTS = 500
INSERT = insert(Item).values(name="test")
BUDGET = 2.0
"""Milliseconds of ours in a test."""


class Cost(NamedTuple):
    """What one kind of test takes, in milliseconds."""

    plain: list[float]
    """A transaction by hand: BEGIN, one INSERT, ROLLBACK."""
    rolled_back: list[float]
    """The same INSERT in ``session_scope()`` inside ``rolled_back()``."""
    empty: list[float]
    """A transaction by hand with nothing in it: a connection out of the pool, BEGIN, ROLLBACK."""

    def line(self, typical: Callable[[list[float]], float]) -> str:
        """Say it in one line, of the test that ``typical`` chooses."""
        plain, ours, empty = typical(self.plain), typical(self.rolled_back), typical(self.empty)
        return (
            f"{plain:7.3f} -> {ours:7.3f} ms, ours {ours - plain:6.3f} ms, ratio {ours / plain:5.2f}, "
            f"to an empty transaction {ours / empty:5.2f}"
        )

    @property
    def within(self) -> bool:
        """Whether the least of ours, which other processes disturbed least, is within the budget."""
        return min(self.rolled_back) - min(self.plain) < BUDGET


def sync_cost(database: Database) -> Cost:
    """Measure tests of sync code, the two kinds in turn."""
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    for _ in range(TESTS):
        times[0].append(timed(database.engine, INSERT))
        times[2].append(timed(database.engine, None))
        start = time.perf_counter()
        with rolled_back(database), session_scope(database) as session:
            session.connection().execute(INSERT)
        times[1].append(time.perf_counter() - start)
    return Cost(*([seconds * 1000 for seconds in one] for one in times))


def timed(engine: Engine, statement: Insert | None) -> float:
    """Return the seconds of a transaction by hand."""
    start = time.perf_counter()
    with engine.connect() as connection:
        connection.begin()
        if statement is not None:
            connection.execute(statement)
        connection.rollback()
    return time.perf_counter() - start


async def async_cost(database: Database) -> Cost:
    """Measure tests of async code on one event loop, the two kinds in turn."""
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    for _ in range(TESTS):
        times[0].append(await timed_async(database.async_engine, INSERT))
        times[2].append(await timed_async(database.async_engine, None))
        start = time.perf_counter()
        async with rolled_back(database), session_scope(database) as session:
            await (await session.connection()).execute(INSERT)
        times[1].append(time.perf_counter() - start)
    await database.async_dispose()
    return Cost(*([seconds * 1000 for seconds in one] for one in times))


async def timed_async(engine: AsyncEngine, statement: Insert | None) -> float:
    """Return the seconds of a transaction by hand."""
    start = time.perf_counter()
    async with engine.connect() as connection:
        await connection.begin()
        if statement is not None:
            await connection.execute(statement)
        await connection.rollback()
    return time.perf_counter() - start


def report(place: Place) -> bool:
    """Print the costs on one database; return whether they are within the budget and nothing was kept."""
    before = place.rows()
    costs = {"sync": sync_cost(Database(place.sync_url)), "async": asyncio.run(async_cost(Database(place.url)))}
    for kind, cost in costs.items():
        print(f"{place.name:10} {kind:5} minimum {cost.line(min)}")
        print(f"{place.name:10} {kind:5} median  {cost.line(statistics.median)}")
    return place.rows() == before and all(cost.within for cost in costs.values())


def main() -> int:
    """Measure on both databases; fail where a test takes more of ours than the budget."""
    with sqlite() as file, postgresql() as server:
        within = [report(place) for place in (file, server)]
    print(
        f"{TESTS} tests of each; budget {BUDGET:g} ms of ours, by the minimum: {'kept' if all(within) else 'NOT KEPT'}"
    )
    return 0 if all(within) else 1


if __name__ == "__main__":
    sys.exit(main())
