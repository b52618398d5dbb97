"""A websocket: each message is a unit of work of its own, and an idle socket holds nothing.

Holds: when the unit of a message ends, whether that can be known at all, and what a close code means.
Must not know: how sessions are ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from asgi_sqla.asgi.exchange import ANSWERED, COMPLETE, FAILED, KEY, STARTED, WAITING, Answered, Rules
from asgi_sqla.asgi.settling import Exchange
from asgi_sqla.engine.showing import printable
from asgi_sqla.session.guard import current_user
from asgi_sqla.unit.context import enter, inherited, leave, leave_anywhere, outside
from asgi_sqla.unit.sessions import NONE, Sessions
from asgi_sqla.unit.unit import UnitOfWork

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable

WENT_WELL = (1000, 1001)
"""The close codes of a websocket that ended normally, or because one side goes away (RFC 6455)."""


class Message(UnitOfWork):
    """The unit of work of one message, or of the time before the handshake is accepted."""

    _kind = "message"
    _hears_begin = True  # an earlier message may have got a session
    _rules: Rules | None
    """Read by a second layer of the middleware inside the first one."""

    def __init__(self, path: str, rules: Rules, last: Message | None) -> None:
        self._rules = rules
        self._name = f"WEBSOCKET {printable(path)}"
        self._sessions: Sessions = Sessions(self) if last is None or last._sessions is NONE else last._sessions
        self._fenced = last is not None and last._fenced
        self._sessions.users = set()
        self._sessions.adopt(self)

    def _empty(self) -> None:
        self._rules = None
        super()._empty()


class WebSocket(Exchange):
    """One websocket: one unit after the other, with the same sessions, because frameworks inject them only once."""

    _at = COMPLETE
    _decided = False
    """Whether the handshake was accepted, or answered with a response."""

    def __init__(self, rules: Rules, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self._rules = rules
        self._scope = scope
        self._receive = receive
        self._send = send
        self._message = self._next(None)

    @property
    def _unit(self) -> UnitOfWork:
        return self._message

    async def run(self) -> None:
        """Run the application, each message in a unit of its own."""
        raised: BaseException | None = None
        token = enter(self._message)
        try:
            try:
                await self._rules.app(self._scope, self.receive, self.send)
            except GeneratorExit:  # the event loop is gone: nothing can be awaited
                self._message._abandon()
                raise
            except BaseException as exc:
                raised = exc
            if not self._decided:
                self._message.rollback_only()  # servers answer a handshake that was not accepted with an error
            await self._finish(raised)
        finally:
            try:
                leave(token)
            except ValueError:
                leave_anywhere(token)
            self._scope.pop(KEY, None)
            self._message._tell(outside(token))
            self._message._empty()

    async def receive(self) -> ASGIReceiveEvent:
        """End the unit of the last message, if this call shows that its work is done; await the next message."""
        if self._decided and self._at is COMPLETE:  # a denial response is not a message
            await self._end_message()
        event: ASGIReceiveEvent = await self._receive()
        if self._rules.deadline is not None:  # of this message: the time until it came does not count
            self._message._deadline = self._rules.deadline(self._scope)
        return event

    async def send(self, message: Any) -> None:
        """Forward; a denial response is judged by its status before it starts, and a close by its code."""
        if self._at is FAILED or self._at is ANSWERED:
            raise Answered
        kind = message["type"]
        if kind == "websocket.http.response.start":
            self._at, self._decided = WAITING, True
            await self._settle_and_send(message)
            return
        if kind == "websocket.http.response.body":
            if self._at is STARTED and not message.get("more_body"):
                self._at = COMPLETE
        elif kind == "websocket.accept":
            await self._end_message()
            self._decided = True
        elif kind == "websocket.close":
            # Most frameworks turn an exception into a close code, and return normally. A close before the handshake is
            # a refusal, which servers answer with 403.
            if not self._decided or message.get("code", 1000) not in WENT_WELL:
                self._message.rollback_only()
            await self._end_message()
        await self._send(message)

    async def _end_message(self) -> None:
        """End the unit of a message whose work is done, and open the next.

        The work is done if only this task has used the unit's sessions. If another task reads ahead or closes the
        socket, this call says nothing about the running work, and the unit goes on. The same is true inside a
        ``session_scope()``, which shadows the unit until the scope ends.
        """
        message = self._message
        user = current_user()
        alone = isinstance(user, asyncio.Task) and (message._sessions.users or set()) <= {user}
        used = message._used or message._sessions.in_transaction
        if not (used and alone and inherited() is message):
            return
        try:
            (await message._renew()).check()
        finally:
            message._rules = None
            self._message = self._next(message)
            enter(self._message)

    def _next(self, last: Message | None) -> Message:
        message = Message(self._scope.get("path", ""), self._rules, last)
        self._scope[KEY] = message
        return message
