"""Callbacks of a unit of work: what runs after its commit, or after its rollback.

A callback belongs to the transactions and savepoints that were open when it was registered, and shares their fate. A
callback registered before any transaction belongs to the whole unit.

Holds: which callbacks are due, and how one is called.
Must not know: when a unit ends, or how the unit is made that a callback runs in.
"""

from __future__ import annotations

import inspect
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import anyio
from sqlalchemy.orm import SessionTransaction

from asgi_sqla.engine.callables import drop_awaitable, is_async, takes
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.session.guard import loop_is_running
from asgi_sqla.session.outcome import Fate, Outcome
from asgi_sqla.unit.context import enter, leave
from asgi_sqla.unit.logs import ERROR, tell

Moment: TypeAlias = Literal["commit", "rollback"]


class Callback:
    """A registered callback: a callable with its arguments, and the transactions it was registered in.

    - ``moment``: "commit" or "rollback".
    - ``function``: the callable.
    - ``args``: its positional arguments.
    - ``kwargs``: its keyword arguments.
    - ``begun``: the transactions and savepoints that were open when it was registered.
    """

    __slots__ = ("_on_loop", "args", "begun", "fate", "function", "kwargs", "moment")

    def __init__(
        self,
        moment: Moment,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        begun: Iterable[SessionTransaction],
    ) -> None:
        self.moment: Moment = moment
        self.function: Callable[..., object] = function
        self.args: tuple[object, ...] = args
        self.kwargs: Mapping[str, object] = kwargs
        self._on_loop = loop_is_running()
        self.begun: tuple[SessionTransaction, ...] = tuple(begun)
        self.fate: Fate | None = None
        """The fate of ``begun``, once it is known."""

    def __str__(self) -> str:
        return f"on_{self.moment} callback {getattr(self.function, '__qualname__', self.function)}"

    def call_now(self) -> None:
        """Call it in this thread, where nothing can be awaited."""
        call_now(self.function, self.args, self.kwargs)

    async def call(self) -> None:
        """Call it where it was registered, on the event loop or in a worker thread; await what it returns."""
        if self._on_loop or is_async(self.function):
            result = self.function(*self.args, **self.kwargs)
        else:
            result = await anyio.to_thread.run_sync(
                lambda: self.function(*self.args, **self.kwargs), limiter=anyio.CapacityLimiter(1)
            )
        if inspect.isawaitable(result):
            await result


Watch: TypeAlias = Callable[[list[Callback]], list[Callback]]


class Callbacks:
    """The callbacks of one unit, in the order of their registration."""

    __slots__ = ("_waiting",)

    watch: Watch | None = None
    """Receives the due callbacks and returns those to call; for ``asgi_sqla.testing``."""

    def __init__(self) -> None:
        self._waiting: list[Callback] = []

    def add(self, callback: Callback) -> None:
        """Register ``callback``."""
        self._waiting.append(callback)

    def note(self, fate: Fate, ended: SessionTransaction) -> None:
        """Record the fate of a transaction or savepoint, and so of everything done in it."""
        for callback in self._waiting:
            if callback.fate is None and _within(callback.begun, ended):
                callback.begun = tuple(one for one in callback.begun if not _within((one,), ended))
                if fate != "commit" or not callback.begun:  # with several databases, all must commit
                    callback.fate = fate

    def take(self, end: Fate) -> list[Callback]:
        """Return the due callbacks, once; those of work that was rolled back before the ``end`` come first."""
        waiting, self._waiting = self._waiting, []
        if end == "commit":  # a cancelled rollback() of the application fires no event
            for one in waiting:
                one.fate = one.fate or ("rollback" if one.begun else None)
        due = [one for one in waiting if one.fate == one.moment == "rollback"]
        due += [one for one in waiting if one.fate != "rollback" and (one.fate or end) == one.moment]
        return due if Callbacks.watch is None else Callbacks.watch(due)


if TYPE_CHECKING:
    from typing import Protocol

    class Scope(Protocol):
        """A unit of work that a callback is called in."""

        _kind: Literal["request", "message", "scope", "callback"]
        """What it is, for its report."""

        @property
        def name(self) -> str:
            """Its name."""
            ...

        @property
        def ended(self) -> bool:
            """Whether it has ended."""
            ...

        async def _close(self, commit: bool, cause: BaseException | None = None) -> object:
            """End it."""

        def _close_now(self, commit: bool, cause: BaseException | None = None) -> None:
            """End it in this thread."""

        def _tell_writes(self, outer: Any) -> None:
            """Count what was written in it as written in the ``outer`` unit."""

        def _empty(self) -> None:
            """Release everything."""


def run(callback: Callback, unit: Scope, outer: object) -> BaseException | None:
    """Call ``callback`` of ``outer`` in ``unit``, and return an exception that must end the process.

    Any other failure is logged, because the commit that it follows is done.
    """
    token, unit._kind = enter(unit), "callback"
    try:
        callback.call_now()
    except BaseException as exc:
        try:
            unit._close_now(commit=False, cause=exc)
        finally:
            tell(ERROR, unit, "failed", exc_info=exc)
        return _fatal(exc)
    else:
        return _close_or_log(unit)
    finally:
        unit._tell_writes(outer)
        unit._empty()
        leave(token)


def _close_or_log(unit: Scope) -> BaseException | None:
    try:
        unit._close_now(commit=True)
    except BaseException as exc:
        tell(ERROR, unit, "failed", exc_info=exc)
        return _fatal(exc)
    return None


async def run_async(callback: Callback, unit: Scope, outer: object) -> BaseException | None:
    """Call ``callback`` in ``unit``, as ``run`` does."""
    token, unit._kind = enter(unit), "callback"
    failure: BaseException | None = None
    try:
        await callback.call()
    except BaseException as exc:  # a future cancelled elsewhere raises CancelledError too
        failure = exc
    try:
        finished = await unit._close(commit=failure is None, cause=failure)
        failure = failure or getattr(finished, "failure", None)
        if failure is not None:
            tell(ERROR, unit, "failed", exc_info=failure)
    finally:
        unit._tell_writes(outer)
        unit._empty()
        leave(token)
    return _fatal(failure)


def _fatal(failure: BaseException | None) -> BaseException | None:
    """Return an exception to raise after every callback was called, such as KeyboardInterrupt or SystemExit."""
    return None if failure is None or isinstance(failure, Exception | CancelledError) else failure


def call_now(function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Call ``function``; raise ConfigurationError if it returns an awaitable."""
    result = function(*args, **kwargs)
    if drop_awaitable(result):
        raise ConfigurationError(
            f"callback={hidden(function)} returned {result!r}, but nothing awaits it; pass a plain function, or "
            "register it in a unit of work: async with session_scope()"
        )


def check_callback(function: object, *, awaits: bool, unit: object) -> None:
    """Raise ConfigurationError unless ``function`` can be called at the end of ``unit``."""
    if not callable(function):
        raise ConfigurationError(
            f"callback={hidden(function)} cannot be called; pass the function and its arguments, not its result"
        )
    if not awaits and is_async(function):
        raise ConfigurationError(
            f"callback={hidden(function)} is async, but {unit} ends where nothing can be awaited; "
            "pass a plain function, or open the scope with: async with session_scope()"
        )


def check_hook(hook: object) -> None:
    """Raise ConfigurationError unless ``hook`` is a plain function: nothing is awaited when a transaction begins."""
    if not callable(hook):
        raise ConfigurationError(f"hook={hidden(hook)} cannot be called; pass a function of the connection")
    if is_async(hook):
        raise ConfigurationError(
            f"hook={hidden(hook)} is async, but nothing awaits it when a transaction begins; pass a plain function "
            "of the Connection, which is a sync one under an AsyncSession too"
        )
    if not takes(hook, "connection"):
        raise ConfigurationError(
            f"hook={hidden(hook)} cannot be called with (connection); pass a function of the connection"
        )


def hook_too_late(hook: object, unit: object) -> ConfigurationError:
    """Return the error for a hook that is registered after a transaction of ``unit`` has begun."""
    return ConfigurationError(
        f"hook={hidden(hook)} comes too late for a transaction of {unit}; register it before the first query"
    )


def call_hook(hook: Callable[..., object], connection: object) -> None:
    """Call ``hook``; raise ConfigurationError if it returns an awaitable."""
    result = hook(connection)
    if drop_awaitable(result):
        raise ConfigurationError(
            f"hook={hidden(hook)} returned {result!r}, but nothing awaits it when a transaction begins"
        )


def fate_of(sessions: Iterable[Any], commit: bool) -> Fate:
    """Return the fate of a unit with ``sessions``, for callbacks that were registered before any transaction."""
    outcomes: list[Outcome] = [one.outcome for one in sessions]
    if any(one.in_doubt for one in outcomes):
        return "in doubt"
    kept = any(one.committed for one in outcomes) or not any(one.rolled_back for one in outcomes)
    return "commit" if commit and kept else "rollback"


def _within(begun: tuple[SessionTransaction, ...], ended: SessionTransaction) -> bool:
    """Return whether one of ``begun`` is ``ended``, or a savepoint inside it."""
    for transaction in begun:
        inside: SessionTransaction | None = transaction
        while inside is not None:
            if inside is ended:
                return True
            inside = inside.parent
    return False
