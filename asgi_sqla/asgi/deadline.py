"""Requests with a deadline: their clock starts when they arrive, and all their attempts share it.

It bounds a request until its response starts. Work after that, such as a streamed body or a background task, can no
longer be answered with an error, and may take longer than a client waits.

Holds: the reading of ``deadline=``, and the requests that have one.
Must not know: how a deadline is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asgi_sqla.asgi.exchange import COMPLETE, PARTS, STARTED, Rules, Stage
from asgi_sqla.asgi.request import Request
from asgi_sqla.asgi.retry import Attempt, replay
from asgi_sqla.engine.callables import drop_awaitable, is_async, takes
from asgi_sqla.engine.deadlines import Deadline, checked_deadline, is_seconds
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable


class _Until:
    """Mixed into a request: its deadline until its response starts."""

    _at: Stage
    _until: Deadline | None

    @property
    def _deadline(self) -> Deadline | None:
        return self._until if self._at not in (STARTED, PARTS, COMPLETE) else None

    @_deadline.setter
    def _deadline(self, until: Deadline | None) -> None:
        self._until = until


class TimedRequest(_Until, Request):  # pyright: ignore[reportIncompatibleVariableOverride]  # a property does too
    """A request with a deadline."""


class TimedAttempt(_Until, Attempt):  # pyright: ignore[reportIncompatibleVariableOverride]  # as above
    """One attempt at a request with a deadline."""


async def serve(rules: Rules, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Serve a request until its deadline."""
    until = None if rules.deadline is None else rules.deadline(scope)

    def attempt(*args: Any) -> Attempt:
        made = TimedAttempt(*args)
        made._deadline = until
        return made

    if rules.retries:
        await replay(rules, scope, receive, send, attempt)
        return
    request = TimedRequest(rules, scope, receive, send)
    request._deadline = until
    await request.run()


def deadline_from(given: Any) -> Callable[[Any], Deadline | None] | None:
    """Return what makes the deadline of an ASGI scope; raise ConfigurationError unless ``deadline=`` describes one."""
    if not callable(given):
        seconds = checked_deadline(given)
        return None if seconds is None else lambda _scope: Deadline(seconds)
    if is_async(given) or not takes(given, "scope"):
        raise ConfigurationError(
            f"deadline={hidden(given)} is not a plain function of the ASGI scope; write a number of seconds, or a "
            "function (scope) -> float | None"
        )

    def of(scope: Any) -> Deadline | None:
        seconds: Any = given(scope)
        if seconds is None:
            return None
        if drop_awaitable(seconds) or not is_seconds(seconds):
            raise ConfigurationError(
                f"deadline={hidden(given)} returned {hidden(seconds)}; return a number of seconds, or None"
            )
        return Deadline(seconds)  # one not above 0 is over at once, as when a client has passed on what it had left

    return of
