"""``session_scope()``: a unit of work outside a request, for workers, scripts and tests.

Lives here: the context manager in both kinds, the decorator, and propagation.
Must not know: ASGI.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable, Mapping
from contextvars import Token
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

import anyio
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction
from sqlalchemy.orm import Session, SessionTransaction

from asgi_sqla.callbacks import is_async
from asgi_sqla.context import Unit, enter, inherited, leave_anywhere
from asgi_sqla.database import Database, db
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.terms import Propagation, Terms
from asgi_sqla.transient import may_be_repeated, pause
from asgi_sqla.unit import Job, UnitOfWork

logger: logging.Logger = logging.getLogger("asgi_sqla")

P = ParamSpec("P")
R = TypeVar("R")


def session_scope(
    database: Database | None = None,
    *,
    propagation: Propagation = "new",
    session_options: Mapping[str, Any] | None = None,
    read_only: bool = False,
    isolation_level: str | None = None,
    retries: int = 0,
) -> SessionScope:
    """Open a unit of work outside a request; it commits on leaving, or rolls back if an exception leaves.

    ``with`` gives a ``Session``, ``async with`` an ``AsyncSession``; on ``def`` and ``async def``
    functions it is a decorator, and each call is a scope. ``database`` is the global ``db`` if left
    out. A COMMIT that fails raises what the driver raised.

    ``propagation`` is "new" (a unit of its own: its connection, its transaction), "join" (the current
    unit, which alone commits; an exception that leaves the scope makes committing that unit an
    error) or "nested" (a SAVEPOINT in the current unit). Without a current unit all three are "new".
    ``session_options`` are added to the database's, for this scope's session. ``read_only`` refuses
    writes and reads in autocommit; ``isolation_level`` is SQLAlchemy's, and with ``read_only`` makes it
    one transaction. ``retries`` is how often a decorated function is called again that a passing
    failure of the database stopped before its commit.

    Raises ConfigurationError for wrong arguments, at once.
    """
    terms = Terms(propagation, dict(session_options or {}), read_only, isolation_level, retries)
    if not isinstance(database, Database | None):
        raise ConfigurationError(
            f"database={database!r} is no Database; write session_scope(Database(...)), and as a "
            "decorator @session_scope() with its parentheses"
        )
    terms.check()
    return SessionScope(database or db, terms)


class SessionScope:
    """What ``session_scope()`` returns: for ``with``, ``async with``, or as a decorator."""

    __slots__ = ("_attempt", "_database", "_name", "_savepoint", "_terms", "_token", "_unit")

    def __init__(self, database: Database, terms: Terms, name: str = "session_scope()", attempt: int = 0) -> None:
        self._database = database
        self._terms = terms
        self._name = name
        self._attempt = attempt
        self._unit: UnitOfWork | None = None
        self._token: Token[Unit | None] | None = None
        self._savepoint: SessionTransaction | AsyncSessionTransaction | None = None

    def __enter__(self) -> Session:
        unit = self._open(awaits=False)
        try:
            session = unit.session(self._database, **self._terms.session_options)
            if self._nested:
                self._savepoint = session.begin_nested()
        except BaseException:
            self._undo()
            raise
        return session

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        unit = cast("UnitOfWork", self._unit)
        try:
            if self._token is not None:
                unit.close_now(exc is None, exc)
            elif self._savepoint is not None:
                cast("SessionTransaction", self._savepoint).__exit__(kind, exc, traceback)
            elif exc is not None:
                unit.doom(exc)
        finally:
            self._undo()

    async def __aenter__(self) -> AsyncSession:
        unit = self._open(awaits=True)
        try:
            session = unit.async_session(self._database, **self._terms.session_options)
            if self._nested:
                self._savepoint = await session.begin_nested()
        except BaseException:
            self._undo()
            raise
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        unit = cast("UnitOfWork", self._unit)
        try:
            if self._token is not None:
                await unit.close(exc is None, exc)
            elif self._savepoint is not None:
                await cast("AsyncSessionTransaction", self._savepoint).__aexit__(kind, exc, traceback)
            elif exc is not None:
                unit.doom(exc)
        finally:
            self._undo()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return ``function`` with each call of it in a scope of its own."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                f"@session_scope() on the generator {function!r}: a generator runs when it is "
                "consumed, which nobody can scope; write the with statement inside it"
            )
        if is_async(function):

            @functools.wraps(function)
            async def scoped_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                return await self._call_async(function, args, kwargs)

            return cast("Callable[P, R]", scoped_async)

        @functools.wraps(function)
        def scoped(*args: P.args, **kwargs: P.kwargs) -> R:
            return self._call(function, args, kwargs)

        return scoped

    def _call(self, function: Callable[..., R], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> R:
        attempt = 1
        while True:
            scope = self._of(function, attempt)
            try:
                with scope:
                    return function(*args, **kwargs)
            except Exception as exc:
                time.sleep(scope._pause_after(exc))
            attempt += 1

    async def _call_async(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        attempt = 1
        while True:
            scope = self._of(function, attempt)
            try:
                async with scope:
                    return await function(*args, **kwargs)
            except Exception as exc:
                await anyio.sleep(scope._pause_after(exc))
            attempt += 1

    def _of(self, function: Callable[..., Any], attempt: int) -> SessionScope:
        return SessionScope(self._database, self._terms, getattr(function, "__qualname__", repr(function)), attempt)

    def _pause_after(self, failure: Exception) -> float:
        """Return the seconds to wait before the next attempt, or raise ``failure`` if it was the last."""
        unit = cast("UnitOfWork", self._unit)
        fenced = unit.committed_within or unit.sessions.has_committed
        if fenced or self._attempt > self._terms.retries or not may_be_repeated((failure, *unit.sessions.failures())):
            raise failure
        logger.info("%s: attempt %d is begun again after %r", self._name, self._attempt, failure)
        return pause(self._attempt)

    @property
    def _nested(self) -> bool:
        return self._terms.propagation == "nested" and self._token is None

    def _open(self, *, awaits: bool) -> UnitOfWork:
        """Return the current unit to join, or enter a new one."""
        if self._token is not None or self._savepoint is not None:
            raise ConfigurationError(
                "this session_scope() is open already; call session_scope() again for a second one"
            )
        if self._terms.retries and not self._attempt:
            raise ConfigurationError(
                f"retries={self._terms.retries} cannot run a with block again; "
                "write a function and decorate it: @session_scope(retries=...)"
            )
        unit = None if self._terms.propagation == "new" else cast("UnitOfWork | None", inherited())
        if unit is None:
            unit = Job(self._name, awaits=awaits, read_only=self._terms.read_only)
            unit.isolation_level = self._terms.isolation_level
            unit.attempt = self._attempt or 1
            self._token = enter(unit)
        self._unit = unit
        return unit

    def _undo(self) -> None:
        """Leave the context as it was before."""
        token = self._token
        self._token = self._savepoint = None
        if token is not None:
            _tell(token.old_value, cast("UnitOfWork", self._unit))
            leave_anywhere(token)


def _tell(outer: object, unit: UnitOfWork) -> None:
    """Have the unit around this one know of what cannot be undone any more, and so must not be done again."""
    written = unit.sessions.has_committed and not unit.read_only
    if isinstance(outer, UnitOfWork) and (written or unit.committed_within):
        outer.committed_within = True
