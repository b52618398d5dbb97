"""One HTTP request as a unit of work: its transaction ends before its response starts.

On the path of a request that uses no database, nothing is made or awaited that it does not need.

Holds: that path.
Must not know: what becomes of a failure, how sessions are ended, or what any framework or server is called.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from asgi_sqla.asgi.exchange import ANSWERED, COMPLETE, FAILED, KEY, OVER, STARTED, WAITING, Answered, Exchange, Rules
from asgi_sqla.engine.urls import printable
from asgi_sqla.unit.context import enter, leave, leave_anywhere, outside
from asgi_sqla.unit.unit import ENDED, UnitOfWork

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable

_WHOLE = frozenset(("http.response.body", "http.response.pathsend", "http.response.zerocopysend"))
"""The messages that carry a body; the last one says ``more_body: False``, or nothing of it."""


class Request(Exchange, UnitOfWork):
    """The unit of work of one HTTP request, and its exchange: one object, for it is made each time."""

    def __init__(self, rules: Rules, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self._rules = rules
        self._scope = scope
        self._receive = receive
        self._send = send

    @property
    def name(self) -> str:
        """Its method and path."""
        scope = self._scope
        return self._name if scope is None else printable(f"{scope.get('method')} {scope.get('path')}")

    @property
    def read_only(self) -> bool:
        """Whether the middleware was told that such a request only reads."""
        return self._read_only if self._scope is None else self._rules.read_only(self._scope)

    @property
    def _unit(self) -> UnitOfWork:
        return self

    async def run(self) -> None:
        """Run the application in this unit."""
        raised: BaseException | None = None
        scope = self._scope
        scope[KEY] = self
        token = enter(self)
        try:
            try:
                await self._rules.app(scope, self._receive, self.send)
            except GeneratorExit:  # the event loop is gone: nothing can be awaited any more
                self._abandon()
                raise
            except BaseException as exc:
                raised = exc
            if raised is not None or self._used:
                await self._finish(raised)
        finally:
            self._stage = ENDED
            try:
                leave(token)
            except ValueError:  # in another context, as that of the request is gone with its event loop
                leave_anywhere(token)
            if KEY in scope:
                del scope[KEY]
            if self._used:
                self._tell(outside(token))
                self._empty()
            if self._at is WAITING:
                self._at = OVER
            # Contexts that a pooled connection or a long-lived task captured have this object for as long as they live.
            self._scope = self._receive = self._rules = None
            self._send = _send_nothing

    def send(self, message: Any) -> Awaitable[None]:
        """Settle before the response starts; forward everything else as it is."""
        at = self._at
        kind = message["type"]
        if kind == "http.response.start":
            if self._used or at is not WAITING:
                return self._start(message)
            self._at = STARTED
        elif at is STARTED:
            if kind in _WHOLE and ("more_body" not in message or not message["more_body"]):
                self._at = COMPLETE
        elif at is FAILED or at is ANSWERED:
            raise Answered
        forwarded: Awaitable[None] = self._send(message)
        return forwarded

    def _start(self, message: Any) -> Awaitable[None]:
        if self._at is STARTED or self._at is COMPLETE:  # a second start is for the server to judge
            forwarded: Awaitable[None] = self._send(message)
            return forwarded
        return self._settle_and_send(message)


async def _send_nothing(_message: Any) -> None:
    """Send to nobody: the application has returned, and its request is over."""
