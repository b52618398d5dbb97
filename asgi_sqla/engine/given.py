"""What an argument is before anything is known of its meaning: its name, a count, a mapping.

Holds: the checks that arguments of the middleware, of a scope and of a ``Database`` share.
Must not know: any argument.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")


def known_arguments(instead: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a callable: an unknown keyword raises ConfigurationError, and ``instead`` says what to write."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        code = function.__code__  # a signature takes long, and each import would pay
        known = [name for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if name != "self"]

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in known:
                    write = instead.get(name) or f"one of {', '.join(known)}"
                    raise ConfigurationError(
                        f"{name}= is not an argument of "
                        f"{function.__qualname__.removesuffix('.__init__')}(); write {write}"
                    )
            return function(*args, **kwargs)

        return call

    return decorate


def checked_count(argument: str, value: Any) -> int:
    """Return ``value``; raise ConfigurationError unless it is a whole number of at least 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"{argument}={hidden(value)} is not a count; write a whole number of at least 0")
    return value


def mapping(argument: str, given: Any) -> dict[str, Any]:
    """Return ``given`` as a dictionary, an empty one for None, or raise ConfigurationError."""
    if not isinstance(given, Mapping | None):
        raise ConfigurationError(f'{argument}={hidden(given)} is not a mapping; write {argument}={{"name": value}}')
    for name in given or ():
        if not isinstance(name, str):
            raise ConfigurationError(f"{argument}: the name {hidden(name)} is not a string; write it in quotes")
    return dict(given or {})
