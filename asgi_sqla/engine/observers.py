"""The ``observe=`` of a ``Database``, checked at once.

Holds: what can observe.
Must not know: what is observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asgi_sqla.engine.callables import is_async, takes
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError


def checked_observers(given: Any) -> tuple[Any, ...]:
    """Return ``observe`` as a tuple, an empty one for None; raise ConfigurationError for what cannot observe."""
    if given is None:
        return ()
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise ConfigurationError(f"observe={hidden(given)} is not a sequence; write observe=[function]")
    for one in given:
        _check(one)
    return tuple(given)


def _check(observer: Any) -> None:
    for method in (observer, getattr(observer, "headers", None)):
        if isinstance(observer, type) or not callable(observer) or (method is not None and not takes(method, "report")):
            raise ConfigurationError(
                f"observe: {hidden(observer)} cannot be called with (report); write a function of the report, such as "
                "slow_log(1.0) of asgi_sqla.observe"
            )
        if is_async(method):
            raise ConfigurationError(
                f"observe: {hidden(observer)} is async, but nothing awaits an observer; write a plain function, which "
                "can put the report into a queue"
            )
