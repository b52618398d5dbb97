"""An interrupted end: whatever is raised at whatever step, every session is closed and no connection stays out."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from support.asgi import Call, http_scope, respond
from support.databases import Backend, Base, Item
from support.failing import engine_of, insert
from support.marks import on_one

from asgi_sqla import Database, SQLAlchemyMiddleware, session_scope


class Interrupt(BaseException):
    """An exception that a worker raises into its threads, as dramatiq does at a time limit."""


def raise_now(error: type[BaseException]) -> None:
    """Raise ``error``."""
    raise error


def raise_soon(error: type[BaseException]) -> None:
    """Let the interpreter raise ``error`` in this thread at its next chance, as a worker or a signal does."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), ctypes.py_object(error))
    for _ in range(1000):
        pass
    raise AssertionError


ERRORS = [KeyboardInterrupt, SystemExit, Interrupt, asyncio.CancelledError, GeneratorExit]
WAYS: list[tuple[type[BaseException], Callable[..., None]]] = [
    *((error, raise_now) for error in ERRORS),
    (Interrupt, raise_soon),
]
ENGINE = ["commit", "rollback", "reset"]
"""Not "checkin": SQLAlchemy itself loses the connection whose listener raises there, with or without a unit of work."""
SESSION = ["before_commit", "after_commit", "before_flush", "after_flush", "after_rollback", "after_soft_rollback"]
STEPS = [*ENGINE, *SESSION, "close"]
ROLLING_BACK = ["rollback", "after_rollback", "after_soft_rollback"]
"""The steps of an end that does not commit."""


class OwnSession(Session):
    """A user's session, whose close can be interrupted."""

    on_close: Callable[[], None] | None = None

    def close(self) -> None:
        super().close()
        on_close, OwnSession.on_close = OwnSession.on_close, None
        if on_close is not None:
            on_close()


class Strike:
    """Raises once, at one step of the end of one database."""

    def __init__(self, step: str, error: type[BaseException], way: Callable[..., None]) -> None:
        self.step = step
        self.error = error
        self.way = way
        self.armed = False
        self.struck = False

    def arm(self, database: Database, kind: str, session: Any) -> None:
        """Strike from now on."""
        if self.step == "close":
            OwnSession.on_close = self.strike
        elif self.step in ENGINE:
            target = engine_of(database, kind)
            event.listen(target.pool if self.step == "reset" else target, self.step, self.on_event)
        else:
            event.listen(getattr(session, "sync_session", session), self.step, self.on_event)
        self.armed = True

    def on_event(self, *_arguments: Any, **_named: Any) -> None:
        if self.armed:
            self.strike()

    def strike(self) -> None:
        """Raise."""
        self.armed, self.struck = False, True
        self.way(self.error)


@pytest.fixture(autouse=True, scope="module")
def _what_is_there_is_not_looked_through() -> None:
    """Hide it from the collector, which costs three quarters of these tests in a process that has run others."""
    gc.collect()
    if "PYTEST_XDIST_WORKER" in os.environ:  # elsewhere Hypothesis, imported later, would look for it
        gc.freeze()


@pytest.fixture(autouse=True)
def _without_a_collector() -> Iterator[None]:
    """Disable the cyclic collector, which would hide a leak."""
    gc.collect()
    gc.disable()
    yield
    OwnSession.on_close = None
    gc.enable()


class Two:
    """Two databases with one connection each; the end of the first is interrupted."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
        session_options = {"class_": OwnSession}
        self.backend = backend
        url = f"sqlite:///{folder / 'second.db'}"
        witness = create_engine(url, poolclass=NullPool)
        Base.metadata.create_all(witness)
        witness.dispose()
        self.first = Database(backend.url, engine_options=options, session_options=session_options)
        self.second = Database(url, engine_options=options)

    def check(self) -> None:
        """Fail if a connection is out, or one is idle in a transaction."""
        assert [connections_out_of(one) for one in (self.first, self.second)] == [0, 0]
        if self.backend.name != "sqlite":
            assert self.backend.backends("idle in transaction%") == 0


def connections_out_of(database: Database) -> int:
    """Return how many connections of the existing pools are checked out."""
    pools: list[Any] = [one.pool for one in database._engines.existing()]
    return sum(pool.checkedout() for pool in pools)


def is_reached(step: str, *, commits: bool) -> bool:
    """Return whether an end comes to that step."""
    if commits:
        return step not in ROLLING_BACK
    return step not in ("commit", "before_commit", "after_commit", "before_flush", "after_flush")


CELLS = [
    pytest.param(step, error, way, commits, id=f"{step}-{error.__name__}-{way.__name__}-{commits}")
    for step in STEPS
    for error, way in WAYS
    for commits in (True, False)
    if is_reached(step, commits=commits) and (error is Interrupt or step in ("commit", "rollback"))
]
on_every_interruption = pytest.mark.parametrize(("step", "error", "way", "commits"), CELLS)
on_every_step = pytest.mark.parametrize(
    ("step", "error", "way", "commits"), [one for one in CELLS if one.values[1:3] == (Interrupt, raise_now)]
)


class OverError(Exception):
    """The exception that ends a unit that rolls back."""


@on_one
@on_every_interruption
def test_a_sync_scope(
    backend: Backend, tmp_path: Path, step: str, error: type[BaseException], way: Callable[..., None], commits: bool
) -> None:
    """The exception reaches the caller, and the only connection of each pool serves the next scope."""
    two = Two(backend, tmp_path)
    strike = Strike(step, error, way)

    @session_scope(two.first)
    def job() -> None:
        session = two.first.session
        session.add(Item(name="flushed"))
        session.flush()
        session.add(Item(name="pending"))
        two.second.session.add(Item(name="second"))
        two.second.session.flush()
        strike.arm(two.first, "sync", session)
        if not commits:
            raise OverError

    with pytest.raises(error):
        job()
    assert strike.struck
    two.check()
    with session_scope(two.first) as session:
        session.add(Item(name="next"))
        two.second.session.add(Item(name="next"))
    two.check()
    assert "next" in backend.names()
    two.first.dispose()
    two.second.dispose()


@pytest.mark.parametrize("kind", ["sync", "async"])
@on_one
@on_every_step
async def test_an_async_scope(
    backend: Backend,
    tmp_path: Path,
    step: str,
    error: type[BaseException],
    way: Callable[..., None],
    commits: bool,
    kind: str,
) -> None:
    """The same holds where a greenlet or a thread of ours ends sessions."""
    two = Two(backend, tmp_path)
    strike = Strike(step, error, way)

    @session_scope(two.first)
    async def job() -> None:
        await insert(two.first, kind, name="flushed")
        await insert(two.second, kind, name="second")
        session = two.first.session if kind == "sync" else two.first.async_session
        session.add(Item(name="pending"))
        strike.arm(two.first, kind, session)
        if not commits:
            raise OverError

    with pytest.raises(error):
        await job()
    await check_and_serve(two, kind)


@pytest.mark.parametrize("kind", ["sync", "async"])
@on_one
@on_every_step
async def test_a_request(
    backend: Backend,
    tmp_path: Path,
    step: str,
    error: type[BaseException],
    way: Callable[..., None],
    commits: bool,
    kind: str,
) -> None:
    """No client sees a success without its rows, and the server gets the exception."""
    two = Two(backend, tmp_path)
    strike = Strike(step, error, way)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(two.first, kind, name="flushed")
        await insert(two.second, kind, name="second")
        session = two.first.session if kind == "sync" else two.first.async_session
        session.add(Item(name="pending"))
        strike.arm(two.first, kind, session)
        await respond(send, 201 if commits else 422)

    call = await Call(SQLAlchemyMiddleware(app, (two.first, two.second)))()

    assert type(call.raised) is error
    if call.starts == [201]:
        assert "flushed" in backend.names()
    await check_and_serve(two, kind)


async def check_and_serve(two: Two, kind: str) -> None:
    """Fail if a connection is out, or if the next request on each pool of one fails."""
    two.check()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(two.first, kind, name=scope["path"])
        await insert(two.second, kind, name=scope["path"])
        await respond(send, 201)

    after = [await Call(SQLAlchemyMiddleware(app, two.first), http_scope(f"/{n}"))() for n in range(2)]
    assert [call.starts for call in after] == [[201], [201]]
    two.check()
    await two.first.async_dispose()
    await two.second.async_dispose()
