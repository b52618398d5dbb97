"""A websocket conversation: each message is a request, and an idle socket holds nothing.

Lives here: when the unit of a message ends, whether that can be told at all, and what a close code says.
Must not know: how sessions are ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from asgi_sqla.context import enter, inherited, leave
from asgi_sqla.exchange import KEY, Answered, Exchange, Rules
from asgi_sqla.guard import current_user
from asgi_sqla.sessions import Sessions
from asgi_sqla.unit import UnitOfWork

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable

WENT_WELL = (1000, 1001)
"""The close codes of a conversation that ended as it should: normally, or because a side goes away."""


class Message(UnitOfWork):
    """The unit of work of one message, or of what comes before the first."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.sessions: Sessions = Sessions(self)
        self.sessions.users = set()

    @property
    def name(self) -> str:
        """The path of its websocket."""
        return f"WEBSOCKET {self._path}"


class Conversation(Exchange):
    """One websocket: a unit after the other."""

    _started = True
    _complete = True
    _accepted = False

    def __init__(self, rules: Rules, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self._rules = rules
        self._scope = scope
        self._receive = receive
        self._send = send
        self._message = self._next()

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
            except GeneratorExit:  # the event loop is gone: nothing can be awaited any more
                raise
            except BaseException as exc:
                raised = exc
            await self._finish(raised)
        finally:
            leave(token)
            self._scope.pop(KEY, None)

    async def receive(self) -> ASGIReceiveEvent:
        """End the unit of the message before, if that can be told from this call, and await the next."""
        await self._end_message()
        event: ASGIReceiveEvent = await self._receive()
        return event

    async def send(self, message: Any) -> None:
        """Forward; a denial response is judged by its status before it starts, a close by its code."""
        if self._failure is not None:
            raise Answered
        kind = message["type"]
        if kind == "websocket.http.response.start":
            self._started = False
            await self._settle_and_send(message)
            return
        if kind == "websocket.accept":
            self._accepted = True
        elif kind == "websocket.close":
            # Most frameworks make an exception a code, and return as if all were well. Before the
            # handshake a close is a refusal, which servers answer 403.
            if not self._accepted or message.get("code", 1000) not in WENT_WELL:
                self._message.rollback_only()
            await self._end_message()
        await self._send(message)

    async def _end_message(self) -> None:
        """End the unit of a message whose work is done, and open the next.

        It is when nobody but this task has used the unit's sessions. Where another task reads ahead,
        or closes, that says nothing about the work in hand, and the unit goes on; so it does inside a
        ``session_scope()``, which shadows the unit until its own end.
        """
        message = self._message
        user = current_user()
        alone = isinstance(user, asyncio.Task) and (message.sessions.users or set()) <= {user}
        if message.used and alone and inherited() is message:
            try:
                await message.close(commit=True)
            finally:
                self._message = self._next()
                enter(self._message)

    def _next(self) -> Message:
        message = Message(self._scope.get("path", ""))
        self._scope[KEY] = message
        return message
