"""One HTTP request as a unit of work: its transaction ends before its response starts.

Holds: what a request may read, what it does with its messages, how it ends, and the path of one that is a unit from
its first moment.
Must not know: how sessions are ended, or the name of any framework or server.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextvars import Token
from typing import TYPE_CHECKING, Any

from asgi_sqla.asgi.exchange import (
    ANSWERED,
    COMPLETE,
    FAILED,
    KEY,
    OVER,
    PARTS,
    STARTED,
    WAITING,
    Answered,
    Rules,
    send_nothing,
)
from asgi_sqla.asgi.parts import TRAILERS, WHOLE, InParts
from asgi_sqla.engine.showing import printable
from asgi_sqla.unit.context import enter, leave, outside
from asgi_sqla.unit.logs import DEBUG, tell
from asgi_sqla.unit.stage import ENDED, OPEN
from asgi_sqla.unit.unit import UnitOfWork

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable

    from asgi_sqla.asgi.stick import Stick
    from asgi_sqla.unit.marks import Mark


class Reading:
    """What a request may read: whether it only reads, and what its reads must see."""

    _rules: Any
    _scope: Any

    @property
    def read_only(self) -> bool:
        """Whether the middleware's ``read_only`` says that this request only reads."""
        reads = None if self._rules is None else self._rules.read_only
        return reads is not None and reads(self._scope)

    @property
    def _stick(self) -> Stick | None:
        return None if self._rules is None else self._rules.stick

    @property
    def _after(self) -> Mark | None:
        stick = None if self._rules is None else self._rules.stick
        return None if stick is None else stick.after(self._scope)


class Request(Reading, InParts, UnitOfWork):
    """The unit of work and the exchange of one HTTP request: one object, because it is made for each request."""

    # What every request reads and writes, an unused one too; in the dictionary of the instance it would cost more.
    __slots__ = ("_at", "_receive", "_rules", "_scope", "_send", "_stage", "_start", "_used")

    _settle_for = UnitOfWork._settle  # pyright: ignore[reportAssignmentType]  # what it is called with is both
    _kind = "request"
    _called: tuple[Any, Any] = ("a request", "that is over")
    """Its method and path, after it has released its scope."""

    def __init__(self, rules: Rules, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self._rules, self._scope = rules, scope
        self._receive, self._send = receive, send
        self._at, self._used, self._stage = WAITING, False, OPEN

    @property
    def name(self) -> str:
        """Its method and path."""
        method, path = self._called if self._scope is None else (self._scope.get("method"), self._scope.get("path"))
        return printable(f"{method} {path}")

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
            except GeneratorExit:  # the event loop is gone: nothing can be awaited
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
                del scope[KEY]
            except (ValueError, KeyError) as exc:
                self._tell_lost(exc, scope)
            self._release(scope, token)

    def _tell_lost(self, failure: Exception, scope: Any) -> None:
        """Log why the context or the ``scope`` could not be left, and leave the scope."""
        self._stage = ENDED
        if isinstance(failure, ValueError):
            scope.pop(KEY, None)
            tell(DEBUG, self, "ended in another context, because its own was lost with its event loop")
        else:
            tell(DEBUG, self, "its application took it out of the ASGI scope")

    def _release(self, scope: Any, token: Token[Any]) -> None:
        """Tell the unit around this one, which ``token`` knows, and release everything."""
        self._stage = ENDED
        if self._used:
            self._tell(outside(token))
            self._called = scope.get("method"), scope.get("path")
            self._empty()
        if self._at is WAITING:
            self._at = OVER
        # Contexts captured by a pooled connection or a long-lived task keep this object alive.
        self._scope = self._receive = self._rules = self._start = None
        self._send = send_nothing

    def send(self, message: Any) -> Awaitable[None]:  # noqa: C901  # every message passes, and a helper would cost a call
        """End the transaction before the response starts; forward everything else unchanged."""
        at = self._at
        kind = message["type"]
        if kind == "http.response.start":
            if at is WAITING and not self._used:
                self._at = STARTED
                self._start = (
                    message  # whether it starts an answer in parts is asked only if a part finds the unit used
                )
            elif at is not STARTED and at is not COMPLETE and at is not PARTS:  # the server judges a second start
                self._start = message
                return self._settle_and_send(message)
        elif at is STARTED:
            if self._used and self._start is not None and self._is_late_in_parts():
                return self._send_in_parts(message)
            if kind in WHOLE and ("more_body" not in message or not message["more_body"]):
                self._at = COMPLETE
        elif at is PARTS or (at is COMPLETE and kind == TRAILERS and self._used and self._is_late_in_parts()):
            return self._send_in_parts(message)
        elif at is FAILED or at is ANSWERED:
            raise Answered
        forwarded: Awaitable[None] = self._send(message)
        return forwarded
