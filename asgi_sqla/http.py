"""One HTTP request as a unit of work: its transaction ends before its response starts.

Lives here: the path of a request, on which nothing is made or awaited that it does not need.
Must not know: how sessions are ended, or what any framework or server is called.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from asgi_sqla.context import enter, leave
from asgi_sqla.exchange import KEY, Answered, Exchange, Rules
from asgi_sqla.unit import UnitOfWork

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable


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
        return f"{self._scope.get('method')} {self._scope.get('path')}"

    @property
    def read_only(self) -> bool:
        """Whether the middleware was told that such a request only reads."""
        return self._rules.read_only(self._scope)

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
                raise
            except BaseException as exc:
                raised = exc
            if raised is not None or self.used:
                await self._finish(raised)
        finally:
            self.ended = True
            leave(token)
            if KEY in scope:  # or the scope and its unit would keep each other alive
                del scope[KEY]

    def send(self, message: Any) -> Awaitable[None]:
        """Settle before the response starts; forward everything else as it is."""
        if message["type"] == "http.response.start":
            if self.used:
                return self._settle_and_send(message)
            self._started = True
        elif self._failure is not None:
            raise Answered
        else:
            self._complete = "more_body" not in message or not message["more_body"]
        forwarded: Awaitable[None] = self._send(message)
        return forwarded
