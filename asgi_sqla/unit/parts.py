"""A commit in the middle of a unit, while other tasks may be using its sessions.

A running statement is neither cut nor committed: its call is waited for, and the next call on its session waits until
the commit is done.

Holds: how long a commit waits for the calls of others, and which sessions it leaves alone.
Must not know: why the unit commits now.
"""

from __future__ import annotations

import functools
from typing import Any

import anyio

from asgi_sqla.engine.drivers import is_read_out
from asgi_sqla.errors import OWN_SCOPE, SessionInUseError
from asgi_sqla.session.gate import PAUSE, Gate
from asgi_sqla.unit.cancellation import Finished
from asgi_sqla.unit.commit import End
from asgi_sqla.unit.places import Step
from asgi_sqla.unit.sessions import UnitSession

IN_USE_LIMIT = 10.0
"""Seconds that a commit waits for the calls that other tasks and threads are making."""


class Between(End):
    """An end of what is open in a unit that goes on; where a session is in use it does nothing."""

    __slots__ = ("_gate",)

    def __init__(self, unit: Any, gate: Gate, sessions: tuple[UnitSession, ...], *, commit: bool) -> None:
        super().__init__(unit, sessions, commit and not unit._rollback_only, unit._doom)
        self._gate = gate
        self.patient = True

    def settle(self, step: Step) -> None:
        """Do what ``End.settle`` does, inside the gate."""
        super().settle(lambda operation, one: step(functools.partial(self._gate.let_through, operation), one))

    def _commit_all(self, active: list[UnitSession], step: Step, done: list[UnitSession]) -> None:
        try:
            super()._commit_all(active, step, done)
        except SessionInUseError:  # a thread was faster
            self.busy = True
            raise


async def commit_part(unit: Any) -> Finished:
    """Commit what is open in ``unit``, and call its callbacks; return how that ended. Its sessions stay usable.

    A session stays as it is while a result of it is being read in parts, if it has nothing to commit.
    """
    sessions = tuple(one for one in unit._sessions.all if not is_only_read(one))
    # Another task may commit before its own part; what it holds up is only this part, and cancellations end the wait.
    while any(one.session.guard_gate is not None for one in sessions):  # noqa: ASYNC110  # threads wait at it too
        await anyio.sleep(PAUSE)
    with Gate([one.session for one in sessions]) as gate:
        return await _commit_when_free(unit, gate, sessions)


async def settle_beside(unit: Any, commit: bool) -> Finished:
    """Settle a unit whose session another task is using; return how that ended.

    If the other task may be making the body of the response, its call is waited for. A call that only reads can be
    committed. One that has written may be half of some work, so then the unit fails; but a response in parts goes on,
    because its next part would commit that half, too.
    """
    if not unit._may_stream():
        finished: Finished = await unit._run(unit._end(commit), commit, closing=False, cause=None)
        return finished
    sessions = unit._sessions.all
    used = [(one, one.session.guard_left) for one in sessions if one.session.guard_lock.locked()]
    with Gate([one.session for one in sessions]) as gate:
        free = await _until_free(sessions, anyio.current_time() + IN_USE_LIMIT)
        left = tuple(one for one in sessions if not is_only_read(one))
        wrote = any(one.outcome.wrote and one.outcome.wrote_after == before for one, before in used)
        if not free or ((wrote or any(is_reading(one) for one in left)) and not unit._in_parts):
            return _fail(unit, body_in_use(unit))
        return await _commit_when_free(unit, gate, left)


async def _commit_when_free(unit: Any, gate: Gate, sessions: tuple[UnitSession, ...]) -> Finished:
    deadline = anyio.current_time() + IN_USE_LIMIT
    while True:
        end = Between(unit, gate, sessions, commit=True)
        finished: Finished = await unit._run(end, True, closing=False, cause=None)
        if not end.busy:
            if unit._observation is not None:
                unit._observation.note_end(True, None, finished.failure)
            return finished
        if finished.cancelled is not None:  # and nothing was done
            raise finished.cancelled
        if not await _until_free(sessions, deadline):
            return _fail(unit, _busy(unit))


def _fail(unit: Any, message: str) -> Finished:
    failure = SessionInUseError(message)
    if unit._observation is not None:
        unit._observation.note_end(True, None, failure)
    return Finished(failure)


async def _until_free(sessions: tuple[UnitSession, ...], deadline: float) -> bool:
    """Wait until no call is running on ``sessions``; return False if one still is at the ``deadline``."""
    while any(one.session.guard_lock.locked() for one in sessions):
        if anyio.current_time() > deadline:
            return False
        await anyio.sleep(PAUSE)
    return True


def is_only_read(one: UnitSession) -> bool:
    """Return whether a result of a session is being read in parts, and nothing else was done on it."""
    session, outcome = one.session, one.outcome
    if outcome.wrote or session.new or session.dirty or session.deleted:
        return False
    return is_reading(one)


def is_reading(one: UnitSession) -> bool:
    """Return whether a result of a session is being read in parts."""
    return any(not is_read_out(context.cursor) for context in list(one.outcome.streams))


def body_in_use(unit: object) -> str:
    """Return the message about a body that is made while its response starts."""
    return (
        f"{unit}: its response started while another task or thread was using one of its sessions, and what that "
        "did cannot be told from the rest, so all is rolled back. A BaseHTTPMiddleware inside this "
        "middleware makes a streamed body in such a task. Add it outside of this middleware, or write it as a plain "
        f"ASGI middleware; or let the body open its own unit of work: {OWN_SCOPE}"
    )


def _busy(unit: object) -> str:
    return (
        f"{unit}: a task or thread was still using one of its sessions after {IN_USE_LIMIT:g} seconds, so a part of "
        f"its response could not be committed and was not sent. Let that task open its own unit of work: {OWN_SCOPE}"
    )
