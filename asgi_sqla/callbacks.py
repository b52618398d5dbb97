"""Callbacks of a unit of work: what is called after its commit, or after its rollback.

Lives here: which callbacks are due, with savepoints taken into account, and how one is called.
Must not know: when a unit ends, or how the one is made that a callback runs in.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, Protocol, TypeAlias

import anyio
from sqlalchemy.orm import SessionTransaction

from asgi_sqla.context import enter, leave
from asgi_sqla.errors import ConfigurationError

logger: logging.Logger = logging.getLogger("asgi_sqla")

Moment: TypeAlias = Literal["commit", "rollback"]


class Callback(NamedTuple):
    """One callable with its arguments, and where and under which transactions it was registered."""

    moment: Moment
    function: Callable[..., object]
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    begun: tuple[SessionTransaction, ...]
    on_loop: bool

    def __str__(self) -> str:
        return f"on_{self.moment} callback {getattr(self.function, '__qualname__', self.function)}"

    def call_now(self) -> None:
        """Call it here, where nothing can be awaited."""
        call_now(self.function, self.args, self.kwargs)

    async def call(self) -> None:
        """Call it where it was registered: on the event loop, or in a worker thread; await what it returns."""
        if self.on_loop or is_async(self.function):
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

    __slots__ = ("_undone", "_waiting")

    watch: Watch | None = None
    """Is shown what is due, and returns what is to be called; for ``asgi_sqla.testing``."""

    def __init__(self) -> None:
        self._waiting: list[Callback] = []
        self._undone: list[Callback] = []

    def add(
        self,
        moment: Moment,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        begun: Iterable[SessionTransaction],
    ) -> None:
        """Register ``function``, dependent on the transactions begun so far."""
        self._waiting.append(Callback(moment, function, args, kwargs, tuple(begun), _loop_is_running()))

    def undo(self, rolled_back: SessionTransaction) -> None:
        """Take note that a transaction or savepoint was rolled back, and all that was done in it."""
        undone = [callback for callback in self._waiting if _within(callback.begun, rolled_back)]
        self._undone += undone
        self._waiting = [callback for callback in self._waiting if callback not in undone]

    def take(self, *, committed: bool) -> list[Callback]:
        """Return the callbacks that are due, once: of a savepoint that was rolled back, on_rollback ones only."""
        waiting, undone = self._waiting, self._undone
        self._waiting, self._undone = [], []
        moment = "commit" if committed else "rollback"
        due = [one for one in undone if one.moment == "rollback"] + [one for one in waiting if one.moment == moment]
        return due if Callbacks.watch is None else Callbacks.watch(due)


class Scope(Protocol):
    """A unit of work that a callback is called in."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        ...

    async def close(self, commit: bool, cause: BaseException | None = None) -> None:
        """End it."""

    def close_now(self, commit: bool, cause: BaseException | None = None) -> None:
        """End it in this thread."""
        ...


def run(callback: Callback, unit: Scope) -> None:
    """Call ``callback`` in ``unit``; a failure is logged, for what it follows is done."""
    token = enter(unit)
    try:
        callback.call_now()
        unit.close_now(commit=True)
    except Exception as exc:
        logger.exception("%s failed", unit.name)
        unit.close_now(commit=False, cause=exc)
    finally:
        leave(token)


async def run_async(callback: Callback, unit: Scope) -> None:
    """Call ``callback`` in ``unit``; a failure is logged, for what it follows is done."""
    token = enter(unit)
    try:
        await callback.call()
        await unit.close(commit=True)
    except Exception as exc:
        logger.exception("%s failed", unit.name)
        await unit.close(commit=False, cause=exc)
    finally:
        leave(token)


def call_now(function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Call ``function``; what it returns must not have to be awaited, or ConfigurationError is raised."""
    result = function(*args, **kwargs)
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise ConfigurationError(f"callback={function!r} returned {result!r}, which nobody can await here")


def is_async(function: Callable[..., object]) -> bool:
    """Whether calling ``function`` gives something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def check_callback(function: object, *, awaits: bool, unit: object) -> None:
    """Raise ConfigurationError unless ``function`` can be called at the end of ``unit``."""
    if not callable(function):
        raise ConfigurationError(
            f"callback={function!r} cannot be called; pass the function and its arguments, not its result"
        )
    if not awaits and is_async(function):
        raise ConfigurationError(
            f"callback={function!r} is async, and {unit} ends where nothing can be awaited; "
            "pass a plain function, or open the scope with: async with session_scope()"
        )


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _within(begun: tuple[SessionTransaction, ...], rolled_back: SessionTransaction) -> bool:
    """Whether one of ``begun`` is ``rolled_back``, or a savepoint inside it."""
    for transaction in begun:
        inside: SessionTransaction | None = transaction
        while inside is not None:
            if inside is rolled_back:
                return True
            inside = inside.parent
    return False
