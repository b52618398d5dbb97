"""Which functions a ``session_scope()`` can decorate.

Holds: that check.
Must not know: how a decorated function is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError


def check_function(function: Callable[..., object]) -> None:
    """Raise ConfigurationError for a generator function, and for what is not callable."""
    if not callable(function):
        raise ConfigurationError(f"@session_scope() on {hidden(function)}, which is not a function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"@session_scope() on the generator {function!r}: a generator runs while it is "
            "consumed, after its scope would have ended; write the with statement inside it"
        )
