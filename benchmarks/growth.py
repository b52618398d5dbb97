"""What grows and what must not: databases, concurrency, memory, and the time an import takes.

Must not know: the peers.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import async_sessionmaker

from asgi_sqla import Database, SQLAlchemyMiddleware, session_scope
from benchmarks import raw, work
from benchmarks.calls import Client, receive
from benchmarks.contenders import ROOT
from benchmarks.databases import Place
from benchmarks.rounds import Times, interleave
from benchmarks.scale import Scale

COUNTS = (1, 2, 4, 8)
AT_ONCE = (1, 2, 4, 8, 16, 32)
MODULES = ("fastapi", "starlette", "aiosqlite", "asyncpg", "psycopg", "psycopg2", "alembic", "pydantic", "sqlmodel")


class Memory(NamedTuple):
    """What so many requests leave behind."""

    requests: int
    objects: int
    """Bytes of Python objects more than before, by tracemalloc."""
    resident: int
    """Bytes of the process more than before, at its peak."""


class Import(NamedTuple):
    """What importing takes beyond what it needs, in microseconds, and what it should not have imported."""

    asgi_sqla: float
    needed: float
    extra: list[str]


async def databases(place: Place, scale: Scale) -> dict[tuple[str, int], Times]:
    """Measure requests on a middleware of so many databases: none used, one used, and all used."""
    async with AsyncExitStack() as stack:
        apps = {}
        for count in COUNTS:
            group = [Database(place.url) for _ in range(count)]
            for one in group:
                stack.push_async_callback(one.async_dispose)
            apps["unused", count] = SQLAlchemyMiddleware(raw.bare, group)
            apps["one SELECT", count] = SQLAlchemyMiddleware(_selecting(group[:1]), group)
            apps["a SELECT on each", count] = SQLAlchemyMiddleware(_selecting(group), group)
        return await interleave(apps, scale.work)


def _selecting(group: list[Database]) -> Any:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for database in group:
            await work.read_async(database.async_session)
        await send(raw.START)
        await send(raw.BODY)

    return app


async def concurrency(place: Place, scale: Scale) -> dict[tuple[str, int], float]:
    """Return units per second, each an INSERT, against how many run at once; the median of interleaved rounds."""
    rounds, requests = scale.work
    database = Database(place.url, engine_options={"pool_size": max(AT_ONCE)})
    make = async_sessionmaker(database.async_engine, expire_on_commit=False)

    async def hand_written() -> None:
        async with make() as session:
            await work.write_async(session)
            await session.commit()

    async def ours() -> None:
        async with session_scope(database) as session:
            await work.write_async(session)

    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(max(2, rounds // 4)):
        for at_once in AT_ONCE:
            for name, unit in (("hand-written", hand_written), ("asgi_sqla", ours)):
                before, total = place.rows(), at_once * max(1, 4 * requests // at_once)
                rates.setdefault((name, at_once), []).append(await _rate(unit, at_once, total // at_once))
                assert place.rows() == before + total
    await database.async_dispose()
    return {key: statistics.median(rounds) for key, rounds in rates.items()}


async def _rate(unit: Any, at_once: int, each: int) -> float:
    async def run() -> None:
        for _ in range(each):
            await unit()

    start = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(at_once)))
    return at_once * each / (time.perf_counter() - start)


async def memory(place: Place, scale: Scale) -> list[Memory]:
    """Return what is left in memory after each of two runs of requests, a third unused, read and write each."""
    database = Database(place.url)
    unused, read, write = (
        raw.ours_unused(database),
        raw.ours_async(database, work.read_async),
        raw.ours_async(database, work.write_async),
    )
    await _requests((unused, read, write), scale.memory)  # fills the caches
    tracemalloc.start()
    seen = []
    try:
        for _ in range(2):
            objects, resident = _held()
            before = place.rows()
            await _requests((unused, read, write), scale.memory)
            assert place.rows() == before + scale.memory // 3
            seen.append(Memory(scale.memory, _held()[0] - objects, _held()[1] - resident))
    finally:
        tracemalloc.stop()
    await database.async_dispose()
    return seen


async def _requests(apps: tuple[Any, ...], requests: int) -> None:
    for app in apps:
        client = Client(app)
        for _ in range(requests // len(apps)):
            await app(client.scope("/read"), receive, client.send)


def _held() -> tuple[int, int]:
    gc.collect()
    return tracemalloc.get_traced_memory()[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def importing(scale: Scale) -> Import:
    """Return how long ``import asgi_sqla`` takes after its requirements; the fastest of many interpreters."""
    # No collection, for whose import one of everything SQLAlchemy made falls into is chance.
    program = (
        "import gc, time, sys; gc.disable(); a = time.perf_counter(); "
        "import sqlalchemy, sqlalchemy.orm, sqlalchemy.ext.asyncio, anyio; "
        "b = time.perf_counter(); import asgi_sqla; c = time.perf_counter(); "
        f"print(b - a, c - b, *[name for name in {MODULES} if name in sys.modules])"
    )
    runs = []
    with tempfile.TemporaryDirectory() as cache:  # compiled once, by the first, as an installation is
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
        for _ in range(scale.imports + 1):
            printed = subprocess.run(
                [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT, env=environment
            ).stdout.split()
            runs.append((float(printed[0]) * 1e6, float(printed[1]) * 1e6, printed[2:]))
    return Import(min(run[1] for run in runs), min(run[0] for run in runs), runs[0][2])
