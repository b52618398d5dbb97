"""The events of engines that a user may listen to; a wrong listener is refused at once.

Holds: which events exist, and how their listeners are called.
Must not know: our engines.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.engine.events import ConnectionEvents, DialectEvents
from sqlalchemy.pool.events import PoolEvents

from asgi_sqla.engine.callables import is_async, takes
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError

_EVENTS: Mapping[str, Callable[..., Any]] = {
    name: function
    for events in (DialectEvents, PoolEvents, ConnectionEvents)
    for name, function in vars(events).items()
    if name[0] != "_" and inspect.isfunction(function)
}


def checked_listener(identifier: Any, function: Any) -> tuple[str, Callable[..., object]]:
    """Return both arguments; raise ConfigurationError for an unknown event, or a function that does not fit it."""
    if not isinstance(identifier, str) or identifier not in _EVENTS:
        raise ConfigurationError(f'identifier={hidden(identifier)} is not an engine event; write one such as "connect"')
    if not callable(function):
        raise ConfigurationError(f"function={hidden(function)} cannot be called; pass the function to call")
    if is_async(function):
        raise ConfigurationError(
            f"function={hidden(function)} is async, but nothing awaits a listener; pass a plain function, which can "
            "await the driver's methods with connection.run_async(...)"
        )
    _check_parameters(identifier, function)
    return identifier, function


def _check_parameters(identifier: str, function: Callable[..., object]) -> None:
    event: Any = _EVENTS[identifier]
    names = [name for name in inspect.signature(event).parameters if name != "self"]
    older = [signature[1] for signature in getattr(event, "_legacy_signatures", ())]
    if not any(takes(function, *arguments) for arguments in (names, *older)):
        raise ConfigurationError(
            f"function={hidden(function)} cannot be called with ({', '.join(names)}); write a function that takes these"
        )
