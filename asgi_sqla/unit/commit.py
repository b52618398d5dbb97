"""How a unit of work ends: the order in which its sessions commit or roll back, and close.

The order is written once, as plain functions, for sync and async alike. Every step is taken, whatever the steps before
it raised. A KeyboardInterrupt, or an exception that a worker raises into its threads at a time limit, must not leave a
connection checked out or idle in a transaction.

Holds: the order of an end, and what forbids a commit.
Must not know: anything of a unit but its sessions, who is notified, or in which thread or task a step runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy import util

from asgi_sqla.errors import STILL_IN_USE, SessionInUseError, UnitOfWorkDoomedError, UnitOfWorkEndedError
from asgi_sqla.session.guard import running_loop
from asgi_sqla.session.outcome import DISCARDED
from asgi_sqla.unit import operations
from asgi_sqla.unit.cancellation import CANCELLED_LIMIT, Finished
from asgi_sqla.unit.logs import ERROR, tell, tell_in_use
from asgi_sqla.unit.places import Step, end_readers_at_once, give_up, inline, start_off_the_loop
from asgi_sqla.unit.sessions import UnitSession

if TYPE_CHECKING:
    from asgi_sqla.unit.cancellation import Running
    from asgi_sqla.unit.observed import Observing

CUT = "the database has not answered COMMIT or ROLLBACK for %g seconds; its connection is cut, and %s"
IN_DOUBT = "the COMMIT is in doubt: nobody can tell whether it was applied"


class End:
    """The end of a unit: its sessions, the verdict, and what forbids a commit.

    One that is ``patient`` does nothing if a session is in use, and is ``busy`` then.
    """

    __slots__ = ("_cause", "_commit", "_doom", "_observation", "_sessions", "_unit", "busy", "patient")

    def __init__(
        self,
        unit: object,
        sessions: tuple[UnitSession, ...],
        commit: bool,
        doom: BaseException | None,
        observation: Observing | None = None,
    ) -> None:
        self._unit = unit
        self._sessions = sessions
        self._commit = commit
        self._doom = doom
        self._observation = observation
        """What is told how it went."""
        self._cause: BaseException | None = None
        """The exception that ends the unit."""
        self.busy: bool = False
        self.patient: bool = False

    def start(
        self, *, closing: bool, cause: BaseException | None = None
    ) -> Coroutine[Any, Any, None] | Running | Finished:
        """Return what runs the end without blocking this thread; a call in a thread has already begun.

        An end that waits for nothing has already ended.

        ``closing`` also closes every session for good; ``cause`` is the exception that ends the unit.
        """
        end: Callable[[Step], None] = functools.partial(self.close, cause) if closing else self.settle
        loop = running_loop()
        for one in self._sessions:
            if loop is None or one.loop is not loop:
                from asgi_sqla.unit.at_once import end_here  # only who has sync sessions pays

                begun = end_here(end, self._sessions, loop)
                if begun is not None:
                    return begun
                return start_off_the_loop(end, self._sessions, functools.partial(self._fail, end))
        return util.greenlet_spawn(end, inline)

    def _fail(self, end: Callable[[Step], None], failure: Exception) -> None:
        """Roll back, and raise ``failure`` instead of a commit that cannot be run."""
        committing, self._commit = self._commit, False
        end(inline)
        if committing:
            raise failure

    def settle(self, step: Step) -> None:
        """Commit every open transaction in the order of first use, or roll every one back, each as a ``step``."""
        active = [one for one in self._sessions if one.session.in_transaction()]
        failure: BaseException | None = None
        done: list[UnitSession] = []
        try:
            if self._commit:
                self._commit_all(active, step, done)
        except BaseException as exc:
            failure = exc
        for one in () if self._commit else self._sessions:
            one.session.guard_outcome.forgive()
        if len(done) < len(active) and not self.busy:
            failure = self._roll_back([one for one in active if one not in done], step) or failure
        if self._observation is not None and (active or failure is not None) and not self.busy:
            self._observation.note_end(self._commit, self._cause, failure)
        if failure is not None:
            if done:
                failure.add_note(self._partial(done, active))
            raise failure

    def close(self, cause: BaseException | None, step: Step) -> None:
        """Settle, then close every session for good, whatever happened before."""
        failures: list[BaseException] = []
        self._cause = cause
        in_use = _in_use(self._sessions)  # checked now, as its call may return while the others end
        try:
            self.settle(step)
        except BaseException as exc:
            failures.append(exc)
        for one in self._sessions:
            try:
                if one.session.in_transaction():
                    give_up(step, operations.end, one)
                elif not operations.end(one.session):
                    in_use = True
            except BaseException as exc:
                failures.append(exc)
        if in_use or failures:
            self._tell(failures, in_use, cause)

    def abandon(self) -> None:
        """Close every session where nothing can be awaited, because the event loop is gone.

        Their connections are closed too.
        """
        if self._observation is not None and any(one.session.in_transaction() for one in self._sessions):
            self._observation.note_end(False, self._cause, None)
        for one in self._sessions:
            try:
                if one.session.guard_awaits:
                    operations.leave(one.session)
                one.session.guard_end(operations.close if one.async_session is None else operations.give_up)
            except Exception as exc:
                tell(ERROR, self._unit, "a session could not be closed after its event loop had ended", exc_info=exc)

    def cut(self) -> bool:
        """Cut every connection that is still waited for; return whether there was one."""
        cut = [one.cut() for session in self._sessions for one in session.outcome.connections]
        if any(cut):
            doubt = any(one.outcome.in_doubt for one in self._sessions)
            tell(ERROR, self._unit, CUT, CANCELLED_LIMIT, IN_DOUBT if doubt else "its work is rolled back")
        return any(cut)

    def _commit_all(self, active: list[UnitSession], step: Step, done: list[UnitSession]) -> None:
        """Commit each session and add it to ``done``."""
        self._check(active)
        # The first COMMIT cannot be undone, so every session is checked before it.
        if len(active) > 1:
            for one in active:
                step(operations.prepare, one)
            end_readers_at_once(operations.commit, active, done)
        for one in active:
            if one not in done:
                step(operations.commit, one)
                done.append(one)

    def _check(self, active: list[UnitSession]) -> None:
        """Raise what forbids a commit."""
        if self._doom is not None:
            raise UnitOfWorkDoomedError(
                f"{self._unit} cannot commit, because a scope that had joined it ended with an exception: "
                f"{self._doom!r}"
            ) from self._doom
        if _in_use(active):
            self.busy = self.patient
            for one in active:  # what is raised is not logged as well
                one.outcome.told_in_use = not self.busy
            raise SessionInUseError(f"{self._unit}: {STILL_IN_USE}")
        for one in self._sessions:
            if one.session.guard_outcome.state is DISCARDED:
                raise one.session.guard_outcome.objection()

    def _roll_back(self, sessions: list[UnitSession], step: Step) -> BaseException | None:
        """Roll back each; log database errors, and return the first failure that is not one."""
        fatal: BaseException | None = None
        for one in sessions:
            try:
                give_up(step, operations.roll_back, one)
            except UnitOfWorkEndedError:  # the call that is running on it will roll it back
                continue
            except SessionInUseError:  # otherwise the call that is running could still commit it
                give_up(step, operations.end, one)
                tell_in_use(self._unit, self._sessions, self._cause)
            except Exception as exc:
                tell(ERROR, self._unit, "ROLLBACK failed on %r", one.database, exc_info=exc)
            except BaseException as exc:
                fatal = fatal or exc
        return fatal

    def _tell(self, failures: list[BaseException], in_use: bool, cause: BaseException | None) -> None:
        """Raise the first failure, unless the unit ends with ``cause`` anyway; log the failures that this hides."""
        fatal = next((one for one in failures if not isinstance(one, Exception)), None)
        raised = fatal or (failures[0] if failures and cause is None else None)
        for failure in failures:
            if failure is not raised and not isinstance(failure, SessionInUseError):
                tell(ERROR, self._unit, "close failed", exc_info=failure)
        if in_use and not isinstance(raised, SessionInUseError):
            tell_in_use(self._unit, self._sessions, self._cause)
            if cause is not None:
                cause.add_note(f"{self._unit}: {STILL_IN_USE}")
        if raised is not None:
            raise raised

    def _partial(self, committed: list[UnitSession], active: list[UnitSession]) -> str:
        done = ", ".join(repr(one.database) for one in committed)
        lost = ", ".join(repr(one.database) for one in active if one not in committed)
        return f"{self._unit}: COMMIT failed; these had been committed: {done}; these are rolled back: {lost}"


def end_idle(unit: object, sessions: tuple[UnitSession, ...], cause: BaseException | None) -> None:
    """Do what ``End.close`` does for sessions without a transaction, which is the usual end of a request."""
    failures: list[BaseException] = []
    in_use = False
    for one in sessions:
        try:
            in_use = not one.session.guard_end(operations.close) or in_use
        except BaseException as exc:
            failures.append(exc)
    if in_use or failures:
        End(unit, sessions, False, None)._tell(failures, in_use, cause)


def _in_use(sessions: Iterable[UnitSession]) -> bool:
    """Return whether a call is running on one of the sessions that are in a transaction."""
    for one in sessions:  # called twice in each unit, and any() is slower
        if one.session.guard_lock.locked() and not one.session.guard_is_over and one.session.in_transaction():
            return True
    return False
