"""How a unit of work ends: the only room that commits, rolls back or closes a session.

The order is written once, as plain functions, for sync and async alike. Every step is taken, whatever the steps before
it raised. A KeyboardInterrupt, or an exception that a worker raises into its threads at a time limit, must not leave a
connection checked out or idle in a transaction.

Holds: the order of an end, and the four operations on a session.
Must not know: anything of a unit but its sessions, who is notified, or in which thread or task a step runs.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any

from sqlalchemy import util

from asgi_sqla.engine.drivers import FAILED, OPEN
from asgi_sqla.errors import SessionInUseError, UnitOfWorkDoomedError, UnitOfWorkEndedError, still_in_use
from asgi_sqla.session.guard import GuardedSession, running_loop
from asgi_sqla.session.outcome import DISCARDED, Committed
from asgi_sqla.unit.cancellation import CANCELLED_LIMIT
from asgi_sqla.unit.places import Step, give_up, start_off_the_loop
from asgi_sqla.unit.sessions import UnitSession

APPLICATION, UNIT = Committed.APPLICATION, Committed.UNIT

logger: logging.Logger = logging.getLogger("asgi_sqla")


class End:
    """The end of a unit: its sessions, the verdict, and what forbids a commit."""

    __slots__ = ("_commit", "_doom", "_sessions", "_unit")

    def __init__(
        self, unit: object, sessions: tuple[UnitSession, ...], commit: bool, doom: BaseException | None
    ) -> None:
        self._unit = unit
        self._sessions = sessions
        self._commit = commit
        self._doom = doom

    def start(self, *, closing: bool, cause: BaseException | None = None) -> Coroutine[Any, Any, None] | Future[None]:
        """Return what runs the end without blocking this thread; a call in a thread has already begun.

        ``closing`` also closes every session for good; ``cause`` is the exception that ends the unit.
        """
        end: Callable[[Step], None] = functools.partial(self.close, cause) if closing else self.settle
        loop = running_loop()
        for one in self._sessions:
            if loop is None or one.loop is not loop:
                return start_off_the_loop(end, self._sessions, inline, functools.partial(self._fail, end))
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
        if len(done) < len(active):
            failure = self._roll_back(active[len(done) :], step) or failure
        if failure is not None:
            if done:
                failure.add_note(self._partial(done, active))
            raise failure

    def close(self, cause: BaseException | None, step: Step) -> None:
        """Settle, then close every session for good, whatever happened before."""
        failures: list[BaseException] = []
        in_use = _in_use(self._sessions)  # checked now, as its call may return while the others end
        try:
            self.settle(step)
        except BaseException as exc:
            failures.append(exc)
        for one in self._sessions:
            try:
                if one.session.in_transaction():
                    give_up(step, _end, one)
                elif not _end(one.session):
                    in_use = True
            except BaseException as exc:
                failures.append(exc)
        if in_use or failures:
            self._tell(failures, in_use, cause)

    def abandon(self) -> None:
        """Close every session where nothing can be awaited, because the event loop is gone.

        Their connections are closed too.
        """
        for one in self._sessions:
            try:
                one.session.guard_end(_close if one.async_session is None else _give_up)
            except Exception:
                logger.exception("%s: a session could not be closed after its event loop had ended", self._unit)

    def cut(self) -> bool:
        """Cut every connection that is still waited for; return whether there was one."""
        connections = [one for session in self._sessions for one in session.outcome.connections]
        cut = [one.cut() for one in connections]
        if any(cut):
            logger.error(
                "%s: the database has not answered COMMIT or ROLLBACK for %g seconds; its connection is cut, and %s",
                self._unit,
                CANCELLED_LIMIT,
                "the COMMIT is in doubt: nobody can tell whether it was applied"
                if any(one.outcome.in_doubt for one in self._sessions)
                else "its work is rolled back",
            )
        return any(cut)

    def _commit_all(self, active: list[UnitSession], step: Step, done: list[UnitSession]) -> None:
        """Raise what forbids a commit, or commit each session and add it to ``done``."""
        if self._doom is not None:
            raise UnitOfWorkDoomedError(
                f"{self._unit} cannot commit, because a scope that had joined it ended with an exception: "
                f"{self._doom!r}"
            ) from self._doom
        if _in_use(active):
            raise SessionInUseError(still_in_use(self._unit))
        for one in self._sessions:
            if one.session.guard_outcome.state is DISCARDED:
                raise one.session.guard_outcome.objection()
        # The first COMMIT cannot be undone, so every session is checked before it.
        for one in active if len(active) > 1 else ():
            step(_prepare, one)
        for one in active:
            step(_commit, one)
            done.append(one)

    def _roll_back(self, sessions: list[UnitSession], step: Step) -> BaseException | None:
        """Roll back each; log database errors, and return the first failure that is not one."""
        fatal: BaseException | None = None
        for one in sessions:
            try:
                give_up(step, _roll_back, one)
            except UnitOfWorkEndedError:  # the call that is running on it will roll it back
                continue
            except SessionInUseError as exc:  # otherwise the call that is running could still commit it
                give_up(step, _end, one)
                logger.error("%s: ROLLBACK failed on %r", self._unit, one.database, exc_info=exc)
            except Exception:
                logger.exception("%s: ROLLBACK failed on %r", self._unit, one.database)
            except BaseException as exc:
                fatal = fatal or exc
        return fatal

    def _tell(self, failures: list[BaseException], in_use: bool, cause: BaseException | None) -> None:
        """Raise the first failure, unless the unit ends with ``cause`` anyway; log the failures that this hides."""
        fatal = next((one for one in failures if not isinstance(one, Exception)), None)
        raised = fatal or (failures[0] if failures and cause is None else None)
        for failure in failures:
            if failure is not raised:
                logger.error("%s: close failed", self._unit, exc_info=failure)
        if in_use and not isinstance(raised, SessionInUseError):
            logger.error("%s", still_in_use(self._unit))
            if cause is not None:
                cause.add_note(still_in_use(self._unit))
        if raised is not None:
            raise raised

    def _partial(self, committed: list[UnitSession], active: list[UnitSession]) -> str:
        done = ", ".join(repr(one.database) for one in committed)
        lost = ", ".join(repr(one.database) for one in active[len(committed) :])
        return f"{self._unit}: COMMIT failed; these had been committed: {done}; these are rolled back: {lost}"


def inline(operation: Callable[[GuardedSession], object], one: UnitSession) -> object:
    """Take a step in this thread, now."""
    return operation(one.session)


def end_idle(unit: object, sessions: tuple[UnitSession, ...], cause: BaseException | None) -> None:
    """Do what ``End.close`` does for sessions without a transaction, which is the usual end of a request."""
    failures: list[BaseException] = []
    in_use = False
    for one in sessions:
        try:
            in_use = not one.session.guard_end(_close) or in_use
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


def _commit(session: GuardedSession) -> None:
    outcome = session.guard_outcome
    if outcome.streams:
        session.guard_close_streams()
    before, outcome.committed = outcome.committed, None
    try:
        session.commit()
    except Exception:
        raise
    except BaseException:  # it may have been raised anywhere: the driver knows whether COMMIT was sent
        if outcome.committing and not _is_open(session):
            outcome.in_doubt = True
        raise
    finally:  # logs report the unit's own commit, whatever the application committed before
        by = session.guard_outcome.committed
        outcome.committed = UNIT if by is APPLICATION else by or before


def _prepare(session: GuardedSession) -> None:
    session.flush()
    session.guard_outcome.check()


def _is_open(session: GuardedSession) -> bool:
    return all(one.word() in (OPEN, FAILED) for one in session.guard_outcome.connections)


def _roll_back(session: GuardedSession) -> None:
    """Roll back; if that fails, the connection is in doubt and leaves the pool."""
    try:
        session.guard_outcome.look()
        session.guard_close_streams(discarding=True)
        session.rollback()
    except (SessionInUseError, UnitOfWorkEndedError):  # the call that is using it ends it
        raise
    except BaseException:
        session.guard_give_up()
        raise


def _end(session: GuardedSession) -> bool:
    """Close for good now and return True; or return False, and the running call does it when it returns."""
    return session.guard_end(_close)


def _close(session: GuardedSession) -> None:
    try:
        if session.in_transaction():
            _roll_back(session)
    except Exception:
        logger.exception("ROLLBACK failed on a session whose unit of work has ended")
    finally:
        session.guard_close()


def _give_up(session: GuardedSession) -> None:
    for connection in session.guard_outcome.connections:  # its driver would have to await something to close it
        connection.cut()
    session.guard_give_up()
    session.guard_close()
