"""The operations on a session that end its transaction or the session: the only room that does any of them.

Holds: commit, and what is less but does the same; what comes before the COMMITs of several sessions; rollback, and the
ways to close.
Must not know: the order of an end, or in which thread or task an operation runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgi_sqla.engine.drivers import FAILED, OPEN
from asgi_sqla.errors import SessionInUseError, UnitOfWorkEndedError
from asgi_sqla.session.guard import GuardedSession
from asgi_sqla.session.listeners import note_commit
from asgi_sqla.session.outcome import Committed
from asgi_sqla.unit.logs import ERROR, tell


def commit(session: GuardedSession, end: Callable[[GuardedSession], None] | None = None) -> None:
    """Commit, or ``end`` the transaction by less if that does the same, and record who did."""
    outcome = session.guard_outcome
    if outcome.streams:
        session.guard_close_streams()
    before, outcome.committed = outcome.committed, None
    outcome.at_end = True
    try:
        session.commit() if end is None else end(session)
    except Exception:
        raise
    except BaseException:  # it may have been raised anywhere: the driver knows whether COMMIT was sent
        if outcome.committing and not all(one.word() in (OPEN, FAILED) for one in outcome.connections):
            outcome.in_doubt = True
        raise
    finally:
        outcome.at_end = False
        # Logs report the unit's own commit, whatever the application committed before.
        by = session.guard_outcome.committed
        outcome.committed = Committed.UNIT if by is Committed.APPLICATION else by or before


def release(session: GuardedSession) -> None:
    """Do what ``session.commit()`` does to what has only read, in a third of its time: give the connections back."""
    outermost = session._guard_enter()
    try:
        session.guard_outcome.check()
        transaction: Any = session.get_transaction()
        note_commit(session)
        transaction.close()
    finally:
        if outermost:
            session._guard_leave()


def prepare(session: GuardedSession) -> None:
    """Do what can be done before the first COMMIT of several, and raise what forbids them all."""
    session.flush()
    session.guard_outcome.check(prepared=True)


def roll_back(session: GuardedSession) -> None:
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


def end(session: GuardedSession) -> bool:
    """Close for good now and return True; or return False, and the running call does it when it returns."""
    return session.guard_end(close)


def close(session: GuardedSession) -> None:
    """Close for good; what is still open is rolled back."""
    try:
        if session.in_transaction():
            roll_back(session)
    except Exception as exc:
        tell(ERROR, session.guard_unit, "ROLLBACK failed on a session after the end", exc_info=exc)
    finally:
        session.guard_close()


def give_up(session: GuardedSession) -> None:
    """Close for good without a word to the server, by closing the connections."""
    for connection in session.guard_outcome.connections:  # its driver would have to await something to close it
        connection.cut()
    session.guard_give_up()
    session.guard_close()


def leave(session: GuardedSession) -> None:
    """Close the connections of a session that was ending on an event loop which is gone: its end will never go on."""
    for one in session.guard_outcome.connections:
        one.connection.invalidate()
