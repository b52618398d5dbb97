"""What a request and a websocket conversation share: settle before the start, and answer a failure.

Lives here: what becomes of a failure before, at and after the response start.
Must not know: how sessions are ended, or what any framework or server is called.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from asgi_sqla.answers import Answers
from asgi_sqla.unit import UnitOfWork

if TYPE_CHECKING:
    from collections.abc import Callable

    from asgiref.typing import ASGI3Application

    from asgi_sqla.verdict import Verdict

KEY = "asgi_sqla"
"""Where the ASGI scope holds its unit, for a second layer of the middleware to see."""

logger: logging.Logger = logging.getLogger("asgi_sqla")


@dataclass(frozen=True, slots=True)
class Rules:
    """What a middleware was configured with, as far as a request needs it."""

    app: ASGI3Application
    verdict: Verdict
    answers: Answers
    read_only: Callable[[Any], bool]
    retries: int
    replay_limit: int


class Answered(BaseException):
    """Unwinds an application whose response was replaced by ours; it never leaves the middleware.

    Not an ``Exception``: no error handler has anything to say in it, and whatever the framework does
    after a response, a background task say, must not be done.
    """


class Exchange:
    """One request or conversation, from the call of the application to its end."""

    _rules: Rules
    _scope: Any
    _receive: Any
    _send: Any
    _started = False
    _complete = False
    """Whether the response was sent to its end; a framework that gives one up may return as if all were well."""
    _failure: Exception | None = None
    """Why we answered in the application's place."""
    _answered = False
    _mapped = False

    @property
    def _unit(self) -> UnitOfWork:
        raise NotImplementedError

    async def _settle_and_send(self, message: Any) -> None:
        """End the transaction, and only then start the response: the application's, or ours."""
        if self._failure is not None:
            raise Answered
        try:
            commit = self._rules.verdict(self._scope, message)
            await self._unit.settle(commit)
        except Exception as exc:
            await self._answer(exc)
            raise Answered from exc
        except asyncio.CancelledError as exc:
            # The application may swallow it; a COMMIT that failed meanwhile stays failed all the same.
            self._failure = cast("Exception | None", exc.__cause__)
            raise
        self._started = True
        await self._send(message)

    async def _answer(self, failure: Exception) -> None:
        self._failure = failure
        self._answered = True
        await self._unit.close(commit=False, cause=failure)
        self._mapped = await self._rules.answers.give(failure, self._scope, self._receive, self._send)

    async def _finish(self, raised: BaseException | None) -> None:
        """End the unit, now that the application has returned or ``raised``."""
        unit = self._unit
        whole = self._complete and self._failure is None
        if raised is None and self._started and not whole and unit.sessions.in_transaction:
            logger.error("%s: its response was given up, so what was begun after its start is rolled back", unit)
        try:
            await unit.close(raised is None and self._started and whole, raised)
        except Exception as exc:
            self._surface(exc)
        if self._failure is not None:
            if raised is not None and not _is_of_ours(raised):
                raise raised
            if not self._answered:
                await self._answer(self._failure)
            if not self._mapped:
                self._surface(self._failure)
        elif raised is not None:
            await self._let_through(raised)

    async def _let_through(self, raised: BaseException) -> None:
        """Raise what the application raised, unless it is mapped to an answer that can still be given."""
        if not isinstance(raised, Exception):
            raise raised
        if self._started:
            self._surface(raised)
        elif self._rules.answers.knows(raised):
            await self._answer(raised)
        else:
            raise raised

    def _surface(self, failure: Exception) -> None:
        """Raise ``failure`` to the server, or log it where that would harm later requests.

        Every server that takes an exception after the response well states the ``spec_version`` it
        follows; daphne states none, and an exception then ends the loop that notices failures. (Those of
        websockets it closes.)
        """
        asgi = self._scope.get("asgi")
        if self._scope["type"] == "websocket" or asgi is None or "spec_version" in asgi:
            raise failure
        logger.error("%s failed", self._unit, exc_info=failure)


def _is_of_ours(raised: BaseException) -> bool:
    """Whether the application raised ``Answered``, or whatever it made of it."""
    if isinstance(raised, BaseExceptionGroup):
        return all(_is_of_ours(one) for one in raised.exceptions)
    return isinstance(raised, Exception | Answered)
