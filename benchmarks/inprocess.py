"""In process, with no server and no framework: bare, hand-written, and ours.

Holds: the unused request, and the same SELECT and INSERT in both kinds on both databases.
Must not know: the peers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from asgi_sqla import Database
from benchmarks import raw, work
from benchmarks.databases import Place
from benchmarks.rounds import Times, interleave
from benchmarks.scale import Scale

App = Callable[..., Awaitable[None]]


async def unused(place: Place, scale: Scale) -> dict[str, Times]:
    """Measure a request that never uses the database."""
    ours = raw.ours_unused(Database(place.url))
    apps: dict[str, App] = {"bare": raw.bare, "wrapping send": raw.Wrapping(raw.bare), "asgi_sqla": ours}
    return await interleave(apps, scale.unused)


async def used(place: Place, scale: Scale) -> dict[tuple[str, str, str], Times]:
    """Measure SELECT and INSERT, sync and async; every round is checked for its rows."""
    before = place.rows()

    def check(key: tuple[str, str, str], requests: int) -> None:
        nonlocal before
        now = place.rows()
        expected = before + (requests if key[1] == "INSERT" else 0)
        if now != expected:
            raise AssertionError(f"{place.name} {key}: {now} rows where there should be {expected}")
        before = now

    databases = Database(place.url), Database(place.sync_url)
    async_engines = create_async_engine(place.url), create_async_engine(place.url, isolation_level="AUTOCOMMIT")
    engine = create_engine(place.sync_url)
    apps = {**_async(databases[0], *async_engines), **_sync(databases[1], engine)}
    try:
        return await interleave(apps, scale.work, check=check)
    finally:
        for database in databases:
            await database.async_dispose()
        for async_engine in async_engines:
            await async_engine.dispose()
        engine.dispose()


def _async(database: Database, engine: AsyncEngine, autocommit: AsyncEngine) -> dict[tuple[str, str, str], App]:
    make, reading = (async_sessionmaker(one, expire_on_commit=False) for one in (engine, autocommit))
    apps: dict[tuple[str, str, str], App] = {}
    for statement, job in (("SELECT", work.read_async), ("INSERT", work.write_async)):
        apps["async", statement, "hand-written"] = raw.hand_written_async(make, job)
        apps["async", statement, "hand-written, shielded"] = raw.shielded_async(make, job)
        apps["async", statement, "asgi_sqla"] = raw.ours_async(database, job)
    apps["async", "SELECT", "hand-written, in autocommit"] = raw.hand_written_async(reading, work.read_async)
    apps["async", "SELECT", "asgi_sqla, read-only"] = raw.ours_async(database, work.read_async, read_only={"GET"})
    return apps


def _sync(database: Database, engine: Engine) -> dict[tuple[str, str, str], App]:
    make = sessionmaker(engine, expire_on_commit=False)
    apps: dict[tuple[str, str, str], App] = {}
    for statement, job in (("SELECT", work.read), ("INSERT", work.write)):
        apps["sync", statement, "hand-written"] = raw.hand_written_sync(make, job)
        apps["sync", statement, "hand-written, in one thread call"] = raw.hand_written_in_one_thread(make, job)
        apps["sync", statement, "asgi_sqla"] = raw.ours_sync(database, job)
    apps["sync", "SELECT", "asgi_sqla, read-only"] = raw.ours_sync(database, work.read, read_only={"GET"})
    return apps
