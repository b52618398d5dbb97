"""The one ContextVar: which unit of work is current.

Holds: how to enter and leave a unit, how to find it, and why there is none.
Must not know: what a unit does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

from asgi_sqla.errors import OWN_SCOPE, NoUnitOfWorkError, ended
from asgi_sqla.session.guard import loop_is_running

if TYPE_CHECKING:
    from typing import Protocol

    class Unit(Protocol):
        """The part of a unit that this room knows."""

        @property
        def ended(self) -> bool:
            """Whether it has ended."""
            ...


class StandIn:
    """What is current for a unit that nobody has asked for; it makes the unit for who does."""

    __slots__ = ()

    _made: Any = None
    """The unit, if it has been made; None in a unit too."""
    _stage: Any = None
    """No stage of a unit: who finds a stand-in asks for the unit."""

    def unit(self) -> Unit:
        """Return the unit, made by the first call."""
        raise NotImplementedError


_current: ContextVar[Unit | StandIn | None] = ContextVar("asgi_sqla_unit", default=None)
_middlewares = 0


enter: Callable[[Unit | StandIn | None], Token[Any]] = _current.set
"""Make a unit or its stand-in current, and return what undoes it. (The bound method itself: each request calls it.)"""
lookup: Callable[[], Any] = _current.get
"""Return the unit of this context, open or ended, or its stand-in. (The bound method itself, as above.)"""
leave: Callable[[Token[Any]], None] = _current.reset
"""Undo ``enter`` with its token, in the same context."""


def leave_anywhere(token: Token[Any]) -> None:
    """Undo ``enter``; do nothing in a copy of the context that was entered, where it cannot be undone."""
    try:
        _current.reset(token)
    except ValueError:
        return


def inherited() -> Unit | None:
    """Return the unit of this context if there is an open one, else None."""
    return _open(_current.get())


def current(hint: str = "") -> Any:
    """Return the unit of this context, or raise the error that says what to write; ``hint`` ends it."""
    unit = unit_of(_current.get())
    if unit is None:
        raise NoUnitOfWorkError(f"no unit of work: {_cause()}{hint}")
    if unit.ended:
        raise ended(unit)
    return unit


def injected() -> Any:
    """Return what ``current`` returns, for a session that a framework or a worker injects."""
    return current(
        " (a session is injected before the function that receives it is called, so session_scope() as a decorator "
        "of that function comes too late: open it in the dependency, and yield its session)"
    )


def outside(token: Token[Any]) -> Unit | None:
    """Return the unit around the one that ``token`` undoes, if there is an open one, else None."""
    found = token.old_value
    return None if found is Token.MISSING else _open(found)


def unit_of(found: Any) -> Any:
    """Return what was found, or its unit if it is a stand-in."""
    return found.unit() if isinstance(found, StandIn) else found


def _open(found: Unit | StandIn | None) -> Unit | None:
    unit = unit_of(found)
    return None if unit is None or unit.ended else unit


def note_middleware() -> None:
    """Record that a middleware exists, for the error message outside it."""
    global _middlewares
    _middlewares += 1


def _cause() -> str:
    """Return the likely reason why there is no unit, and what to write."""
    scope = f"outside a request, open one: with session_scope() as session: ..., {OWN_SCOPE}"
    thread = threading.current_thread()
    copied = type(thread).__module__.startswith("anyio.")  # where frameworks run plain functions
    if thread is not threading.main_thread() and not copied and not loop_is_running():
        return (
            "this thread has no copy of the request's context: loop.run_in_executor(), ThreadPoolExecutor and "
            "threading.Thread do not copy it; write await asyncio.to_thread(...), or pass "
            f"contextvars.copy_context().run, or {scope}"
        )
    if _middlewares:
        return (
            "there is a SQLAlchemyMiddleware, but not around this code: it was added inside this middleware or error "
            "handler, or the application is served without it. Add it as the outermost middleware, and serve what "
            f"it returns; or {scope}"
        )
    return f"wrap the application in SQLAlchemyMiddleware(app, database), or {scope}"


def _forget_after_fork() -> None:
    # The parent's unit holds the parent's connections.
    _current.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
