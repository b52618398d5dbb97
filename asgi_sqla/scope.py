"""``session_scope()``: a unit of work outside a request, for workers, scripts and tests.

Lives here: the context manager in both kinds, the decorator, and propagation.
Must not know: ASGI.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import Token
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, cast

from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction
from sqlalchemy.orm import Session, SessionTransaction

from asgi_sqla.callbacks import is_async
from asgi_sqla.context import Unit, enter, leave
from asgi_sqla.database import Database, db
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.unit import Job, UnitOfWork, inherited_unit

P = ParamSpec("P")
R = TypeVar("R")
Propagation: TypeAlias = Literal["new", "join", "nested"]
_FIXED = frozenset(("bind", "class_", "close_resets_only", "sync_session_class"))


def session_scope(
    database: Database | None = None,
    *,
    propagation: Propagation = "new",
    session_options: Mapping[str, Any] | None = None,
) -> SessionScope:
    """Open a unit of work outside a request; it commits on leaving, or rolls back if an exception leaves.

    ``with`` gives a ``Session``, ``async with`` an ``AsyncSession``; on ``def`` and ``async def``
    functions it is a decorator, and each call is a scope. ``database`` is the global ``db`` if left
    out. A COMMIT that fails raises what the driver raised.

    ``propagation`` is "new" (a unit of its own: its connection, its transaction), "join" (the current
    unit, which alone commits; an exception that leaves the scope makes committing that unit an
    error) or "nested" (a SAVEPOINT in the current unit). Without a current unit all three are "new".
    ``session_options`` are added to the database's, for this scope's session.

    Raises ConfigurationError for wrong arguments, at once.
    """
    if not isinstance(database, Database | None):
        raise ConfigurationError(
            f"database={database!r} is no Database; write session_scope(Database(...)), and as a "
            "decorator @session_scope() with its parentheses"
        )
    if propagation not in ("new", "join", "nested"):
        raise ConfigurationError(f'propagation={propagation!r} is none of "new", "join" and "nested"')
    if session_options is not None and propagation != "new":
        raise ConfigurationError(
            f'session_options={session_options!r} need a session of the scope\'s own; write propagation="new"'
        )
    if fixed := _FIXED.intersection(session_options or ()):
        raise ConfigurationError(
            f"session_options: {min(fixed)}= is not for one scope; give it to Database(session_options=...)"
        )
    return SessionScope(database or db, propagation, dict(session_options or {}))


class SessionScope:
    """What ``session_scope()`` returns: for ``with``, ``async with``, or as a decorator."""

    __slots__ = ("_database", "_name", "_options", "_propagation", "_savepoint", "_token", "_unit")

    def __init__(
        self, database: Database, propagation: Propagation, options: dict[str, Any], name: str = "session_scope()"
    ) -> None:
        self._database = database
        self._propagation: Propagation = propagation
        self._options = options
        self._name = name
        self._unit: UnitOfWork | None = None
        self._token: Token[Unit | None] | None = None
        self._savepoint: SessionTransaction | AsyncSessionTransaction | None = None

    def __enter__(self) -> Session:
        unit = self._open(None)
        try:
            session = unit.session(self._database, **self._options)
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
        unit = self._open(asyncio.get_running_loop())
        try:
            session = unit.async_session(self._database, **self._options)
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
                async with self._of(function):
                    return await cast("Any", function(*args, **kwargs))

            return cast("Callable[P, R]", scoped_async)

        @functools.wraps(function)
        def scoped(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._of(function):
                return function(*args, **kwargs)

        return scoped

    def _of(self, function: Callable[..., Any]) -> SessionScope:
        name = getattr(function, "__qualname__", repr(function))
        return SessionScope(self._database, self._propagation, self._options, name)

    @property
    def _nested(self) -> bool:
        return self._propagation == "nested" and self._token is None

    def _open(self, loop: asyncio.AbstractEventLoop | None) -> UnitOfWork:
        """Return the current unit to join, or enter a new one."""
        if self._unit is not None:
            raise ConfigurationError(
                "this session_scope() is open already; call session_scope() again for a second one"
            )
        unit = None if self._propagation == "new" else inherited_unit()
        if unit is None:
            unit = Job(self._name, loop)
            self._token = enter(unit)
        self._unit = unit
        return unit

    def _undo(self) -> None:
        """Leave the context as it was before."""
        token = self._token
        self._unit = self._token = self._savepoint = None
        if token is not None:
            leave(token)
