"""The verdict: commit or roll back, as a pure function of what is known when the response starts.

Holds: the default rules, and the reading of ``commit_on=``, and of ``commit_parts=`` and ``read_only=``, which are such
rules too.
Must not know: sessions, units, the network, or whether anything is awaited.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from asgi_sqla.engine.callables import drop_awaitable, is_async, takes
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError

if TYPE_CHECKING:
    from asgiref.typing import Scope

Verdict: TypeAlias = Callable[[Any, Any], bool]
"""A function of the ASGI scope and of the ``http.response.start`` message."""
CommitOn: TypeAlias = Container[int] | Verdict
CommitParts: TypeAlias = Verdict | tuple[()]

ReadOnly: TypeAlias = Container[str] | Callable[[Any], bool]
"""The HTTP methods that only read, or a function of the ASGI scope that returns whether a request only reads."""

STATUSES = range(100, 600)


def below_400(_scope: Scope, message: Any) -> bool:
    """Commit informational responses, successes and redirects; roll back errors."""
    status: int = message["status"]
    return status < 400


def verdict_of(commit_on: CommitOn) -> Verdict:
    """Return the verdict that ``commit_on`` describes; raise ConfigurationError for anything else.

    ``commit_on`` is a container of HTTP statuses, each from 100 to 599, or a plain callable of the ASGI scope and the
    ``http.response.start`` message that returns a bool.
    """
    if commit_on is below_400:
        return below_400
    if callable(commit_on):
        return _checked("commit_on", commit_on, "(scope, message)")
    _check_container("commit_on", commit_on, "statuses, such as range(200, 300), nor a plain function (scope, message)")
    for status in commit_on if isinstance(commit_on, Iterable) else ():
        if not isinstance(status, int) or isinstance(status, bool) or status not in STATUSES:
            raise ConfigurationError(
                f"commit_on holds {hidden(status)}, not an HTTP status; write whole numbers from 100 to 599"
            )
    return _StatusAmong(commit_on)


def event_streams(_scope: Scope, message: Any) -> bool:
    """Commit the parts of event streams: each part tells its reader something."""
    for name, value in message.get("headers") or ():
        if name.lower() == b"content-type":
            return bool(value.partition(b";")[0].strip().lower() == b"text/event-stream")
    return False


def parts_of(commit_parts: object) -> Verdict | None:
    """Return the verdict that ``commit_parts`` describes, None for none; raise ConfigurationError for anything else."""
    if commit_parts is event_streams:
        return event_streams
    if isinstance(commit_parts, tuple) and not commit_parts:
        return None
    if not callable(commit_parts):
        raise ConfigurationError(
            f"commit_parts={hidden(commit_parts)} is not callable; write a plain function (scope, message) -> bool, or "
            "() for none"
        )
    checked: Verdict = _checked("commit_parts", commit_parts, "(scope, message)")
    return checked


def read_only_of(read_only: ReadOnly) -> Callable[[Any], bool]:
    """Return the function of the ASGI scope that ``read_only`` describes; raise ConfigurationError for anything else.

    ``read_only`` is a container of HTTP methods, in capitals, or a plain callable of the ASGI scope.
    """
    if callable(read_only):
        return _checked("read_only", read_only, "(scope)")
    _check_container("read_only", read_only, 'HTTP methods, such as {"GET", "HEAD"}, nor a plain function (scope)')
    for method in read_only if isinstance(read_only, Iterable) else ():
        if not isinstance(method, str) or method != method.upper() or not method:
            raise ConfigurationError(f"read_only holds {hidden(method)}, not an HTTP method; write it in capitals")
    return _MethodAmong(read_only)


def _check_container(argument: str, given: object, wanted: str) -> None:
    if isinstance(given, str | bytes) or not isinstance(given, Container):
        raise ConfigurationError(f"{argument}={hidden(given)} is neither a container of {wanted} -> bool")


def _checked(argument: str, function: Callable[..., Any], parameters: str) -> Callable[..., bool]:
    """Return ``function`` so that it gives only a bool; check at once what can be checked."""
    if is_async(function):
        raise ConfigurationError(
            f"{argument}={hidden(function)} is a coroutine function, but it is not awaited; "
            f"write a plain function {parameters} -> bool"
        )
    if not takes(function, *parameters.strip("()").split(", ")):
        raise ConfigurationError(
            f"{argument}={hidden(function)} cannot be called with {parameters}; "
            f"write a plain function {parameters} -> bool"
        )

    @functools.wraps(function)
    def plain(*args: Any) -> bool:
        answer = function(*args)
        if answer is True or answer is False:
            return answer
        if drop_awaitable(answer):
            raise ConfigurationError(
                f"{argument}={hidden(function)} returned {answer!r}, which is not awaited; return a bool"
            )
        return bool(answer)

    return plain


class _StatusAmong:
    """The verdict that commits the statuses of a container."""

    __slots__ = ("_statuses",)

    def __init__(self, statuses: Container[int]) -> None:
        self._statuses = statuses

    def __call__(self, _scope: Scope, message: Any) -> bool:
        return message["status"] in self._statuses


class _MethodAmong:
    """The rule that a request only reads if its method is in a container."""

    __slots__ = ("_methods",)

    def __init__(self, methods: Container[str]) -> None:
        self._methods = methods

    def __call__(self, scope: Any) -> bool:
        return scope["method"] in self._methods
