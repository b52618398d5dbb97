"""What a request and a websocket have in common: the end of their unit before a response starts, and what fails then.

Holds: the settling before the start, the answer to a failure, and the end after the application has returned.
Must not know: how sessions are ended, or what is a request and what a websocket.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import anyio

from asgi_sqla.asgi.exchange import (
    ANSWERED,
    COMPLETE,
    FAILED,
    OVER,
    PARTS,
    SETTLING,
    STARTED,
    WAITING,
    Answered,
    Stage,
    is_of_ours,
    tell_committed,
    tell_given_up,
)
from asgi_sqla.asgi.verdict import event_streams
from asgi_sqla.errors import ended
from asgi_sqla.unit.cancellation import FINE, Finished
from asgi_sqla.unit.logs import ERROR, tell
from asgi_sqla.unit.unit import UnitOfWork

CONTENT_TYPE = len(b"content-type")
EVENT_STREAM = b"text/event-stream"


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
    _start: Any = None
    """The start message of the application, while its response may still turn out to be something else."""
    _committing = 0
    """How many tasks wait for a commit before a part of the body."""

    @property
    def _unit(self) -> UnitOfWork:
        raise NotImplementedError

    async def _settle_and_send(self, message: Any) -> None:  # noqa: C901  # as for ``send``
        """End the transaction, and then start the application's response, or ours."""
        if self._at is not WAITING:
            self._check_start(message)
        self._at = SETTLING
        try:
            try:
                commit = self._rules.verdict(self._scope, message)
                in_parts = self._rules.parts is not None
                if self._rules.parts is event_streams:  # in line: a call would cost every used request more
                    in_parts = False
                    for name, value in message.get("headers") or ():
                        in_parts = in_parts or (len(name) == CONTENT_TYPE and value[:17].lower() == EVENT_STREAM)
                in_parts = in_parts and self._is_in_parts(message)
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
            self._at, self._start = PARTS if in_parts else STARTED, None
        finally:
            if self._at is SETTLING:
                self._at = WAITING
            if self._settled is not None:
                self._settled.set()
        await self._send(message)

    def _is_in_parts(self, _start: Any) -> bool:
        """Return whether the response that starts is an answer in parts."""
        return False

    def _check_start(self, message: Any) -> None:
        """Raise if this start must not be sent."""
        if self._at is FAILED and not self._rules.verdict(self._scope, message):
            # The application handled the cancellation, of a time limit for example, and answers an error: also true.
            tell(ERROR, self._unit, "answered %s, as COMMIT failed", message.get("status"), exc_info=self._failure)
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
        self._mapped = await self._rules.answers.give(failure, self._scope, self._receive, self._send, self._unit)
        finished.check()

    async def _finish(self, raised: BaseException | None) -> None:
        """End the unit after the application has returned or ``raised``."""
        if self._at is SETTLING or self._committing:  # a task that outlives the application sends the start or a part
            self._settled = anyio.Event()
            await self._settled.wait()
        unit, at = self._unit, self._at
        if at is WAITING:
            self._at = OVER
        elif (at is STARTED or at is PARTS) and raised is None:
            tell_given_up(unit, "start" if at is STARTED else "last part")
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
            tell(ERROR, self._unit, "failed, and then the application raised another error", exc_info=failure)
            raise raised
        if self._at is not ANSWERED:
            await self._answer(failure)
        if not self._mapped:
            self._surface(failure)

    async def _let_through(self, raised: BaseException) -> None:
        if not isinstance(raised, Exception):
            raise raised
        if self._at in (STARTED, PARTS, COMPLETE):
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
        tell(ERROR, self._unit, "failed", exc_info=failure)
