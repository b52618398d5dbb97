"""The one room of listeners: what SQLAlchemy reports of a session's transaction, one function for each event.

Each function keeps the written order: it updates the outcome first, then it calls the hooks of the unit. Nothing else
feeds an outcome, so the order does not depend on the order of imports.

Holds: which events are used, and who is notified in which order.
Must not know: what is decided on an outcome.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any, cast
from weakref import WeakSet, ref

import sqlalchemy
from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect, ExceptionContext
from sqlalchemy.exc import IntegrityError, ResourceClosedError
from sqlalchemy.orm import Session, SessionTransaction

from asgi_sqla.engine import read_only
from asgi_sqla.engine.classification import is_spent, sqlstate_of
from asgi_sqla.engine.drivers import DRIVERS
from asgi_sqla.errors import BlockingSessionWarning
from asgi_sqla.session.guard import GuardedSession, running_loop
from asgi_sqla.session.outcome import Committed, Outcome
from asgi_sqla.session.read_only import ReadOnlySession, refuse_flush
from asgi_sqla.session.transient import ends_transaction
from asgi_sqla.session.watched import Watched

IN_DOUBT = "the connection was lost during COMMIT: nobody can tell whether it was applied"
"""A note on an error, for its reader; no decision depends on it."""

APPLICATION = Committed.APPLICATION

blocking_warnings: list[bool] = [True]
"""Whether a sync session on an event loop causes a warning; ``asgi_sqla.testing`` switches it off for a while."""

_watched: dict[ref[Connection], ref[Watched]] = {}
"""Weak on both sides, so that a dropped session is freed with what it had open.

It is read before each statement, and so by nothing slower than C.
"""
_heard: WeakSet[Dialect] = WeakSet()


def _of(connection: Connection) -> Watched | None:
    found = _watched.get(ref(connection))
    return None if found is None else found()


def connections_in_use() -> list[Watched]:
    """Return every connection in the transaction of a session, of any database."""
    return [watched for one in list(_watched.values()) if (watched := one()) is not None]


def is_committed_by_session(connection: Connection) -> bool:
    """Return whether the COMMIT on ``connection`` is a session's, not that of ``connection.commit()``."""
    watched = _of(connection)
    return watched is not None and watched.outcome.committing


def note_rollback(connection: Connection) -> None:
    """Record a ROLLBACK that is about to be sent, because it would hide an earlier commit."""
    watched = _of(connection)
    if watched is not None:
        watched.look(asking=False)
        watched.note_rollback()


def _after_begin(session: Any, transaction: SessionTransaction, connection: Connection) -> None:
    guarded: GuardedSession = session
    outcome = guarded.guard_outcome
    if ref(connection) in _watched and _of(connection) in outcome.connections:
        return  # a savepoint
    if guarded.guard_loop is None and blocking_warnings[-1] and running_loop() is not None:
        _warn_of_blocking(session)
    reading = isinstance(session, ReadOnlySession)
    watched = Watched(
        session, connection, outcome, autocommit=guarded.guard_autocommit and read_only.is_kept(connection)
    )
    outcome.connections = (*outcome.connections, watched)
    _watched[ref(connection, _watched.pop)] = ref(watched)  # removed with the connection
    if connection.dialect not in _heard:
        _heard.add(connection.dialect)
        _hear(connection.dialect)
    if reading and not transaction.nested:
        read_only.begin(connection)
    unit = guarded.guard_hooks
    if unit is not None and unit._hears_begin and not transaction.nested:
        if watched.autocommit and unit._begin_hooks:
            watched.begin()
        unit._begun(connection)


def _before_commit(session: Any) -> None:
    outcome: Outcome = session.guard_outcome
    if outcome.connections:
        outcome.check()
    outcome.committing = True


def _after_commit(session: Any) -> None:
    guarded: GuardedSession = session
    outcome, transaction = guarded.guard_outcome, session.get_transaction()
    outcome.committing = False
    if transaction is None or session.get_nested_transaction() is not None:  # a released savepoint fires this event too
        return
    for one in outcome.connections:
        if one.sent:
            outcome.committed = outcome.committed or APPLICATION
    outcome.connections = ()
    if outcome.wrote:
        outcome.kept, outcome.wrote = True, False
    unit = guarded.guard_hooks
    if unit is not None and unit._callbacks is not None:
        unit._callbacks.note("commit", transaction)


def _after_soft_rollback(session: Any, rolled_back: SessionTransaction) -> None:
    guarded: GuardedSession = session
    # A flush has its own transaction inside the session's. If it fails, it rolls back up to the innermost savepoint, or
    # everything, and the user has to call rollback() before the next statement.
    around: SessionTransaction | None = rolled_back
    while around is not None and not around.nested:
        around = around.parent
    by_user = rolled_back.nested or rolled_back.parent is None
    guarded.guard_outcome.note_rollback(whole=around is None, handled=by_user or around is not None)
    unit = guarded.guard_hooks
    if unit is not None and unit._callbacks is not None:
        unit._callbacks.note("rollback", rolled_back)


def _hear(dialect: Dialect) -> None:
    """Listen to every statement and error of ``dialect``; nothing is kept of its connections outside our sessions."""
    event.listen(dialect, "do_execute", _do_execute)
    event.listen(dialect, "do_executemany", _do_executemany)
    event.listen(dialect, "do_execute_no_params", _do_execute_no_params)
    event.listen(dialect, "handle_error", _handle_error)


def _do_execute(cursor: Any, statement: str, parameters: Any, context: Any, send: str = "do_execute") -> bool | None:
    root = context.root_connection
    found = _watched.get(ref(root))
    watched = None if found is None else found()
    if watched is None:
        if root.closed:  # its unit ended while a thread that outlived the request was about to use it
            raise ResourceClosedError("this connection was closed when its session ended")
        return None
    session: Any = watched.session
    outermost = session._guard_inside is not getcurrent() and session._guard_enter()
    try:
        if watched.autocommit and read_only.needs_transaction(statement, context):
            watched.begin()
        watched.before(statement)
        # Set in an argument, in the statement, in a Query or in the session's options: this holds them all.
        if context.execution_options.get("stream_results"):
            watched.outcome.note_stream(context)
        if not outermost:
            return None
        # Sent on session.connection() itself, which bypasses the guards of the session's methods.
        sent = (statement,) if send == "do_execute_no_params" else (statement, parameters)
        getattr(context.dialect, send)(cursor, *sent, context)
        return True
    finally:
        if outermost:
            session._guard_leave()


def _do_executemany(cursor: Any, statement: str, parameters: Any, context: Any) -> bool | None:
    return _do_execute(cursor, statement, parameters, context, "do_executemany")


def _do_execute_no_params(cursor: Any, statement: str, context: Any) -> bool | None:
    return _do_execute(cursor, statement, None, context, "do_execute_no_params")


def _handle_error(context: ExceptionContext) -> None:
    connection = context.connection
    watched = None if connection is None else _of(connection)
    if connection is None or watched is None:
        return
    outcome, original = watched.outcome, context.original_exception
    error = context.sqlalchemy_exception or original
    ends_by_rollback = context.execution_context is None and not outcome.committing
    if context.execution_context is None:
        _note_failed_end(watched, outcome, context)
    else:
        outcome.committing = False
        if context.is_disconnect and watched.sent_commit:
            _note_doubt(watched.session, outcome)
        if is_spent(original, writes=cast("GuardedSession", watched.session).guard_writes):
            context.is_disconnect = True  # SQLAlchemy then discards it, and all that the pool had before
    if isinstance(error, Exception) and not ends_by_rollback:  # a failed ROLLBACK is no reason for a retry
        outcome.note_error(error)
        if sqlstate_of(original) == "25P02":  # in_failed_sql_transaction
            error.add_note(
                "after a statement has failed, PostgreSQL refuses every other one until a rollback; to continue "
                "after a failure that you expect, write: with session.begin_nested(): ..."
            )
    if context.execution_context is not None and not context.is_disconnect:
        watched.note_error(ends=ends_transaction(original, told=connection.dialect.driver in DRIVERS))


def _note_failed_end(watched: Watched, outcome: Outcome, context: ExceptionContext) -> None:
    """Record a failed COMMIT or ROLLBACK, and invalidate the connection if nobody can know what was done.

    asyncpg refuses a COMMIT beside a running statement, such as a fetch that no event reports, and the transaction
    stays open. The connection would take it back to the pool, and every later user would fail.
    """
    original = context.original_exception
    unanswered = sqlstate_of(original) is None and not isinstance(context.sqlalchemy_exception, IntegrityError)
    if outcome.committing:
        others = [one for one in outcome.connections if isinstance(one, Watched) and one is not watched and one.sent]
        if any(not one.connection.in_transaction() for one in others):
            # A session with several connections commits them one after the other.
            outcome.note_committed(Committed.APPLICATION)
        if context.is_disconnect:
            _note_doubt(watched.session, outcome)
            (context.sqlalchemy_exception or original).add_note(IN_DOUBT)
        elif not unanswered:
            watched.note_refused()
    if unanswered:
        watched.connection.invalidate()


def _note_doubt(session: Session, outcome: Outcome) -> None:
    outcome.in_doubt = True
    unit, transaction = cast("GuardedSession", session).guard_hooks, session.get_transaction()
    if unit is not None and unit._callbacks is not None and transaction is not None:
        unit._callbacks.note("in doubt", transaction)


_PACKAGES = (str(Path(sqlalchemy.__file__).parent), str(Path(__file__).parent.parent))


def _is_users(frame: FrameType, session: Session) -> bool:
    """Return whether the code of ``frame`` is the user's: of no package, and not a method of their session class."""
    code, name = frame.f_code, frame.f_code.co_filename
    if name.startswith("<") and frame.f_back is not None:  # a wrapper that SQLAlchemy generated
        name = frame.f_back.f_code.co_filename
    own = code.co_varnames[:1] == ("self",) and frame.f_locals.get("self") is session
    return not (own or name.startswith(_PACKAGES))


def _warn_of_blocking(session: Session) -> None:
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and not _is_users(frame, session):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        "a sync session ran SQL on a thread with a running event loop, so the loop and every request wait for it; "
        "write await db.async_session..., or make the handler a plain def",
        BlockingSessionWarning,
        stacklevel=level,
    )


event.listen(GuardedSession, "after_begin", _after_begin)
event.listen(GuardedSession, "before_commit", _before_commit)
event.listen(GuardedSession, "after_commit", _after_commit)
event.listen(GuardedSession, "after_soft_rollback", _after_soft_rollback)
event.listen(ReadOnlySession, "before_flush", refuse_flush)
