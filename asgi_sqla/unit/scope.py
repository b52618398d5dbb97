"""A unit of work outside a request, as a context manager of both kinds and as a decorator.

Holds: how a scope is entered and left, propagation, and the retries of a decorated function.
Must not know: ASGI, or how a database makes sessions.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast

import anyio
from sqlalchemy.ext.asyncio import AsyncSessionTransaction
from sqlalchemy.orm import SessionTransaction

from asgi_sqla.engine.callables import is_async
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.session.classes import A_co, S_co
from asgi_sqla.session.guard import running_loop
from asgi_sqla.session.transactions import failure_in, leave_lost
from asgi_sqla.session.transient import pause
from asgi_sqla.unit.checks import check_function
from asgi_sqla.unit.context import inherited, leave_anywhere, outside
from asgi_sqla.unit.deadline import Until, enter_until, started
from asgi_sqla.unit.logs import tell_cancelled
from asgi_sqla.unit.unit import Job, UnitOfWork
from asgi_sqla.unit.written import mark_of

if TYPE_CHECKING:
    from asgi_sqla.unit.context import Unit
    from asgi_sqla.unit.marks import Mark
    from asgi_sqla.unit.observed import Observing
    from asgi_sqla.unit.sessions import Database

P = ParamSpec("P")
R = TypeVar("R")
Propagation: TypeAlias = Literal["new", "join", "nested"]


class Arguments(NamedTuple):
    """The arguments of a ``session_scope()``, except its database."""

    propagation: Propagation
    session_options: Mapping[str, Any]
    read_only: bool
    isolation_level: str | None
    retries: int
    after: Mark | None = None
    deadline: Until = None


class SessionScope(Generic[S_co, A_co]):
    """What ``session_scope()`` returns: use it in ``with``, in ``async with``, or as a decorator."""

    __slots__ = ("_arguments", "_attempt", "_database", "_following", "_name", "_savepoint", "_token", "_unit")

    def __init__(
        self, database: Database[S_co, A_co], arguments: Arguments, name: str = "session_scope()", attempt: int = 0
    ) -> None:
        self._database = database
        self._arguments = arguments
        self._name = name
        self._attempt = attempt
        self._following: Observing | None = None
        self._unit: UnitOfWork | None = None
        self._token: Token[Unit | None] | None = None
        self._savepoint: SessionTransaction | AsyncSessionTransaction | None = None

    def __enter__(self) -> S_co:
        unit = self._open(awaits=False)
        try:
            session = self._database._session_of(unit, self._arguments.session_options)
            if self._arguments.propagation == "nested" and self._token is None:
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
                unit._close_now(exc is None, exc)
            elif self._savepoint is not None:
                savepoint = cast("SessionTransaction", self._savepoint)
                failure = failure_in(savepoint)
                savepoint.__exit__(kind, exc, traceback)
                leave_lost(savepoint, failure, exc)
            elif exc is not None:
                unit._doomed_by(exc)
        finally:
            self._undo()

    async def __aenter__(self) -> A_co:
        unit = self._open(awaits=True)
        try:
            session = self._database._async_session_of(unit, self._arguments.session_options)
            if self._arguments.propagation == "nested" and self._token is None:
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
            if kind is GeneratorExit and running_loop() is None:  # the event loop is gone: nothing can be awaited
                unit._abandon()
            elif self._token is not None:
                finished = await unit._close(exc is None, exc)
                tell_cancelled(unit, finished.cancelled)
                finished.check()
            elif self._savepoint is not None:
                async_savepoint = cast("AsyncSessionTransaction", self._savepoint)
                inner = async_savepoint.sync_transaction
                failure = failure_in(inner)
                await async_savepoint.__aexit__(kind, exc, traceback)
                leave_lost(inner, failure, exc)
            elif exc is not None:
                unit._doomed_by(exc)
        finally:
            self._undo()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return ``function`` so that each call of it runs in a scope of its own.

        - ``function``: a plain or async function, but not a generator.

        Raises ConfigurationError for a generator function, and for what is not callable.
        """
        check_function(function)
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
        attempt, scope, until = 1, None, started(self._arguments.deadline)
        while True:
            scope = self._of(function, attempt, until, scope)
            try:
                with scope:
                    result = function(*args, **kwargs)
                    if inspect.iscoroutine(result):
                        result.close()
                        raise ConfigurationError(
                            f"@session_scope() on {function!r}, a plain function that returned a coroutine: it would "
                            "run after its scope; write async def, or put the decorator below the one that hides it"
                        )
                    return result
            except Exception as exc:
                time.sleep(scope._pause_after(exc))
            finally:
                scope._forget()
            attempt += 1

    async def _call_async(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        attempt, scope, until = 1, None, started(self._arguments.deadline)
        while True:
            scope = self._of(function, attempt, until, scope)
            try:
                async with scope:
                    return await function(*args, **kwargs)
            except Exception as exc:
                await anyio.sleep(scope._pause_after(exc))
            finally:
                scope._forget()
            attempt += 1

    def _of(
        self, function: Callable[..., Any], attempt: int, until: Until, last: SessionScope[S_co, A_co] | None
    ) -> SessionScope[S_co, A_co]:
        name = getattr(function, "__qualname__", repr(function))
        made = SessionScope(self._database, self._arguments._replace(deadline=until), name, attempt)
        made._following = None if last is None else last._following
        return made

    def _pause_after(self, failure: Exception) -> float:
        """Return the seconds to wait before the next attempt, or raise ``failure`` after the last."""
        from asgi_sqla.unit.fences import may_retry, tell_retried  # only a call that failed pays for it

        kind = may_retry(cast("UnitOfWork", self._unit), failure) if self._attempt <= self._arguments.retries else None
        if kind is None:
            raise failure
        self._following = tell_retried(cast("UnitOfWork", self._unit), failure)
        return pause(self._attempt, kind)

    def _open(self, *, awaits: bool) -> UnitOfWork:
        """Return the current unit to join, or enter a new one."""
        arguments = self._arguments
        if self._token is not None or self._savepoint is not None:
            raise ConfigurationError(
                "this session_scope() is open already; call session_scope() again for a second one"
            )
        if arguments.retries and not self._attempt:
            raise ConfigurationError(
                f"retries={arguments.retries} cannot run a with block again; "
                "write a function and decorate it: @session_scope(retries=...)"
            )
        if arguments.isolation_level is not None:  # once more, as the global db may have been configured meanwhile
            from asgi_sqla.engine.isolation import checked_isolation_level

            checked_isolation_level(arguments.isolation_level, self._database._dialect())
        unit = None if arguments.propagation == "new" else cast("UnitOfWork | None", inherited())
        if unit is None:
            unit = Job(self._name, awaits=awaits, read_only=arguments.read_only, after=mark_of(arguments))
            unit.isolation_level, unit.attempt, unit._outer = arguments.isolation_level, self._attempt or 1, inherited()
            if self._following is not None:
                self._following.attach(unit)
            self._token = enter_until(unit, arguments.deadline)
        self._unit = unit
        return unit

    def _undo(self) -> None:
        """Restore the context as it was before."""
        token, self._token, self._savepoint = self._token, None, None
        if token is not None:
            unit = cast("UnitOfWork", self._unit)
            if (outer := token.old_value) is not None and outer is not Token.MISSING:
                unit._tell(outside(token))
            leave_anywhere(token)
            if not self._attempt:
                unit._empty()

    def _forget(self) -> None:
        """Release what the unit of a decorated call still holds."""
        if self._unit is not None and self._unit.ended:
            self._unit._empty()
