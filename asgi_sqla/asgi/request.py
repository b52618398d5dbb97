"""One HTTP request as a unit of work: its transaction ends before its response starts.

A request that does not use the database makes no object and awaits nothing that it does not need.

Holds: the path of a request, and the handling of a failure before, at and after the start, also for websockets.
Must not know: how sessions are ended, or the name of any framework or server.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from contextvars import Token
from typing import TYPE_CHECKING, Any

import anyio

from asgi_sqla.asgi.exchange import (
    ANSWERED,
    COMPLETE,
    FAILED,
    KEY,
    OVER,
    SETTLING,
    STARTED,
    WAITING,
    Answered,
    Rules,
    Stage,
    is_of_ours,
    send_nothing,
    tell_committed,
    tell_given_up,
)
from asgi_sqla.asgi.stick import Reading
from asgi_sqla.engine.urls import printable
from asgi_sqla.errors import ended
from asgi_sqla.unit.cancellation import FINE, Finished
from asgi_sqla.unit.context import enter, leave
from asgi_sqla.unit.unit import ENDED, OPEN, UnitOfWork

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable

_WHOLE = frozenset(("http.response.body", "http.response.pathsend", "http.response.zerocopysend"))
"""The messages that carry a body; ``more_body`` is False or missing in the last one."""

logger: logging.Logger = logging.getLogger("asgi_sqla")


class Exchange:
    """One request or websocket, from the call of the application to its end."""

    _rules: Any
    _scope: Any
    _receive: Any
    _send: Any
    _at: Stage = WAITING
    _failure: Exception | None = None
    """Why we answer instead of the application."""
    _mapped = False
    """Whether ``error_responses`` had an answer for it; then it is not raised to the server."""
    _settled: anyio.Event | None = None
    """Set when the transaction has ended, for an application that returned meanwhile."""

    @property
    def _unit(self) -> UnitOfWork:
        raise NotImplementedError

    async def _settle_and_send(self, message: Any) -> None:
        """End the transaction, and then start the application's response, or ours."""
        if self._at is not WAITING:
            self._check_start(message)
        self._at = SETTLING
        try:
            try:
                commit = self._rules.verdict(self._scope, message)
            except Exception as exc:
                await self._answer(exc)
                raise Answered from exc
            finished = (not commit and self._rules.failed(message, self._unit)) or await self._settle_for(commit)
            if finished is not FINE:
                await self._heed(finished)
            if not commit:
                tell_committed(self._unit, f"answered {message.get('status')}")
            if self._rules.stick is not None:
                message = await self._rules.stick.marked(self._unit, self._scope, message)
            self._at = STARTED
        finally:
            if self._at is SETTLING:
                self._at = WAITING
            if self._settled is not None:
                self._settled.set()
        await self._send(message)

    def _check_start(self, message: Any) -> None:
        """Raise if this start must not be sent."""
        if self._at is FAILED and not self._rules.verdict(self._scope, message):
            # The application handled the cancellation, of a time limit for example, and answers an error: also true.
            logger.error("%s: answered %s, as COMMIT failed", self._unit, message.get("status"), exc_info=self._failure)
            self._failure, self._at = None, WAITING
        if self._at is FAILED or self._at is ANSWERED:
            raise Answered
        if self._at is not WAITING:  # a task of an application that has returned or raised: its work is rolled back
            raise ended(self._unit)

    def _settle_for(self, commit: bool) -> Awaitable[Finished]:
        return self._unit._settle(commit)

    async def _heed(self, finished: Finished) -> None:
        """Answer a failure of the end, and raise a cancellation."""
        if isinstance(finished.failure, Exception):
            # The application may suppress the cancellation; the COMMIT that failed meanwhile stays failed.
            if finished.cancelled is not None:
                self._failure, self._at = finished.failure, FAILED
                raise finished.cancelled
            await self._answer(finished.failure)
            raise Answered from finished.failure
        finished.check()

    async def _answer(self, failure: Exception) -> None:
        self._failure, self._at = failure, ANSWERED
        finished = await self._unit._close(commit=False, cause=failure)
        tell_committed(self._unit, f"answered for {type(failure).__name__}", failure)
        self._mapped = await self._rules.answers.give(failure, self._scope, self._receive, self._send)
        finished.check()

    async def _finish(self, raised: BaseException | None) -> None:
        """End the unit after the application has returned or ``raised``."""
        if self._at is SETTLING:  # a task that outlives the application has started the response
            self._settled = anyio.Event()
            await self._settled.wait()
        unit, at = self._unit, self._at
        if at is WAITING:
            self._at = OVER
        elif at is STARTED and raised is None:
            tell_given_up(unit)
        finished = await unit._close(raised is None and at is COMPLETE, raised)
        if at is WAITING:
            tell_committed(self._unit, f"{type(raised).__name__} raised" if raised else "returned without a response")
        if finished is not FINE and finished.failure is not None:
            self._surface(finished.failure)
        await self._finish_with(raised)
        if finished.cancelled is not None:
            raise finished.cancelled

    async def _finish_with(self, raised: BaseException | None) -> None:
        """Raise what the application raised, unless we have answered a failure, or can answer this one."""
        failure = self._failure
        if failure is None:
            if raised is not None:
                await self._let_through(raised)
            return
        if raised is not None and not is_of_ours(raised):
            logger.error("%s failed", self._unit, exc_info=failure)
            raise raised
        if self._at is not ANSWERED:
            await self._answer(failure)
        if not self._mapped:
            self._surface(failure)

    async def _let_through(self, raised: BaseException) -> None:
        if not isinstance(raised, Exception):
            raise raised
        if self._at in (STARTED, COMPLETE):
            self._surface(raised)
        elif (failure := self._rules.answerable(raised, self._unit)) is not None:
            await self._answer(failure)
        else:
            raise raised

    def _surface(self, failure: BaseException) -> None:
        """Raise ``failure`` to the server, or log it if that would harm later requests.

        Every server that handles an exception after the response states the ``spec_version`` of ASGI that it follows.
        daphne states none, and an exception ends its loop that notices failures. (After those of websockets it closes
        the socket.)
        """
        asgi = self._scope.get("asgi")
        told = self._scope["type"] == "websocket" or asgi is None or "spec_version" in asgi
        if told or not isinstance(failure, Exception):
            raise failure
        logger.error("%s failed", self._unit, exc_info=failure)


class Request(Reading, Exchange, UnitOfWork):
    """The unit of work and the exchange of one HTTP request: one object, because it is made for each request."""

    # What every request reads and writes, an unused one too; in the dictionary of the instance it would cost more.
    __slots__ = ("_at", "_receive", "_rules", "_scope", "_send", "_stage", "_used")

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

    async def run(self) -> None:  # noqa: C901  # the path of every request, where a helper would cost a call
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
            except ValueError:
                logger.debug("a request ended in another context, because its own was lost with its event loop")
            if KEY in scope:
                del scope[KEY]
            if self._used:
                if (outer := token.old_value) is not None and outer is not Token.MISSING:
                    self._tell(outer)
                self._called = scope.get("method"), scope.get("path")
                self._empty()
            if self._at is WAITING:
                self._at = OVER
            # Contexts captured by a pooled connection or a long-lived task keep this object alive.
            self._scope = self._receive = self._rules = None
            self._send = send_nothing

    def send(self, message: Any) -> Awaitable[None]:
        """End the transaction before the response starts; forward everything else unchanged."""
        at = self._at
        kind = message["type"]
        if kind == "http.response.start":
            if at is WAITING and not self._used:
                self._at = STARTED
            elif at is not STARTED and at is not COMPLETE:  # the server judges a second start
                return self._settle_and_send(message)
        elif at is STARTED:
            if kind in _WHOLE and ("more_body" not in message or not message["more_body"]):
                self._at = COMPLETE
        elif at is FAILED or at is ANSWERED:
            raise Answered
        forwarded: Awaitable[None] = self._send(message)
        return forwarded
