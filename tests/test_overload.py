"""A full pool: who waits is bounded, who is refused is told at once, and the message says who holds the connections."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool
from support.asgi import Call, http_scope, respond
from support.databases import Backend
from support.failing import execute, until
from support.marks import KINDS
from support.servers import wait_until

from asgi_sqla import (
    ERROR_RESPONSES,
    ConfigurationError,
    Database,
    PoolExhaustedError,
    SQLAlchemyMiddleware,
    session_scope,
)

PATIENCE = 10.0
SIZE = 2


def full(backend: Backend, **options: Any) -> Database:
    """Return a database with a pool of two."""
    pool = {"pool_size": SIZE, "max_overflow": 0, "pool_timeout": PATIENCE, **options.pop("engine_options", {})}
    return Database(backend.url, engine_options=pool, **options)


class Crowd:
    """Requests that hold a connection, in tasks or in threads, until they are let go."""

    def __init__(self, database: Database, kind: str) -> None:
        self.database = database
        self.kind = kind
        self.go = asyncio.Event()
        self.held = 0
        self.app = SQLAlchemyMiddleware(self._app, database, error_responses=ERROR_RESPONSES)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await execute(self.database, self.kind, "SELECT 1")
        self.held += 1
        if scope["path"] == "/holds":
            await self.go.wait()
        await respond(send)

    def enter(self, path: str) -> asyncio.Task[Call]:
        """Start a request."""
        return asyncio.create_task(Call(self.app, http_scope(path))())

    def waiting(self) -> int:
        """Return how many wait for a connection."""
        return sum(one.waiting for one in self.database.pools())


@pytest.mark.parametrize("kind", KINDS)
async def test_one_more_than_may_wait_is_refused_at_once(
    backend: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is answered 503 while the others wait, who are served when a connection is free."""
    database = full(backend, max_waiting=1)
    crowd = Crowd(database, kind)
    holding = [crowd.enter("/holds") for _ in range(SIZE)]
    await until(lambda: crowd.held == SIZE)
    third = crowd.enter("/waits")
    await until(lambda: crowd.waiting() == 1)

    with caplog.at_level(logging.WARNING, "asgi_sqla"):
        refused = await crowd.enter("/refused")

    assert (refused.status, refused.raised) == (503, None)
    (name,) = {one.unit for one in database.holders()}
    assert name == "GET /holds"
    told = [one.getMessage() for one in caplog.records if "is exhausted" in one.getMessage()]
    assert len(told) == 1
    assert told[0].count("GET /holds (") == SIZE
    assert "idle for" in told[0]
    crowd.go.set()
    assert [(await one).status for one in (*holding, third)] == [200] * (SIZE + 1)
    assert (crowd.waiting(), database.holders(), crowd.held) == (0, [], SIZE + 1)
    await database.async_dispose()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_pool_that_times_out_says_who_holds_it(backend: Backend, kind: str) -> None:
    """It is SQLAlchemy's own error, with a note, whether or not ``max_waiting`` was given."""
    database = full(backend, engine_options={"pool_timeout": 0.2})
    crowd = Crowd(database, kind)
    holding = [crowd.enter("/holds") for _ in range(SIZE)]
    await until(lambda: crowd.held == SIZE)

    with pytest.raises(PoolTimeoutError, match="QueuePool limit") as caught:
        async with session_scope(database):
            await execute(database, kind, "SELECT 1")

    assert not isinstance(caught.value, PoolExhaustedError)
    assert sum(note.count("GET /holds (") for note in caught.value.__notes__) == SIZE
    crowd.go.set()
    await asyncio.gather(*holding)
    await database.async_dispose()


def test_threads_wait_and_are_refused(backend: Backend) -> None:
    """None of 30 threads is lost count of."""
    database = full(backend, max_waiting=3)
    refused: list[PoolExhaustedError] = []
    go, served = threading.Event(), []

    def work() -> None:
        try:
            with session_scope(database) as session:
                session.execute(text("SELECT 1"))
                assert go.wait(PATIENCE)
                served.append(1)
        except PoolExhaustedError as exc:
            refused.append(exc)

    threads = [threading.Thread(target=work) for _ in range(30)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: len(refused) == 30 - SIZE - 3, PATIENCE)
    (status,) = database.pools()
    assert (status.role, status.kind, status.size, status.out, status.overflow) == ("write", "sync", SIZE, SIZE, 0)
    assert status.waiting == 3
    go.set()
    for thread in threads:
        thread.join(PATIENCE)

    assert (len(served), len(refused)) == (SIZE + 3, 25)
    assert str(refused[0]).startswith("all 2 connections are in use and 3 tasks or threads wait for one already")
    assert [one.waiting for one in database.pools()] == [0]
    database.dispose()


async def test_a_cancelled_waiter_is_no_longer_counted(backend: Backend) -> None:
    """The next one may wait in its place."""
    database = full(backend, max_waiting=1)
    crowd = Crowd(database, "async")
    holding = [crowd.enter("/holds") for _ in range(SIZE)]
    await until(lambda: crowd.held == SIZE)
    for _ in range(3):
        waits = crowd.enter("/waits")
        await until(lambda: crowd.waiting() == 1)
        waits.cancel()
        await asyncio.wait([waits])

    assert crowd.waiting() == 0
    crowd.go.set()
    await asyncio.gather(*holding)
    await database.async_dispose()


async def test_every_pool_has_numbers(backend: Backend) -> None:
    """Each role and each kind has a pool of its own, made on first use."""
    database = Database(backend.url, engine_options={"pool_size": 3})
    assert database.pools() == []
    for read_only in (False, True):
        with session_scope(database, read_only=read_only) as session:
            session.execute(text("SELECT 1"))
        async with session_scope(database, read_only=read_only) as async_session:
            await async_session.execute(text("SELECT 1"))
            assert len(database.holders()) == 1

    assert [(one.role, one.kind, one.size, one.out) for one in database.pools()] == [
        (role, kind, 3, 0) for role in ("write", "read") for kind in ("sync", "async")
    ]
    assert {(one.idle, one.max) for one in database.pools()} == {(1, 13)}
    assert {make_url(one.database).get_backend_name() for one in database.pools()} == {backend.witness.dialect.name}
    await database.async_dispose()
    unlimited = Database(backend.url, engine_options={"max_overflow": -1})
    with session_scope(unlimited) as session:
        session.execute(text("SELECT 1"))
        assert [(one.out, one.idle, one.max) for one in unlimited.pools()] == [(1, 0, None)]
    unlimited.dispose()
    given = Database(engine=create_engine(backend.witness.url, poolclass=NullPool))
    with session_scope(given) as session:
        session.execute(text("SELECT 1"))
    assert given.pools() == []


@pytest.mark.parametrize("wrong", [-1, True, "3", 1.5])
def test_a_wrong_bound_is_refused(sqlite: Backend, wrong: Any) -> None:
    """At once, and the error says what to write."""
    with pytest.raises(ConfigurationError, match=r"max_waiting=.* is not a count; write a whole number"):
        Database(sqlite.url, max_waiting=wrong)


def test_a_bound_needs_a_queue(sqlite: Backend) -> None:
    """An engine that was passed in has its owner's pool, and a pool that is no queue lets nobody wait."""
    with pytest.raises(ConfigurationError, match="max_waiting=3 is for engines made from a URL"):
        Database(engine=create_engine(sqlite.url), max_waiting=3)
    with pytest.raises(ConfigurationError, match="max_waiting=3 is for queue pools, and poolclass=NullPool is none"):
        Database(sqlite.url, engine_options={"poolclass": NullPool}, max_waiting=3)


def test_the_holders_are_named_in_a_new_process(sqlite: Backend) -> None:
    """Also if nobody has asked for them before."""
    code = f"""
from sqlalchemy import text
from asgi_sqla import Database, session_scope
database = Database({sqlite.url!r}, engine_options={{"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}})
with session_scope(database) as first:
    first.execute(text("SELECT 1"))
    try:
        database.engine.connect()
    except Exception as exc:
        print(*exc.__notes__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "session_scope() (0." in done.stdout


async def test_the_error_of_who_may_not_wait_names_the_holders(sqlite: Backend) -> None:
    """In a note, for whoever reads it in the log of the server."""
    database = full(sqlite, max_waiting=1)
    crowd = Crowd(database, "async")
    waiting = [crowd.enter("/holds") for _ in range(SIZE + 1)]
    await until(lambda: (crowd.held, crowd.waiting()) == (SIZE, 1))

    with pytest.raises(PoolExhaustedError) as caught:
        async with session_scope(database):
            await execute(database, "async", "SELECT 1")
    crowd.go.set()
    await asyncio.gather(*waiting)
    await database.async_dispose()

    (note,) = caught.value.__notes__
    assert note.startswith("its connections are held by ")
    assert note.count("GET /holds (") == SIZE
