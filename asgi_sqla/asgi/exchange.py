"""What a request and a websocket share: the transaction ends before the start, and a failure is answered.

Holds: the stages of an exchange, and what becomes of a failure before, at and after the response start.
Must not know: how sessions are ended, or what any framework or server is called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import anyio

from asgi_sqla.asgi.answers import Answers
from asgi_sqla.errors import ended
from asgi_sqla.session.outcome import Committed
from asgi_sqla.unit.cancellation import Finished
from asgi_sqla.unit.unit import UnitOfWork

if TYPE_CHECKING:
    from asgi_sqla.asgi.verdict import Verdict

KEY = "asgi_sqla"
"""Where the ASGI scope holds its unit, for a second layer of the middleware to see."""

logger: logging.Logger = logging.getLogger("asgi_sqla")


@dataclass(frozen=True, slots=True)
class Rules:
    """What a middleware was configured with, as far as a request needs it."""

    app: Any
    verdict: Verdict
    answers: Answers
    read_only: Callable[[Any], bool]
    retries: int
    replay_limit: int
    given: tuple[Any, ...]
    """The same as the user wrote it, to be compared."""


class Stage(Enum):
    """How far an exchange is."""

    WAITING = "no response was started"
    SETTLING = "the application has started one, and its transaction is being ended"
    STARTED = "its start was forwarded"
    COMPLETE = "its body was forwarded to the end"
    FAILED = "the application's response is not to be sent, and nothing was sent in its place"
    ANSWERED = "we answered in the application's place, or left that to the next attempt"
    OVER = "the application has returned without starting one"


WAITING, SETTLING, STARTED, COMPLETE = Stage.WAITING, Stage.SETTLING, Stage.STARTED, Stage.COMPLETE
FAILED, ANSWERED, OVER = Stage.FAILED, Stage.ANSWERED, Stage.OVER


class Answered(BaseException):
    """Unwinds an application whose response was replaced by ours; it never leaves the middleware.

    Not an ``Exception``: no error handler has anything to say in it, and whatever the framework does
    after a response, a background task say, must not be done.
    """


class Exchange:
    """One request or websocket, from the call of the application to its end."""

    _rules: Any
    _scope: Any
    _receive: Any
    _send: Any
    _at: Stage = WAITING
    _failure: Exception | None = None
    """Why we answer in the application's place."""
    _mapped = False
    """Whether ``error_responses`` had an answer for it, so that it need not be raised to the server."""
    _settled: anyio.Event | None = None
    """Set when what is being settled is, for an application that has ended meanwhile."""

    @property
    def _unit(self) -> UnitOfWork:
        raise NotImplementedError

    async def _settle_and_send(self, message: Any) -> None:
        """End the transaction, and only then start the response: the application's, or ours."""
        if self._at is FAILED or self._at is ANSWERED:
            raise Answered
        if self._at is not WAITING:  # a task of an application that has raised or returned: its work is rolled back
            raise ended(self._unit)
        self._at = SETTLING
        try:
            await self._settle_start(message)
        finally:
            if self._at is SETTLING:
                self._at = WAITING
            if self._settled is not None:
                self._settled.set()
        await self._send(message)

    async def _settle_start(self, message: Any) -> None:
        unit = self._unit
        try:
            commit = self._rules.verdict(self._scope, message)
            finished = await self._settle_for(commit)
        except Exception as exc:  # the verdict's own
            await self._answer(exc)
            raise Answered from exc
        if isinstance(finished.failure, Exception):
            # The application may swallow a cancellation; a COMMIT that failed meanwhile stays failed all the same.
            if finished.cancelled is not None:
                self._failure, self._at = finished.failure, FAILED
                raise finished.cancelled
            await self._answer(finished.failure)
            raise Answered from finished.failure
        finished.check()
        if not commit:
            self._tell_committed(unit, f"answered {message.get('status')}")
        self._at = STARTED

    async def _settle_for(self, commit: bool) -> Finished:
        return await self._unit._settle(commit)

    def _tell_committed(self, unit: UnitOfWork, what: str) -> None:
        """Say so in the log if a client is told of an error although something is in a database for good."""
        outcomes = [one.outcome for one in unit._sessions.all if one.session.guard_writes]
        if any(one.in_doubt for one in outcomes):
            logger.error("%s: %s, but a COMMIT of it is in doubt: nobody can tell whether it was applied", unit, what)
        elif by := [one.committed for one in outcomes if one.committed is not None]:
            # What the application did on purpose is its own affair.
            level = logging.INFO if set(by) == {Committed.APPLICATION} else logging.WARNING
            logger.log(level, "%s: %s, but work of it had been committed before, by %s", unit, what, by[0].value)

    async def _answer(self, failure: Exception) -> None:
        self._failure, self._at = failure, ANSWERED
        finished = await self._unit._close(commit=False, cause=failure)
        self._mapped = await self._rules.answers.give(failure, self._scope, self._receive, self._send)
        finished.check()

    async def _finish(self, raised: BaseException | None) -> None:
        """End the unit, now that the application has returned or ``raised``."""
        await self._wait_for_settling()
        unit, at = self._unit, self._at
        if at is WAITING:
            self._at = OVER
        elif at is STARTED and raised is None and unit._sessions.in_transaction:
            logger.error("%s: its response was given up, so what was begun after its start is rolled back", unit)
        finished = await unit._close(raised is None and at is COMPLETE, raised)
        if at is WAITING:
            self._tell_committed(unit, f"{type(raised).__name__} left it" if raised else "returned without an answer")
        if finished.failure is not None:
            self._surface(finished.failure)
        if self._failure is not None:
            await self._finish_failed(raised, self._failure)
        elif raised is not None:
            await self._let_through(raised)
        if finished.cancelled is not None:
            raise finished.cancelled

    async def _wait_for_settling(self) -> None:
        """Wait for a task that the application has left behind, which is starting the response."""
        if self._at is SETTLING:
            self._settled = anyio.Event()
            await self._settled.wait()

    async def _finish_failed(self, raised: BaseException | None, failure: Exception) -> None:
        if raised is not None and not _is_of_ours(raised):
            raise raised
        if self._at is not ANSWERED:
            await self._answer(failure)
        if not self._mapped:
            self._surface(failure)

    async def _let_through(self, raised: BaseException) -> None:
        """Raise what the application raised, unless it is mapped to an answer that can still be given."""
        if not isinstance(raised, Exception):
            raise raised
        if self._at in (STARTED, COMPLETE):
            self._surface(raised)
        elif self._rules.answers.knows(raised):
            await self._answer(raised)
        else:
            raise raised

    def _surface(self, failure: BaseException) -> None:
        """Raise ``failure`` to the server, or log it where that would harm later requests.

        Every server that takes an exception after the response well states the ``spec_version`` it
        follows; daphne states none, and an exception then ends the loop that notices failures. (Those of
        websockets it closes.)
        """
        asgi = self._scope.get("asgi")
        told = self._scope["type"] == "websocket" or asgi is None or "spec_version" in asgi
        if told or not isinstance(failure, Exception):
            raise failure
        logger.error("%s failed", self._unit, exc_info=failure)


def _is_of_ours(raised: BaseException) -> bool:
    """Whether the application raised ``Answered``, or whatever it made of it."""
    if isinstance(raised, BaseExceptionGroup):
        return all(_is_of_ours(one) for one in raised.exceptions)
    return isinstance(raised, Exception | Answered)
