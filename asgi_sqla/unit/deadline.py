"""The deadline of a unit of work.

Holds: which of two deadlines binds a unit, and whether a retry could still begin in time.
Must not know: how a deadline is kept, or who sets one.
"""

from __future__ import annotations

from contextvars import Token
from typing import TYPE_CHECKING, TypeAlias, cast

from asgi_sqla.engine.classification import ErrorKind
from asgi_sqla.engine.deadlines import Deadline, deadline_of
from asgi_sqla.session.transient import longest_pause
from asgi_sqla.unit.context import enter, inherited, outside

if TYPE_CHECKING:
    from asgi_sqla.unit.context import Unit

Until: TypeAlias = float | Deadline | None
"""Seconds from the moment that a unit opens, or a deadline that it shares with others."""


class Timed:
    """The part of a unit of work that has a deadline."""

    attempt = 1
    _deadline: Deadline | None = None
    """When its statements must have ended; None if nothing bounds them."""


def enter_until(unit: Timed, until: Until) -> Token[Unit | None]:
    """Make ``unit`` current until its own deadline, or that of the unit around it, and return what undoes that."""
    token = enter(cast("Unit", unit))
    around = cast("Timed | None", outside(token))
    own, outer = started(until), None if around is None else around._deadline
    if own is None or outer is None:
        unit._deadline = own or outer
    else:
        unit._deadline = own if own.at < outer.at else outer
    return token


def started(until: Until) -> Deadline | None:
    """Return the deadline, whose time begins now if it has not begun."""
    return until if until is None or isinstance(until, Deadline) else Deadline(until)


def allows_retry(unit: Timed, kind: ErrorKind) -> bool:
    """Return whether a retry of ``unit`` after an error of ``kind`` can begin before its deadline."""
    deadline = unit._deadline
    return deadline is None or deadline.left > longest_pause(unit.attempt, kind)


def _running() -> Deadline | None:
    unit = cast("Timed | None", inherited())
    return None if unit is None else unit._deadline


deadline_of.append(_running)
