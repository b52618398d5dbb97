"""A deadline: the moment after which a unit of work sends no more statements.

Holds: how much time is left, what is raised when none is, and who is asked for the deadline of the running code.
Must not know: units, sessions, or how a database is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeGuard

from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError, DeadlineExceededError


class Deadline:
    """A moment on the monotonic clock, ``seconds`` after it was made."""

    __slots__ = ("at", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds: float = seconds
        self.at: float = monotonic() + seconds

    @property
    def left(self) -> float:
        """How many seconds are left; not above 0 if it is over."""
        return self.at - monotonic()

    def exceeded(self, what: str) -> DeadlineExceededError:
        """Return the error that says ``what`` is not done for that reason."""
        return DeadlineExceededError(
            f"the deadline of {self.seconds:g} s is over: {what}; "
            "write a longer deadline=, or let the work take less time"
        )


deadline_of: list[Callable[[], Deadline | None]] = []
"""Each returns the deadline of the running code; the room that knows appends one."""


def running_deadline() -> Deadline | None:
    """Return the deadline of the running code, if there is one."""
    return next((found for ask in deadline_of if (found := ask()) is not None), None)


def checked_deadline(given: Any) -> float | None:
    """Return the seconds of ``deadline=``; raise ConfigurationError unless it is None or a number above 0."""
    if given is None:
        return None
    if not is_seconds(given) or given <= 0:
        raise ConfigurationError(f"deadline={hidden(given)} is not a number of seconds above 0; write deadline=2.5")
    return float(given)


def is_seconds(given: Any) -> TypeGuard[float]:
    """Return whether ``given`` is a finite number."""
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)
