"""Which listeners of ours never wait, so that who asks may run them on an event loop.

Holds: the mark.
Must not know: what they listen to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

MARK = "asgi_sqla_instant"
"""The attribute that such a function has; asked for by nothing slower than C."""


def instant(function: F) -> F:
    """Mark a listener that never waits, for a database or for anything else; return it."""
    setattr(function, MARK, True)
    return function
