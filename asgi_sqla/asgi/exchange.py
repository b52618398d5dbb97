"""How far an exchange with a client is, and the rules that it goes by.

Holds: the stages of a request or a websocket, what a middleware was configured with, and what the log is told.
Must not know: what is done at a stage.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from asgi_sqla.asgi.answers import Answers
from asgi_sqla.asgi.verdict import Verdict
from asgi_sqla.session.outcome import Committed
from asgi_sqla.unit.unit import UnitOfWork

logger: logging.Logger = logging.getLogger("asgi_sqla")

KEY = "asgi_sqla"
"""Where the ASGI scope holds its unit, for a second layer of the middleware to see."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a middleware was configured with, as far as a request needs it."""

    app: Any
    verdict: Verdict
    answers: Answers
    read_only: Callable[[Any], bool] | None
    """None if no request does."""
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


def is_of_ours(raised: BaseException) -> bool:
    """Whether the application raised ``Answered``, or whatever it made of it."""
    if isinstance(raised, BaseExceptionGroup):
        return all(is_of_ours(one) for one in raised.exceptions)
    return isinstance(raised, Exception | Answered)


async def send_nothing(_message: Any) -> None:
    """Send to nobody: the application has returned, and its request is over."""


def tell_committed(unit: UnitOfWork, what: str, told: BaseException | None = None) -> None:
    """Say so in the log if a client is told of an error although something of ``unit`` is in a database for good.

    A doubt is not said again where ``told``, which is raised or logged, is what left it.
    """
    outcomes = [one.session.guard_outcome for one in unit._sessions.all if one.session.guard_writes]
    if any(one.in_doubt and one.error is not told for one in outcomes):
        logger.error("%s: %s, but a COMMIT of it is in doubt: nobody can tell whether it was applied", unit, what)
    elif by := [one.committed for one in outcomes if one.committed is not None]:
        # What the application did on purpose is its own affair.
        level = logging.INFO if set(by) == {Committed.APPLICATION} else logging.WARNING
        logger.log(level, "%s: %s, but work of it %s", unit, what, by[0].value)


def tell_given_up(unit: UnitOfWork) -> None:
    """Say so in the log if the application gave its response up with work of ``unit`` open."""
    if unit._sessions.in_transaction:
        logger.error("%s: its response was given up, so what was begun after its start is rolled back", unit)
