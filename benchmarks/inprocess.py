"""In process, with no server and no framework: bare, hand-written, and ours.

Holds: the unused request; SELECT, INSERT and a lone ``add()`` with every driver, near and far; their round trips.
Must not know: the peers.
"""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import TypeAlias

from sqlalchemy import create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from asgi_sqla import Database
from benchmarks import raw, work
from benchmarks.calls import Client, receive
from benchmarks.databases import READ, Base, Driver, Item, Place
from benchmarks.network import Network
from benchmarks.rounds import Times, interleave
from benchmarks.scale import Scale

App: TypeAlias = Callable[..., Awaitable[None]]
Key: TypeAlias = tuple[str, str, str]
"""The driver, the statement, and whose way it is."""

READS, WRITES, LONE = "SELECT", "INSERT", "add()"
ASYNC = {READS: work.read_async, WRITES: work.write_async, LONE: work.add_async}
SYNC = {READS: work.read, WRITES: work.write, LONE: work.add}
HAND, OURS, READING = "hand-written", "asgi_sqla", "asgi_sqla, read-only"
AUTOCOMMIT, SHIELDED, ONE_THREAD = f"{HAND}, in autocommit", f"{HAND}, shielded", f"{HAND}, in one thread call"
PREPARED = 10
"""Requests after which a driver has connected, and has prepared its statements if it ever will."""


async def unused(place: Place, scale: Scale) -> dict[str, Times]:
    """Measure a request that never uses the database."""
    ours = raw.ours_unused(Database(place.url))
    apps: dict[str, App] = {"bare": raw.bare, "wrapping send": raw.Wrapping(raw.bare), OURS: ours}
    return await interleave(apps, scale.unused)


async def used(place: Place, size: tuple[int, int]) -> dict[Key, Times]:
    """Measure every statement with every driver; each round that writes is checked for its rows.

    Those of one driver and statement take turns among themselves, as a process serves one application and not thirty:
    among thirty each would begin its turn with cold caches, and with a server process that had slept.
    """
    before = place.rows()

    def check(key: Key, requests: int) -> None:
        nonlocal before
        if key[1] == READS:  # a row that one of these wrote would be found by the next
            return
        now = place.rows()
        if now != before + requests:
            raise AssertionError(f"{place.name} {key}: {now} rows where there should be {before + requests}")
        before = now

    async with applications(place) as apps:
        return await _by_statement(apps, size, check)


async def _by_statement(
    apps: dict[Key, App], size: tuple[int, int], check: Callable[[Key, int], None] | None = None
) -> dict[Key, Times]:
    found: dict[Key, Times] = {}
    for one in dict.fromkeys(key[:2] for key in apps):
        found |= await interleave({key: app for key, app in apps.items() if key[:2] == one}, size, check=check)
    return found


async def round_trips(network: Network) -> dict[Key, int]:
    """Return how often the driver waits for the server in one request."""
    async with applications(network.place) as apps:
        database = Database(network.place.url)
        apps["asyncpg", "unused", OURS] = raw.ours_unused(database)
        return {key: await _count(app, network) for key, app in apps.items()}


async def _count(app: App, network: Network) -> int:
    """Count ten requests, and return what most of them took.

    A driver that writes twice without waiting can be put aside between the two for longer than the answer takes.
    """
    client = Client(app)
    for _ in range(PREPARED):
        await app(client.scope("/read"), receive, client.send)
    counts = [network.round_trips]
    for _ in range(PREPARED):
        await app(client.scope("/read"), receive, client.send)
        counts.append(network.round_trips)
    return statistics.mode(after - before for before, after in pairwise(counts))


@asynccontextmanager
async def applications(place: Place) -> AsyncIterator[dict[Key, App]]:
    """Make the applications of every driver; their engines are disposed at the end."""
    apps: dict[Key, App] = {}
    async with AsyncExitStack() as stack:
        for driver in place.drivers:
            database = Database(driver.url)
            stack.push_async_callback(database.async_dispose)
            apps |= _sync(driver, database, stack) if driver.sync else _async(driver, database, stack)
        yield apps


def _async(driver: Driver, database: Database, stack: AsyncExitStack) -> dict[Key, App]:
    engines = create_async_engine(driver.url), create_async_engine(driver.url, isolation_level="AUTOCOMMIT")
    for engine in engines:
        stack.push_async_callback(engine.dispose)
    make, reading = (async_sessionmaker(one, expire_on_commit=False) for one in engines)
    apps: dict[Key, App] = {}
    for statement, job in ASYNC.items():
        apps[driver.name, statement, HAND] = raw.hand_written_async(make, job)
        if statement != LONE:
            apps[driver.name, statement, SHIELDED] = raw.shielded_async(make, job)
        apps[driver.name, statement, OURS] = raw.ours_async(database, job)
    apps[driver.name, READS, AUTOCOMMIT] = raw.hand_written_async(reading, work.read_async)
    apps[driver.name, READS, READING] = raw.ours_async(database, work.read_async, read_only={"GET"})
    return apps


def _sync(driver: Driver, database: Database, stack: AsyncExitStack) -> dict[Key, App]:
    engine = create_engine(driver.url)
    stack.callback(engine.dispose)
    make = sessionmaker(engine, expire_on_commit=False)
    apps: dict[Key, App] = {}
    for statement, job in SYNC.items():
        apps[driver.name, statement, HAND] = raw.hand_written_sync(make, job)
        if statement != LONE:
            apps[driver.name, statement, ONE_THREAD] = raw.hand_written_in_one_thread(make, job)
        apps[driver.name, statement, OURS] = raw.ours_sync(database, job)
    apps[driver.name, READS, READING] = raw.ours_sync(database, work.read, read_only={"GET"})
    return apps


async def in_memory(size: tuple[int, int]) -> dict[Key, Times]:
    """Measure SELECT and INSERT on a SQLite database in memory, one for the hand-written and one for ours.

    The rows of both are counted at the end, since nobody else sees them.
    """
    rounds, requests = size
    database, engine = Database("sqlite+aiosqlite://"), create_async_engine("sqlite+aiosqlite://")
    make = async_sessionmaker(engine, expire_on_commit=False)
    apps: dict[Key, App] = {}
    for statement in (READS, WRITES):
        job = ASYNC[statement]
        apps["aiosqlite", statement, HAND] = raw.hand_written_async(make, job)
        apps["aiosqlite", statement, OURS] = raw.ours_async(database, job)
    for one in (engine, database.async_engine):
        await _fill(one)
    found = await _by_statement(apps, size)
    for one in (engine, database.async_engine):
        async with one.connect() as connection:
            rows = await connection.scalar(select(func.count()).select_from(Item))
        if rows != 1 + (rounds + 1) * requests:
            raise AssertionError(f"{one.url}: {rows} rows of {1 + (rounds + 1) * requests}")
    await engine.dispose()
    await database.async_dispose()
    return found


async def _fill(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with async_sessionmaker(engine)() as session:
        session.add(Item(id=READ, name="read"))
        await session.commit()
