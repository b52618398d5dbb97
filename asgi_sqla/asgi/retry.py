"""Retries of requests: a request that met a transient error is run again.

Holds: what is kept of a request for a retry, and what forbids one.
Must not know: which errors are transient, or how a unit ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio

from asgi_sqla.asgi.exchange import ANSWERED, COMPLETE, PARTS, STARTED, Rules
from asgi_sqla.asgi.request import Request
from asgi_sqla.engine.classification import ErrorKind
from asgi_sqla.session.transient import pause
from asgi_sqla.unit.cancellation import Finished
from asgi_sqla.unit.fences import may_retry, tell_retried

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable

    from asgi_sqla.unit.observed import Observing

MOST_MESSAGES = 1000
"""How many messages of a body are kept, because a client can send any number of empty ones."""

logger: logging.Logger = logging.getLogger("asgi_sqla")


class Body:
    """The messages of one request's body, kept up to ``limit`` bytes for the next attempt."""

    def __init__(self, receive: ASGIReceiveCallable, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._kept: list[Any] = []
        self._size = 0
        self._lock = anyio.Lock()
        self.reader: Reader | None = None
        """The current attempt."""
        self.replayable: bool = True

    async def message(self, reader: Reader) -> Any:
        """Give ``reader`` the next message that it has not had: a copy of a kept one, or a new one.

        A message that the reader of an earlier attempt takes from the server is kept for the current attempt.
        """
        async with self._lock:
            if reader.position >= len(self._kept):
                self._keep(await self._receive())
            if reader is not self.reader:
                return {"type": "http.disconnect"}
            message = self._kept[reader.position]
            reader.position += 1
            if not self.replayable:  # no attempt will need it again
                del self._kept[: reader.position]
                reader.position = 0
        return dict(message)

    def _keep(self, message: Any) -> None:
        if message["type"] != "http.request":  # the client has disconnected
            self.replayable = False
        elif isinstance(message.get("body", b""), bytes):
            self._size += len(message.get("body", b""))
        else:  # a bytearray, which its sender may reuse
            message = {**message, "body": bytes(message["body"])}
            self._size += len(message["body"])
        self._kept.append(dict(message))
        if self.replayable and (self._size > self._limit or len(self._kept) > MOST_MESSAGES):
            logger.debug("a body of more than %d bytes is not kept, so its request is not retried", self._limit)
            self.replayable = False


class Reader:
    """The position of one attempt in the body; after the attempt has ended it reads nothing more."""

    def __init__(self, body: Body) -> None:
        self._body: Body | None = body
        self.position = 0
        body.reader = self

    async def receive(self) -> Any:
        """Give the next message."""
        body = self._body
        return {"type": "http.disconnect"} if body is None else await body.message(self)

    def end(self) -> None:
        """Release the body."""
        self._body = None


class Attempt(Request):
    """One attempt at a request; the last one is like any request."""

    retry: BaseException | None = None
    """The error to retry after, if there is a next attempt."""
    kind: ErrorKind | None = None
    """What decided that there is one."""
    following: Observing | None = None
    """What observes that one, if anything observed this one."""
    _told = False

    def __init__(self, rules: Rules, scope: Any, body: Body, send: ASGISendCallable, attempt: int) -> None:
        self._reader = Reader(body)
        super().__init__(rules, scope, self._reader.receive, send)
        self._body = body
        self.attempt = attempt

    async def run(self) -> None:
        """Run the application in this attempt's unit."""
        try:
            await super().run()
        finally:
            self._tell_retried()
            self._reader.end()
            del self._body

    def observed_by(self, observing: Observing) -> None:
        """Belong to the report of the attempts before this one, also if it uses no database."""
        self._used = True
        observing.attach(self)

    def _empty(self) -> None:
        self._tell_retried()  # now, as its sessions are still there
        super()._empty()

    def _tell_retried(self) -> None:
        if self.retry is not None and not self._told:
            self._told, self.following = True, tell_retried(self, self.retry)

    async def _settle_for(self, commit: bool) -> Finished:
        # The application has answered in spite of an error: its response is not sent if the request can be retried. If
        # it rolled the failed work back itself (to a savepoint, or all of it), its commit is intended.
        for failure in self._sessions.failures(unhandled=commit):
            if self._may_retry(failure):
                return Finished(failure)
        return await super()._settle_for(commit)

    async def _answer(self, failure: Exception) -> None:
        if self._may_retry(failure):
            self._failure = self.retry = failure
            self._at, self._mapped = ANSWERED, True
            (await self._close(commit=False, cause=failure)).check()
        else:
            await super()._answer(failure)

    async def _let_through(self, raised: BaseException) -> None:
        if self._at not in (STARTED, PARTS, COMPLETE) and isinstance(raised, Exception) and self._may_retry(raised):
            self.retry, self._at = raised, ANSWERED
        else:
            await super()._let_through(raised)

    def _may_retry(self, failure: BaseException) -> bool:
        may = self.attempt <= self._rules.retries and self._body.replayable
        self.kind = may_retry(self, failure) if may else None
        return self.kind is not None


async def replay(
    rules: Rules,
    scope: Any,
    receive: ASGIReceiveCallable,
    send: ASGISendCallable,
    make: Callable[[Rules, Any, Body, Any, int], Attempt] = Attempt,
) -> None:
    """Serve a request, and retry it after transient errors, ``rules.retries`` times at most.

    Each attempt has its own unit of work, its own copy of the ASGI scope and its own position in the body. Changes that
    the last attempt made to its scope are copied to the server's, where layers around this one see them.
    """
    body = Body(receive, rules.replay_limit)
    number, following = 1, None
    while True:
        own_scope = {key: value.copy() if isinstance(value, dict | list) else value for key, value in scope.items()}
        attempt = make(rules, own_scope, body, send, number)
        if following is not None:
            attempt.observed_by(following)
        try:
            await attempt.run()
        finally:
            if attempt.retry is None:
                scope.update(own_scope)
        if attempt.retry is None or attempt.kind is None:
            return
        following = attempt.following
        await anyio.sleep(pause(number, attempt.kind))
        number += 1
