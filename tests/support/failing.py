"""Trouble, caused at a chosen place in a chosen way while a request runs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import anyio
from anyio import to_thread
from sqlalchemy import Connection, Engine, Insert, event, text
from sqlalchemy.util import await_only

from asgi_sqla import Database
from support.asgi import Call, Message
from support.databases import Backend, Item

Hook = Callable[..., None]


class Patient(Call):
    """A client in process whose every message takes a turn of the event loop, as on a socket."""

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        await super().send(message)


class BrokenError(Exception):
    """What a handler, a driver or a hook raises in these tests."""


async def insert(database: Database, kind: str, **fields: Any) -> None:
    """Insert an item as a handler of ``kind`` does: in a worker thread, or in its task."""
    if kind == "sync":
        await to_thread.run_sync(_insert, database, fields)
        await asyncio.sleep(0)  # where anyio tells of a cancellation that came while the thread ran
    else:
        database.async_session.add(Item(**fields))
        await database.async_session.flush()


def _insert(database: Database, fields: dict[str, Any]) -> None:
    database.session.add(Item(**fields))
    database.session.flush()


async def execute(database: Database, kind: str, sql: str) -> Any:
    """Execute ``sql`` as a handler of ``kind`` does, and return its one value."""
    statement = text(sql)
    if kind == "sync":
        return await to_thread.run_sync(lambda: database.session.execute(statement).scalar())
    return (await database.async_session.execute(statement)).scalar()


def engine_of(database: Database, kind: str) -> Engine:
    """Return the engine that sessions of ``kind`` use, as event listeners want it."""
    return database.engine if kind == "sync" else database.async_engine.sync_engine


class Trouble:
    """Strikes once in each request, at the place ``where``, in the way ``how``."""

    _ON_ENGINE = {"flush": ("before_execute", 1), "commit": ("commit", 1), "rollback": ("rollback", 1)} | {
        "last commit": ("commit", 2)
    }
    """Which event of the engine, and which time it happens, is that place."""

    def __init__(self, backend: Backend, where: str, how: str) -> None:
        self._backend = backend
        self._where = where
        self._how = how
        self._loop = asyncio.get_running_loop()
        self._reached = asyncio.Event()
        self._go_on = asyncio.Event()

    def watch(self, engine: Engine) -> None:
        """Strike when ``engine`` is about to do what the place names."""
        if self._how == "status" or self._where not in self._ON_ENGINE:
            return
        name, left = self._ON_ENGINE[self._where]

        def on_event(connection: Connection, statement: Any = None, *_more: Any) -> None:
            nonlocal left
            if statement is None or isinstance(statement, Insert):
                left -= 1
                if left == 0:
                    self._strike(connection)

        event.listen(engine, name, on_event)

    def _strike(self, connection: Connection) -> None:
        if self._how == "exception":
            raise BrokenError
        if self._how == "terminated":
            self._terminate(connection.scalar(text("SELECT pg_backend_pid()")))
        elif connection.dialect.is_async:
            await_only(self._wait())
        else:
            asyncio.run_coroutine_threadsafe(self._wait(), self._loop).result(10)

    async def at(self, where: str, database: Database, kind: str) -> None:
        """Strike in the application, if this is the place."""
        if self._where != where or self._how == "status":
            return
        if self._how == "exception":
            raise BrokenError
        if self._how == "terminated":
            self._terminate(await execute(database, kind, "SELECT pg_backend_pid()"))
            await execute(database, kind, "SELECT 1")
        else:
            await self._wait()

    def _terminate(self, pid: Any) -> None:
        with self._backend.witness.connect() as connection:
            assert connection.scalar(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid}) is True

    async def _wait(self) -> None:
        self._reached.set()
        await self._go_on.wait()

    async def suffer(self, call: Call) -> None:
        """Run ``call``, cancelled where the trouble strikes if ``how`` says so."""
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await call()
                if isinstance(call.raised, asyncio.CancelledError):
                    raise call.raised

        task = asyncio.create_task(run())
        if self._how.startswith("cancelled"):
            await asyncio.wait_for(self._reached.wait(), 10)
            if self._how == "cancelled by anyio":
                scope.cancel()
            else:
                task.cancel()
            await ticks(5)
            if self._how == "cancelled twice":
                task.cancel()
                await ticks(5)
            self._go_on.set()
        await asyncio.wait((task,))
        ended_by_cancellation = isinstance(call.raised, asyncio.CancelledError)
        # anyio knows its own cancellation only by the very object it raised.
        assert scope.cancelled_caught is (ended_by_cancellation and self._how == "cancelled by anyio")
        assert task.cancelled() is (ended_by_cancellation and self._how != "cancelled by anyio")


def lose_network(connection: Connection) -> None:
    """Shut down the socket below a connection to PostgreSQL: its driver notices only when it sends something."""
    raw: Any = connection.connection.driver_connection
    if connection.dialect.driver == "asyncpg":
        raw._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        return
    with socket.socket(fileno=os.dup(raw.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)


async def ticks(count: int) -> None:
    """Give every other task ``count`` turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for work of a thread or of the server, for 5 seconds at most."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 -- they set no event
            await asyncio.sleep(0.005)
