"""The verdict: commit or roll back, as a pure function of what is known when the response starts.

Lives here: the default rule and the reading of ``commit_on=``.
Must not know: sessions, units, the network, or whether anybody awaits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from asgi_sqla.errors import ConfigurationError

if TYPE_CHECKING:
    from asgiref.typing import Scope

Verdict: TypeAlias = Callable[[Any, Any], bool]
"""A function of the ASGI scope and of the ``http.response.start`` message."""
CommitOn: TypeAlias = Container[int] | Verdict

ReadOnly: TypeAlias = Container[str] | Callable[[Any], bool]
"""The HTTP methods that only read, or a function of the ASGI scope that tells."""

STATUSES = range(100, 600)


def below_400(_scope: Scope, message: Any) -> bool:
    """Commit informational answers, successes and redirects; roll back errors."""
    status: int = message["status"]
    return status < 400


def verdict_of(commit_on: CommitOn) -> Verdict:
    """Return the verdict that ``commit_on`` describes.

    ``commit_on`` is a container of HTTP statuses, each from 100 to 599, or a plain callable of
    the ASGI scope and the ``http.response.start`` message that returns a bool.

    Raises ConfigurationError for anything else, at once.
    """
    if callable(commit_on):
        if inspect.iscoroutinefunction(commit_on) or inspect.iscoroutinefunction(type(commit_on).__call__):
            raise ConfigurationError(
                f"commit_on={commit_on!r} is a coroutine function, and the verdict is not awaited; "
                "write a plain function (scope, message) -> bool"
            )
        return commit_on
    if isinstance(commit_on, str | bytes) or not isinstance(commit_on, Container):
        raise ConfigurationError(
            f"commit_on={commit_on!r} is neither a container of statuses, such as range(200, 300), "
            "nor a callable (scope, message) -> bool"
        )
    if isinstance(commit_on, Iterable):
        _check_statuses(commit_on)
    return _Among(commit_on)


def _check_statuses(statuses: Iterable[object]) -> None:
    for status in statuses:
        if not isinstance(status, int) or status not in STATUSES:
            raise ConfigurationError(
                f"commit_on holds {status!r}, which is no HTTP status; write whole numbers from 100 to 599"
            )


class _Among:
    """The verdict that commits the statuses of a container."""

    __slots__ = ("_statuses",)

    def __init__(self, statuses: Container[int]) -> None:
        self._statuses = statuses

    def __call__(self, _scope: Scope, message: Any) -> bool:
        return message["status"] in self._statuses


def read_only_of(read_only: ReadOnly) -> Callable[[Any], bool]:
    """Return the function of the ASGI scope that ``read_only`` describes.

    ``read_only`` is a container of HTTP methods, in capitals, or a plain callable of the ASGI scope.

    Raises ConfigurationError for anything else, at once.
    """
    if callable(read_only) and not inspect.iscoroutinefunction(read_only):
        return read_only
    if callable(read_only) or isinstance(read_only, str | bytes) or not isinstance(read_only, Container):
        raise ConfigurationError(
            f'read_only={read_only!r} is neither a set of HTTP methods, such as {{"GET", "HEAD"}}, '
            "nor a plain function of the ASGI scope that returns a bool"
        )
    if isinstance(read_only, Iterable):
        for method in read_only:
            if not isinstance(method, str) or method != method.upper() or not method:
                raise ConfigurationError(f"read_only holds {method!r}, which is no HTTP method; write it in capitals")
    return _MethodAmong(read_only)


class _MethodAmong:
    """Whether a request's method is in a container."""

    __slots__ = ("_methods",)

    def __init__(self, methods: Container[str]) -> None:
        self._methods = methods

    def __call__(self, scope: Any) -> bool:
        return scope["method"] in self._methods
