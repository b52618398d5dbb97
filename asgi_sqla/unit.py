"""The unit of work: all that one request, one socket message or one job does to its databases.

Lives here: ``UnitOfWork``, what it gives out, and when its end and its callbacks happen.
Must not know: ASGI, HTTP statuses, how a database is configured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any, cast

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from asgi_sqla.callbacks import Callback, Callbacks, Moment, call_now, check_callback, run, run_async
from asgi_sqla.context import current, inherited
from asgi_sqla.ending import Ending
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.guard import GuardedSession, ended
from asgi_sqla.sessions import NONE, Manner, Sessions, Source
from asgi_sqla.shielding import to_completion
from asgi_sqla.steps import Running, Step, here, run_without_blocking


class UnitOfWork:
    """Everything one request, one socket message or one job does to its databases.

    Get the running one with ``current_unit()``; the middleware and ``session_scope()`` make them.
    It holds at most one ``Session`` and one ``AsyncSession`` per ``Database``, ends in commit or
    rollback, and is then closed for good.
    """

    # Defaults of the class, so that a unit nobody uses costs next to nothing to make.
    attempt = 1
    """How many times this request or function has been begun, itself counted."""
    awaits = True
    """Whether its end is awaited; a unit that ends inline has no AsyncSessions."""
    isolation_level: str | None = None
    """The isolation level of its transactions, None for the engine's own."""
    sessions: Sessions = NONE
    """Its sessions, for the rooms that end it."""
    _callbacks: Callbacks | None = None
    _begin_hooks: tuple[Callable[[Connection], object], ...] = ()
    used: bool = False
    """Whether any session was made, or any callback registered."""
    ended: bool = False
    """Whether it is over, and its sessions closed for good."""
    committed_within = False
    """Whether a scope opened inside it, a unit of its own, has committed."""
    _name = "without a name"
    _read_only = False
    _rollback_only = False
    _doom: BaseException | None = None

    @property
    def name(self) -> str:
        """What it is called in errors and logs."""
        return self._name

    @property
    def read_only(self) -> bool:
        """Whether it refuses writes, and reads in autocommit."""
        return self._read_only

    def __repr__(self) -> str:
        return f"<UnitOfWork {self.name} {'ended' if self.ended else 'open'}>"

    def rollback_only(self) -> None:
        """Have the unit roll back whatever the response status, as for a dry run. It is no error."""
        self._rollback_only = True

    def on_commit(self, callback: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Call ``callback(*args, **kwargs)`` once every database of the unit has committed.

        Callbacks are called in order, before the response leaves, each in a scope of its own, so that
        it may use the database. A plain function runs where it was registered, on the event loop or
        in a worker thread; what an async one returns is awaited. One registered inside a savepoint
        that is rolled back is dropped. An exception is logged, and the next one called.

        Raises ConfigurationError for an async callback in a unit that has no event loop.
        """
        self._add_callback("commit", callback, args, kwargs)

    def on_rollback(self, callback: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Call ``callback``, as ``on_commit`` does, once the unit, or the savepoint it is in, was rolled back."""
        self._add_callback("rollback", callback, args, kwargs)

    def on_begin(self, hook: Callable[[Connection], object]) -> None:
        """Call ``hook(connection)`` at the begin of every transaction of the unit, as for ``SET LOCAL``.

        ``connection`` is a sync ``Connection``, under an ``AsyncSession`` too. It is called again after
        a commit the application made in the middle.

        Raises ConfigurationError once a transaction has begun, for that one would go without.
        """
        if self.sessions.in_transaction or (self.sessions is not NONE and self._manner().role == "read"):
            raise ConfigurationError(
                f"hook={hook!r} comes too late for a transaction of {self}; register it before the first query, "
                "and give a read-only scope an isolation_level="
            )
        self._begin_hooks = (*self._begin_hooks, hook)

    def doom(self, cause: BaseException) -> None:
        """Make it an error to commit this unit, because ``cause`` left a scope that had joined it."""
        self._doom = self._doom or cause

    def session(self, source: Source, **options: Any) -> Session:
        """Return this unit's ``Session`` of ``source``, made on first use with ``options``."""
        return self._open_sessions().sync(source, self._manner, options)

    def async_session(self, source: Source, **options: Any) -> AsyncSession:
        """Return this unit's ``AsyncSession`` of ``source``, made on first use with ``options``.

        Raises WrongEventLoopError on any event loop but the unit's own.
        """
        return self._open_sessions().asynchronous(source, self._manner, options)

    async def settle(self, commit: bool) -> None:
        """Commit, or roll back, every open transaction; the sessions stay usable.

        All commit in the order of first use. If one cannot, it and those after it are rolled back, and its exception
        is raised, with a note of what had been committed. Callbacks are called. A cancellation waits.
        """
        if self._has_work():
            await self._run(self._ending(commit).settle, commit, whole=self.sessions.writes)

    async def close(self, commit: bool, cause: BaseException | None = None) -> None:
        """Settle, then close every session for good. ``cause`` is the exception the unit ends with."""
        self.ended = True
        ending = self._ending(commit)
        if self._has_work():
            await self._run(lambda step: ending.close(cause, step), commit, whole=True)
        else:
            ending.close(cause, here)

    def close_now(self, commit: bool, cause: BaseException | None = None) -> None:
        """Do what ``close`` does, in this thread; for a unit without an event loop."""
        committed = False
        self.ended = True
        try:
            self._ending(commit).close(cause, here)
            committed = commit and not self._rollback_only
        finally:
            for callback in self._due(committed):
                run(callback, Job(f"{callback} of {self.name}", awaits=False))

    def _run(self, end: Callable[[Step], None], commit: bool, *, whole: bool) -> Awaitable[None]:
        running = run_without_blocking(end, self.sessions.works)
        if self._callbacks is not None:
            return to_completion(self._run_and_call(running, commit))
        if whole or isinstance(running, Future):
            return to_completion(running)
        return running  # what only read may be cancelled

    async def _run_and_call(self, running: Running, commit: bool) -> None:
        committed = False
        try:
            await (asyncio.wrap_future(running) if isinstance(running, Future) else running)
            committed = commit and not self._rollback_only
        finally:
            for callback in self._due(committed):
                await run_async(callback, Job(f"{callback} of {self.name}", awaits=True))

    def _has_work(self) -> bool:
        return self._doom is not None or self._callbacks is not None or self.sessions.in_transaction

    def _ending(self, commit: bool) -> Ending:
        return Ending(self, self.sessions.works, commit and not self._rollback_only, self._doom)

    def _due(self, committed: bool) -> list[Callback]:
        return [] if self._callbacks is None else self._callbacks.take(committed=committed)

    def _add_callback(
        self, moment: Moment, function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> None:
        check_callback(function, awaits=self.awaits, unit=self)
        if self.ended:
            raise ended(self)
        self.used = True
        self._callbacks = self._callbacks or Callbacks()
        self._callbacks.add(moment, function, args, kwargs, self.sessions.begun())

    def _open_sessions(self) -> Sessions:
        if self.ended:
            raise ended(self)
        self.used = True
        if self.sessions is NONE:
            # A dictionary's setdefault is atomic: of two threads that come first at once, both get the same.
            self.__dict__.setdefault("sessions", Sessions(self, awaits=self.awaits))
        return self.sessions

    def _manner(self) -> Manner:
        if not self.read_only:
            return Manner("write", self.isolation_level)
        autocommit = self.isolation_level is None and not self._begin_hooks
        return Manner("read" if autocommit else "snapshot", self.isolation_level)


class Job(UnitOfWork):
    """A unit of work outside a request: one ``session_scope()``, or one callback, and named after it."""

    def __init__(self, name: str, *, awaits: bool, read_only: bool = False) -> None:
        self._name = name
        self._read_only = read_only
        self.awaits = awaits


def current_unit() -> UnitOfWork:
    """Return the unit of work of this request, socket message or scope.

    Raises NoUnitOfWorkError outside any, and UnitOfWorkEndedError where only an ended one is known.
    """
    return cast("UnitOfWork", current())


def on_commit(callback: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Do what ``current_unit().on_commit()`` does; outside any unit, call ``callback`` at once, if it is not async."""
    unit = cast("UnitOfWork | None", inherited())
    if unit is not None:
        unit.on_commit(callback, *args, **kwargs)
        return
    check_callback(callback, awaits=False, unit="code outside any unit of work")
    call_now(callback, args, kwargs)


def _begin(session: Any, transaction: SessionTransaction, connection: Connection) -> None:
    unit: object = session.guard_unit
    if isinstance(unit, UnitOfWork) and unit._begin_hooks and not transaction.nested:
        for hook in unit._begin_hooks:
            hook(connection)


def _undo_callbacks(session: Any, rolled_back: SessionTransaction) -> None:
    unit: object = session.guard_unit
    if isinstance(unit, UnitOfWork) and unit._callbacks is not None:
        unit._callbacks.undo(rolled_back)


event.listen(GuardedSession, "after_begin", _begin)
event.listen(GuardedSession, "after_soft_rollback", _undo_callbacks)
