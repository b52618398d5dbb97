"""What grows and what must not: databases, units at once, messages, event loops, and memory.

Must not know: the peers.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker

from asgi_sqla import Database, SQLAlchemyMiddleware, session_scope
from benchmarks import raw, work
from benchmarks.calls import Client, receive
from benchmarks.databases import Place
from benchmarks.rounds import Times, interleave
from benchmarks.scale import Scale

COUNTS = (1, 2, 4, 8)
PIECES = 10
"""How many parts of a long run are looked at, each by itself."""
POOL = {"pool_size": 16, "max_overflow": 0, "pool_timeout": 300}
OTHERS = text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")


class Run(NamedTuple):
    """A long run in pieces."""

    microseconds: list[float]
    """What one message, or one event loop, took in each piece."""
    objects: list[int]
    """How many objects the collector knew after each piece."""
    connections: int
    """How many connections the server had at the end."""


class Memory(NamedTuple):
    """What so many requests leave behind."""

    requests: int
    objects: int
    """Bytes of Python objects more than before, by tracemalloc."""
    resident: int
    """Bytes of the process more than before, at its peak."""


async def databases(near: Place, far: Place, scale: Scale) -> dict[tuple[str, int], Times]:
    """Measure requests on a middleware of so many databases: none used, one used, and all used, near and far."""
    async with AsyncExitStack() as stack:
        apps = {}
        for count in COUNTS:
            group, distant = ([Database(place.url) for _ in range(count)] for place in (near, far))
            for one in (*group, *distant):
                stack.push_async_callback(one.async_dispose)
            apps["unused", count] = SQLAlchemyMiddleware(raw.bare, group)
            apps["one SELECT", count] = SQLAlchemyMiddleware(_on_each(group[:1], work.read_async), group)
            apps["a SELECT on each", count] = SQLAlchemyMiddleware(_on_each(group, work.read_async), group)
            for name, job in (("SELECT", work.read_async), ("INSERT", work.write_async)):
                apps[f"a far {name} on each", count] = SQLAlchemyMiddleware(_on_each(distant, job), distant)
        return await interleave(apps, scale.databases)


def _on_each(group: list[Database], job: Callable[[Any], Awaitable[None]]) -> Any:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for database in group:
            await job(database.async_session)
        await send(raw.START)
        await send(raw.BODY)

    return app


async def concurrency(place: Place, scale: Scale) -> dict[tuple[str, int], float]:
    """Return the microseconds of a unit, an INSERT, against how many are begun at once; medians of rounds in turn."""
    rounds, requests = scale.work
    database = Database(place.url, engine_options=POOL)
    make = async_sessionmaker(database.async_engine, expire_on_commit=False)

    async def hand_written() -> None:
        async with make() as session:
            await work.write_async(session)
            await session.commit()

    async def ours() -> None:
        async with session_scope(database) as session:
            await work.write_async(session)

    taken: dict[tuple[str, int], list[float]] = {}
    for number in range(max(2, rounds // 6) + 1):
        for at_once in scale.at_once:
            for name, unit in (("hand-written", hand_written), ("asgi_sqla", ours)):
                before, total = place.rows(), at_once * max(1, 4 * requests // at_once)
                microseconds = await _together(unit, at_once, total // at_once)
                assert place.rows() == before + total
                if number > 0:  # the first one connects
                    taken.setdefault((name, at_once), []).append(microseconds)
    await database.async_dispose()
    return {key: statistics.median(rounds) for key, rounds in taken.items()}


async def _together(unit: Callable[[], Awaitable[None]], at_once: int, each: int) -> float:
    async def run() -> None:
        for _ in range(each):
            await unit()

    start = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(at_once)))
    return (time.perf_counter() - start) / (at_once * each) * 1e6


async def messages(place: Place, scale: Scale) -> Run:
    """Send that many messages on one socket, each answered after a SELECT."""
    database = Database(place.url)
    each = scale.messages // PIECES
    marks: list[Mark] = []
    told = 0

    async def feed() -> Any:
        nonlocal told
        told += 1
        if told == 1:
            return {"type": "websocket.connect"}
        if (told - 2) % each == 0:
            marks.append(_mark())
        if told < each * PIECES + 2:
            return {"type": "websocket.receive", "text": "question"}
        return {"type": "websocket.disconnect", "code": 1000}

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            await work.read_async(database.async_session)
            await send({"type": "websocket.send", "text": "answer"})

    scope = {**Client(None).scope("/socket"), "type": "websocket", "subprotocols": []}
    await _requests((raw.ours_async(database, work.read_async),), 20)  # connects
    await SQLAlchemyMiddleware(app, database)(scope, feed, _drop)
    assert len(marks) == PIECES + 1
    await database.async_dispose()
    return _run(marks, each, place)


def loops(place: Place, scale: Scale) -> Run:
    """Run that many event loops, one after the other, each with a unit of one Database that they share."""
    database = Database(place.url)
    each = max(1, scale.loops // PIECES)

    async def unit() -> None:
        async with session_scope(database) as session:
            await work.read_async(session)

    asyncio.run(unit())
    marks = [_mark()]
    for _ in range(PIECES):
        for _ in range(each):
            asyncio.run(unit())
        marks.append(_mark())
    return _run(marks, each, place)


class Mark(NamedTuple):
    """The end of one piece and the start of the next; the look at the objects between them is of neither."""

    ended: float
    objects: int
    started: float


def _mark() -> Mark:
    ended = time.perf_counter()
    gc.collect()
    return Mark(ended, len(gc.get_objects()), time.perf_counter())


def _run(marks: list[Mark], each: int, place: Place) -> Run:
    taken = [(after.ended - before.started) / each * 1e6 for before, after in pairwise(marks)]
    deadline = time.monotonic() + 10
    while (left := _others(place)) and time.monotonic() < deadline:  # a server takes its time to see a connection go
        time.sleep(0.05)
    return Run(taken, [mark.objects for mark in marks], left)


def _others(place: Place) -> int:
    with place.witness.connect() as connection:
        return int(connection.scalar(OTHERS) or 0)


async def _drop(_message: Any) -> None:
    """Send nowhere."""


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
