"""The stage of an exchange with a client, and the settings that apply to it.

Holds: the stages of a request or a websocket, the settings of a middleware, what of its failures is answered by them,
and the log lines about an exchange.
Must not know: what is done at a stage.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from asgi_sqla.engine.classification import chain, is_of_database
from asgi_sqla.session.outcome import Committed
from asgi_sqla.unit.cancellation import Finished
from asgi_sqla.unit.logs import ERROR, INFO, WARNING, tell
from asgi_sqla.unit.unit import UnitOfWork

if TYPE_CHECKING:
    from asgi_sqla.asgi.answers import Answers
    from asgi_sqla.asgi.stick import Stick
    from asgi_sqla.asgi.verdict import Verdict
    from asgi_sqla.engine.deadlines import Deadline

KEY = "asgi_sqla"
"""The key of the unit in the ASGI scope, where a second layer of the middleware finds it."""


class Rules(NamedTuple):
    """The settings of a middleware, as far as a request needs them."""

    app: Any
    verdict: Verdict
    answers: Answers
    read_only: Callable[[Any], bool] | None
    """None if no request is read-only."""
    stick: Stick | None
    parts: Verdict | None
    """Which responses are answers in parts; None if none is."""
    retries: int
    replay_limit: int
    deadline: Callable[[Any], Deadline | None] | None
    """Makes the deadline of an ASGI scope; None if none is configured."""
    given: Mapping[str, Any]
    """The settings as the user wrote them, for comparison."""

    def answerable(self, raised: Exception, unit: UnitOfWork) -> Exception | None:
        """Return the failure that has an answer: what the application has ``raised``, or one of the database."""
        if not self.answers:
            return None
        return raised if self.answers.knows(raised) else self._unhandled(raised, unit)

    def failed(self, start: Any, unit: UnitOfWork) -> Finished | None:
        """Return the failure of the database that has an answer, if the application ``start``s a 5xx because of it.

        Most frameworks make a 500 of an exception while they handle it, so Python says which one that is.
        """
        if not self.answers or start.get("status", 0) < 500:
            return None
        failure = self._unhandled(sys.exception(), unit)
        return None if failure is None else Finished(failure)

    def _unhandled(self, raised: BaseException | None, unit: UnitOfWork) -> Exception | None:
        """Return the first failure with an answer that nobody handled; tell of what the application ``raised`` instead.

        That is one that ``raised`` was made from, or one of a session, if nothing was rolled back since. The first is
        needed, because ``begin_nested()`` rolls back whether or not somebody catches the failure.
        """
        causes = [] if raised is None else [one for one in chain(raised) if is_of_database(one)]
        for failure in (*causes, *unit._sessions.failures(unhandled=True)):
            if isinstance(failure, Exception) and self.answers.knows(failure):
                if raised is not None and failure not in causes:
                    tell(WARNING, unit, "the application raised this after an error of the database", exc_info=raised)
                elif raised is not None and raised is not failure:
                    failure.add_note(f"the application raised {raised!r}")  # the log has the note with the failure
                return failure
        return None


class Stage(Enum):
    """The stage of an exchange."""

    WAITING = "no response has started"
    SETTLING = "the application has started a response, and its transaction is ending"
    STARTED = "its start was forwarded"
    PARTS = "its start was forwarded, and its reader takes each part of its body as an answer"
    COMPLETE = "its body was forwarded to the end"
    FAILED = "the application's response must not be sent, and nothing was sent instead"
    ANSWERED = "we answered instead of the application, or leave that to the next attempt"
    OVER = "the application has returned without starting a response"


WAITING, SETTLING, STARTED, PARTS, COMPLETE = Stage.WAITING, Stage.SETTLING, Stage.STARTED, Stage.PARTS, Stage.COMPLETE
FAILED, ANSWERED, OVER = Stage.FAILED, Stage.ANSWERED, Stage.OVER


class Answered(BaseException):
    """Unwinds an application whose response was replaced by ours; it never leaves the middleware.

    It is not an ``Exception``: no error handler must handle it, and work after a response, such as a background task,
    must not run.
    """


def is_of_ours(raised: BaseException) -> bool:
    """Return whether the application raised ``Answered``, or an exception that it made from it."""
    if isinstance(raised, BaseExceptionGroup):
        return all(is_of_ours(one) for one in raised.exceptions)
    return isinstance(raised, Exception | Answered)


async def send_nothing(_message: Any) -> None:
    """Send nothing: the application has returned, and its request has ended."""


def tell_committed(unit: UnitOfWork, what: str, told: BaseException | None = None) -> None:
    """Log it if a client gets an error although some work of ``unit`` was committed.

    A doubt is not logged again if ``told``, which is raised or logged, is its cause.
    """
    outcomes = [one.session.guard_outcome for one in unit._sessions.all if one.session.guard_writes]
    if any(one.in_doubt and one.error is not told for one in outcomes):
        tell(ERROR, unit, "%s, but its COMMIT is in doubt: nobody can tell whether it was applied", what)
    elif by := [one.committed for one in outcomes if one.committed is not None]:
        # A commit by the application itself was intended.
        level = INFO if set(by) == {Committed.APPLICATION} else WARNING
        tell(level, unit, "%s, but some of its work %s", what, by[0].value)


def tell_given_up(unit: UnitOfWork, since: str) -> None:
    """Log it if the application returned in the middle of its response, with work of ``unit`` open."""
    if unit._sessions.in_transaction:
        tell(ERROR, unit, "its response is incomplete, so the work after its %s is rolled back", since)
