"""The one ContextVar: which unit of work is the current one.

Holds: entering, leaving, asking, and why there is none.
Must not know: what a unit does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, Protocol

from asgi_sqla.errors import OWN_SCOPE, NoUnitOfWorkError, ended
from asgi_sqla.session.guard import loop_is_running


class Unit(Protocol):
    """All that is known of a unit in this room."""

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        ...


_current: ContextVar[Unit | None] = ContextVar("asgi_sqla_unit", default=None)
_middlewares = 0


enter: Callable[[Unit | None], Token[Unit | None]] = _current.set
"""Make a unit the current one; the token returned undoes it. (The bound method itself: each request calls it.)"""
lookup: Callable[[], Unit | None] = _current.get
"""Return the unit of this context, whether it is open or over. (The bound method itself, as above.)"""
leave: Callable[[Token[Unit | None]], None] = _current.reset
"""Undo ``enter`` with its token, in the same context."""


def leave_anywhere(token: Token[Unit | None]) -> None:
    """Undo ``enter``; in a copy of the context entered, where nothing can be undone, do nothing."""
    try:
        _current.reset(token)
    except ValueError:
        return


def inherited() -> Unit | None:
    """Return the unit of this context, if there is one and it is open."""
    unit = _current.get()
    return None if unit is None or unit.ended else unit


def current() -> Any:
    """Return the unit of this context, or raise the error that says what to write."""
    unit = _current.get()
    if unit is None:
        raise NoUnitOfWorkError(f"no unit of work: {_cause()}")
    if unit.ended:
        raise ended(unit)
    return unit


def outside(token: Token[Unit | None]) -> Unit | None:
    """Return the unit around the one that ``token`` undoes, if there is one and it is open."""
    unit = token.old_value
    return None if unit is Token.MISSING or unit is None or unit.ended else unit


def note_middleware() -> None:
    """Take note that there is a middleware, for the message of whoever asks outside it."""
    global _middlewares
    _middlewares += 1


def _cause() -> str:
    """Return why there is none, as far as that can be told, and what to write."""
    scope = f"outside a request, open one: with session_scope() as session: ..., {OWN_SCOPE}"
    thread = threading.current_thread()
    copied = type(thread).__module__.startswith("anyio.")  # where frameworks run plain functions
    if thread is not threading.main_thread() and not copied and not loop_is_running():
        return (
            "this thread got no copy of the request's context, as loop.run_in_executor() and threads of one's own do "
            f"not copy it; write await asyncio.to_thread(...), or {scope}"
        )
    if _middlewares:
        return (
            "there is a SQLAlchemyMiddleware, but not around this code: it may be added inside this middleware or "
            "error handler, or the application may be served without it; add it outermost, and serve what it "
            f"returns. Or {scope}"
        )
    return f"wrap the application in SQLAlchemyMiddleware(app, database), or {scope}"


def _forget_after_fork() -> None:
    # The parent's unit holds the parent's connections.
    _current.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
