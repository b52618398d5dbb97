"""The events of engines that a user may listen to: a wrong listener is refused when it is given.

Holds: which events there are, and how their listeners are called.
Must not know: engines of ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.engine.events import ConnectionEvents, DialectEvents
from sqlalchemy.pool.events import PoolEvents

from asgi_sqla.engine.callables import is_async, takes
from asgi_sqla.engine.urls import hidden
from asgi_sqla.errors import ConfigurationError

_EVENTS: Mapping[str, Callable[..., Any]] = {
    name: function
    for events in (DialectEvents, PoolEvents, ConnectionEvents)
    for name, function in vars(events).items()
    if name[0] != "_" and inspect.isfunction(function)
}


def checked_listener(identifier: Any, function: Any) -> tuple[str, Callable[..., object]]:
    """Return both, or raise ConfigurationError for what is no event of engines, or cannot be told of it."""
    if not isinstance(identifier, str) or identifier not in _EVENTS:
        raise ConfigurationError(
            f'identifier={hidden(identifier)} is no event of an engine; write one such as "connect"'
        )
    if not callable(function):
        raise ConfigurationError(f"function={hidden(function)} cannot be called; pass the function that is told")
    if is_async(function):
        raise ConfigurationError(
            f"function={hidden(function)} is async, and nothing awaits a listener; pass a plain function, in which "
            "connection.run_async(...) awaits what the driver's connection has"
        )
    _check_parameters(identifier, function)
    return identifier, function


def _check_parameters(identifier: str, function: Callable[..., object]) -> None:
    event: Any = _EVENTS[identifier]
    names = [name for name in inspect.signature(event).parameters if name != "self"]
    older = [signature[1] for signature in getattr(event, "_legacy_signatures", ())]
    if not any(takes(function, *arguments) for arguments in (names, *older)):
        raise ConfigurationError(
            f"function={hidden(function)} cannot be called with ({', '.join(names)}); write a function of these"
        )
