"""The one ContextVar: which unit of work is the current one here.

Lives here: entering, leaving, asking.
Must not know: what a unit does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, Protocol

from asgi_sqla.errors import NoUnitOfWorkError
from asgi_sqla.guard import OWN_SCOPE, ended


class Unit(Protocol):
    """All that is known of a unit here."""

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        ...


_current: ContextVar[Unit | None] = ContextVar("asgi_sqla_unit", default=None)


enter: Callable[[Unit | None], Token[Unit | None]] = _current.set
"""Make a unit the current one; the token returned undoes it. (The bound method itself: each request calls it.)"""
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
        raise NoUnitOfWorkError(
            "no unit of work here; wrap the application in SQLAlchemyMiddleware(app, database), or outside "
            f"a request open one: with session_scope() as session: ..., {OWN_SCOPE}"
        )
    if unit.ended:
        raise ended(unit)
    return unit


def _forget_after_fork() -> None:
    # The parent's unit holds the parent's connections.
    _current.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
