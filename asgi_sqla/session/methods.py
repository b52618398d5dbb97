"""The methods of a guarded session: SQLAlchemy's own, each behind the guard.

Holds: what a call does before and after the method of SQLAlchemy.
Must not know: which methods there are, or who is let in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy.orm import Session

from asgi_sqla.session.guard import GuardedSession, current_user


def guarding(name: str, base: type[Session]) -> Callable[..., Any]:
    """Return a method that may talk to the database: one user at a time, and none after the end."""
    method: Callable[..., Any] = getattr(base, name)

    @functools.wraps(method)
    def call(self: GuardedSession, *args: Any, **kwargs: Any) -> Any:
        # In no variable, which a traceback would keep: greenlet frees that of a thread's end under the collector.
        outermost = getcurrent() is not self._guard_inside and self._guard_enter()
        try:
            return method(self, *args, **kwargs)
        except Exception as exc:
            self.guard_outcome.note_unconnected(exc)
            raise
        finally:
            if outermost:
                self._guard_leave()

    return call


def unless_over(close: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``close()`` that does nothing after the end."""

    @functools.wraps(close)
    def call(self: GuardedSession) -> None:
        if not self._guard_over:  # a closed session may be closed again, from any thread or event loop
            close(self)

    return call


def refusing(name: str, base: type[Session]) -> Callable[..., Any]:
    """Return a method that only changes the session, and that raises after its end."""
    method: Callable[..., Any] = getattr(base, name)

    @functools.wraps(method)
    def call(self: GuardedSession, *args: Any, **kwargs: Any) -> Any:
        if self._guard_end is not None:
            self._guard_refuse_if_ended()
        if self.guard_users is not None:
            self.guard_users.add(current_user())
        return method(self, *args, **kwargs)

    return call
