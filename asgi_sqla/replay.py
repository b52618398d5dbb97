"""The retrying half of the middleware: a request that failed in passing is begun again.

Lives here: what is kept of a request to replay it, and the fences around that.
Must not know: which failures pass, or how a unit ends.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio

from asgi_sqla.exchange import Rules
from asgi_sqla.http import Request
from asgi_sqla.transient import may_be_repeated, pause

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable

logger: logging.Logger = logging.getLogger("asgi_sqla")


class Body:
    """The messages of one request's body, kept up to ``limit`` bytes to be received again."""

    def __init__(self, receive: ASGIReceiveCallable, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._kept: list[Any] = []
        self._size = 0
        self._position = 0
        self.replayable: bool = True

    async def receive(self) -> Any:
        """Give the next message, one that is kept or a new one."""
        if self._position < len(self._kept):
            self._position += 1
            return self._kept[self._position - 1]
        message: Any = await self._receive()
        if message["type"] == "http.request":
            self._keep(message)
        else:  # the client has left
            self.replayable = False
        return message

    def rewind(self) -> None:
        """Begin again with the first message."""
        self._position = 0

    def _keep(self, message: Any) -> None:
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            if self.replayable:
                logger.debug("a body of more than %d bytes is not kept, so its request is not retried", self._limit)
            self.replayable = False
            self._kept.clear()
            self._position = 0
        else:
            self._kept.append(message)
            self._position += 1


class Attempt(Request):
    """One attempt at a request; the last one is like any request."""

    retry: BaseException | None = None
    """Why to begin again, if so."""

    def __init__(self, rules: Rules, scope: Any, body: Body, send: ASGISendCallable, attempt: int) -> None:
        super().__init__(rules, scope, body.receive, send)
        self._body = body
        self.attempt = attempt

    async def settle(self, commit: bool) -> None:
        """Settle, unless the attempt is to be begun again: then raise what it failed with."""
        # The application has made an answer of it: nothing of that is sent if it may be done again. What it
        # commits in spite of a failure that it rolled back (with a savepoint, or all) went well for it.
        for failure in self.sessions.failures(unhandled=commit):
            if self._may_retry(failure):
                raise failure
        await super().settle(commit)

    async def _answer(self, failure: Exception) -> None:
        if self._may_retry(failure):
            self._failure = self.retry = failure
            self._mapped = True
            await self.close(commit=False, cause=failure)
        else:
            await super()._answer(failure)

    async def _let_through(self, raised: BaseException) -> None:
        if not self._started and isinstance(raised, Exception) and self._may_retry(raised):
            self.retry = raised
        else:
            await super()._let_through(raised)

    def _may_retry(self, failure: BaseException) -> bool:
        return (
            self.attempt <= self._rules.retries
            and self._body.replayable
            and not self.committed_within
            and not self.sessions.has_committed
            and may_be_repeated((failure, *self.sessions.failures()))
        )


async def replay(rules: Rules, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Serve a request, and begin it again while it fails in passing, ``rules.retries`` times at the most.

    Each attempt has a unit of work and a copy of the ASGI scope of its own; what the last one put into
    its scope is put into the server's, for layers around this one to see.
    """
    body = Body(receive, rules.replay_limit)
    number = 1
    while True:
        own_scope = {key: value.copy() if isinstance(value, dict | list) else value for key, value in scope.items()}
        attempt = Attempt(rules, own_scope, body, send, number)
        try:
            await attempt.run()
        finally:
            if attempt.retry is None:
                scope.update(own_scope)
        if attempt.retry is None:
            return
        logger.info("%s: attempt %d is begun again after %r", attempt.name, number, attempt.retry)
        await anyio.sleep(pause(number))
        body.rewind()
        number += 1
