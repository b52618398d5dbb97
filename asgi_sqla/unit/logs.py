"""The records of the log about a unit of work: each carries the unit's name and its outcome.

The levels have one rule. ERROR: work or a connection is lost, or may be, or the application cannot start. WARNING: a
client got an error, or something runs less well than it should, and nothing is lost that somebody was told is done.
INFO: what happens now and then in good order, such as a retry. DEBUG: why something is not done.

Holds: the form of a record, the levels, and the one word for what became of a unit's work.
Must not know: who writes a record, or why.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Iterable
from logging import DEBUG, ERROR, INFO, WARNING
from typing import TYPE_CHECKING, Any

from asgi_sqla.errors import STILL_IN_USE
from asgi_sqla.session.outcome import Outcome

if TYPE_CHECKING:
    from asgi_sqla.unit.report import UnitOutcome

__all__ = ["DEBUG", "ERROR", "INFO", "WARNING", "outcome_of", "tell", "tell_cancelled", "tell_in_use"]

logger: logging.Logger = logging.getLogger("asgi_sqla")


def outcome_of(outcomes: Iterable[Outcome], *, failed: bool = False, commit: bool | None = None) -> UnitOutcome:
    """Return one word for what became of the work of the sessions of one unit.

    ``failed`` if it was to be committed and could not be; ``commit`` is the last verdict, None if it is not known.
    """
    committed = rolled_back = False
    for one in outcomes:  # each report asks, and any() takes three times as long
        if one.in_doubt:
            return "in doubt"
        committed = committed or one.committed is not None
        rolled_back = rolled_back or one.rolled_back
    if failed:
        return "failed"
    if commit is False:
        return "rolled back"
    if committed:
        return "committed"
    return "rolled back" if rolled_back else "nothing"


def tell(level: int, unit: Any, message: str, *args: object, exc_info: BaseException | None = None) -> None:
    """Log ``message % args`` about a unit, after its name; or about a report, which is what is left of one."""
    if not logger.isEnabledFor(level):
        return
    outcome = getattr(unit, "outcome", None)
    if outcome is None:
        outcome = outcome_of(one.outcome for one in unit._sessions.all)
        if outcome == "nothing" and unit._sessions.in_transaction:
            outcome = "open"
    named, extra = f"%s: {message}", {"unit": unit.name, "outcome": outcome}
    logger.log(level, named, unit.name, *args, exc_info=exc_info, stacklevel=2, extra=extra)


def tell_in_use(unit: Any, sessions: Iterable[Any], cause: BaseException | None) -> None:
    """Log, once for the ``sessions`` of a unit, that one is in use at its end, which has the ``cause``.

    Where the thread of a cancelled ``def`` handler runs on, that is nobody's error: its work is rolled back as it
    should be, only later.
    """
    outcomes = [one.outcome for one in sessions]
    if not any(one.told_in_use for one in outcomes):
        tell(WARNING if isinstance(cause, CancelledError) else ERROR, unit, STILL_IN_USE)
    for one in outcomes:
        one.told_in_use = True


def tell_cancelled(unit: Any, cancelled: BaseException | None) -> None:
    """Log that the caller gets a cancellation although some work of ``unit`` was committed."""
    outcomes = [one.session.guard_outcome for one in unit._sessions.all]
    if cancelled is not None and any(one.committed or one.in_doubt for one in outcomes):
        level = ERROR if any(one.in_doubt for one in outcomes) else WARNING
        tell(level, unit, "cancelled while it ended, but some of its work was committed, or its COMMIT is in doubt")
