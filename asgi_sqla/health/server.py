"""One question to the servers of a database: whether they answer, and which revision they have.

Holds: on which connection it is asked, how long an answer is waited for, and what is left of a question without one.
Must not know: what is made of the answer, or how often it is asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

import anyio
from anyio import CapacityLimiter, to_thread
from sqlalchemy import literal_column, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.util import greenlet_spawn

from asgi_sqla.database import Database
from asgi_sqla.engine.classification import ErrorKind, classify
from asgi_sqla.engine.drivers import cut
from asgi_sqla.engine.engines import Engines
from asgi_sqla.engine.pools import is_full
from asgi_sqla.engine.sqlite import is_inside
from asgi_sqla.session.guard import running_loop
from asgi_sqla.unit.threads import Call, future_of, submit

if TYPE_CHECKING:
    from asgi_sqla.migrations.state import Status

Servers: TypeAlias = Literal["primary", "replicas"]
Read: TypeAlias = "Callable[[Connection], Status]"

MOST_LEFT = 3
"""How many questions without an answer may wait before the next ones are spaced.

A thread that connects to a silent server cannot be woken; libpq may wait for minutes, even when the network is back.
"""
SPACE = 10.0
"""Seconds between them then; to those who ask meanwhile there is no answer."""

logger: logging.Logger = logging.getLogger("asgi_sqla")


class Answer(NamedTuple):
    """What came of a question."""

    milliseconds: float
    error: str | None
    """The kind or the class of the error, never its message, which may hold what a stranger must not read."""
    revision: Status | None = None
    """The state of the migrations, if it was asked for."""


class Server:
    """The primary or the replicas of one database."""

    def __init__(self, database: Database, which: Servers, read: Callable[[], Read] | None = None) -> None:
        self.database: Database = database
        self.which: Servers = which
        self._read = read
        self._left: set[Any] = set()
        self._spaced = 0.0
        self._failing = False

    @property
    def exists(self) -> bool:
        """Whether there is anything to ask: the replicas of a database may come when it is configured."""
        database = self.database
        if self.which == "primary":
            return True
        return bool(database._configuration and database._configuration.replicas and not database._substituted)

    async def ask(self, limit: float) -> Answer:
        """Ask, and return the answer, or why there is none after ``limit`` seconds."""
        began = perf_counter()
        failure: Exception | None = None
        question = _Question()
        try:
            if self._read is not None:  # the scripts are loaded in a thread, and once
                question.read = await to_thread.run_sync(self._read, limiter=CapacityLimiter(1))
            await self._bounded(question, limit)
        except Exception as exc:
            failure = exc
        self._log(failure)
        return Answer(round((perf_counter() - began) * 1e3, 3), _name(failure), question.revision)

    def _engines(self) -> Engines:
        database = self.database
        if self.which == "primary":
            return database._ready()
        return cast("Engines", database._reading.of("read", None, database._make_engines)[0])

    async def _bounded(self, question: _Question, limit: float) -> None:
        engines = self._engines()
        if len(self._left) >= MOST_LEFT:
            if monotonic() < self._spaced:
                raise TimeoutError(f"{len(self._left)} questions before this one still have no answer")
            self._spaced = monotonic() + SPACE
        if running_loop() is None:  # trio
            with anyio.fail_after(limit):
                ask = partial(question.put, engines.sync())
                await to_thread.run_sync(ask, abandon_on_cancel=True, limiter=CapacityLimiter(1))
        else:
            await self._on_asyncio(engines, question, limit)

    async def _on_asyncio(self, engines: Engines, question: _Question, limit: float) -> None:
        running: asyncio.Task[None] | Call
        if engines.has_async():
            running = asyncio.create_task(greenlet_spawn(question.put, engines.asynchronous().sync_engine))
        else:
            running = submit(partial(question.put, engines.sync()))
        waited = future_of(running) if isinstance(running, Call) else running
        done, _ = await asyncio.wait([waited], timeout=limit)
        if done:
            waited.result()
            return
        self._left.add(running)
        running.add_done_callback(self._forget)
        question.cut()
        waited.cancel()
        raise TimeoutError(f"no answer within {limit:g} seconds")

    def _forget(self, running: Any) -> None:
        self._left.discard(running)
        if not running.cancelled():
            running.exception()  # nobody waits for it

    def _log(self, failure: Exception | None) -> None:
        """Tell each change once; the answers themselves tell the rest."""
        if (failure is not None) is not self._failing:
            self._failing = failure is not None
            level, said = (logging.INFO, "answers again") if failure is None else (logging.WARNING, repr(failure))
            logger.log(level, "readiness: the %s of %r: %s", self.which, self.database, said)


class _Question:
    """One question on one connection."""

    def __init__(self) -> None:
        self.read: Read | None = None
        self.revision: Status | None = None
        self._asking: tuple[Any, Any] | None = None

    def put(self, engine: Engine) -> None:
        """Ask on a connection of the pool, or on one of its own if the pool has none or a stale one.

        A full pool does not mean that requests should go elsewhere: they would fill the next process's pool.
        """
        if engine.dialect.name == "sqlite" and not is_inside(engine.dialect):
            # Without the listener that begins: with transaction_mode="immediate" it would take the writer's lock.
            engine = Engine(engine.pool, engine.dialect, engine.url)
        if not is_full(engine.pool):
            try:
                self._ask(engine.connect())
            except Exception as exc:
                if classify(exc) not in (ErrorKind.CONNECTION_LOST, ErrorKind.POOL_EXHAUSTED):
                    raise
            else:
                return
        spare = engine.pool.recreate()
        try:
            self._ask(Connection(engine, spare.connect()))
        finally:
            spare.dispose()

    def cut(self) -> None:
        """Wake what waits for the answer."""
        if (asking := self._asking) is not None:
            cut(*asking)

    def _ask(self, connection: Connection) -> None:
        with connection:
            self._asking = connection.connection.driver_connection, connection.dialect
            connection.execute(select(literal_column("1")))
            if self.read is not None:
                self.revision = self.read(connection)
            self._asking = None


def _name(failure: Exception | None) -> str | None:
    if failure is None:
        return None
    kind = classify(failure)
    if kind is not None:
        return kind.value
    return "no answer" if isinstance(failure, TimeoutError) else type(failure).__name__
