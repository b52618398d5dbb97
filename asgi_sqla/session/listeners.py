"""The one room of listeners: what SQLAlchemy reports of a session's transaction, one function for each event.

Each function keeps the written order: it updates the outcome first, then it calls the hooks of the unit. Nothing else
feeds an outcome, so the order does not depend on the order of imports.

Holds: which events are used, and who is notified in which order.
Must not know: what is decided on an outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast
from weakref import ref

from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect, ExceptionContext
from sqlalchemy.exc import IntegrityError, ResourceClosedError
from sqlalchemy.orm import Session, SessionTransaction

from asgi_sqla.engine import read_only
from asgi_sqla.engine.classification import is_spent, sqlstate_of
from asgi_sqla.engine.drivers import DRIVERS
from asgi_sqla.engine.instant import instant
from asgi_sqla.engine.interrupting import end_if_cancelled
from asgi_sqla.engine.refusals import is_refusal
from asgi_sqla.session.blocking import warn_of_blocking
from asgi_sqla.session.guard import GuardedSession, running_loop
from asgi_sqla.session.limited import Limited
from asgi_sqla.session.lone import send_with_commit
from asgi_sqla.session.outcome import Committed, Outcome
from asgi_sqla.session.read_only import ReadOnlySession, refuse_flush
from asgi_sqla.session.sending import send_unmeasured, sender_after
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
_heard: dict[int, ref[Dialect]] = {}
"""The dialects that are listened to, by their ``id()``."""


def watched_of(connection: Connection) -> Watched | None:
    """Return the record of ``connection``, if it is in the transaction of a session."""
    found = _watched.get(ref(connection))
    return None if found is None else found()


def connections_in_use() -> list[Watched]:
    """Return every connection in the transaction of a session, of any database."""
    return [watched for one in list(_watched.values()) if (watched := one()) is not None]


def count_in_use() -> int:
    """Return how many connections that are; one that only garbage refers to counts until it is collected."""
    return len(_watched)


def is_committed_by_session(connection: Connection) -> bool:
    """Return whether the COMMIT on ``connection`` is a session's, not that of ``connection.commit()``."""
    watched = watched_of(connection)
    return watched is not None and watched.outcome.committing


def note_rollback(connection: Connection) -> None:
    """Record a ROLLBACK that is about to be sent, because it would hide an earlier commit."""
    watched = watched_of(connection)
    if watched is not None:
        watched.look(asking=False)
        watched.note_rollback()


def _after_begin(session: Any, transaction: SessionTransaction, connection: Connection) -> None:
    guarded: GuardedSession = session
    outcome = guarded.guard_outcome
    if ref(connection) in _watched and watched_of(connection) in outcome.connections:
        return  # a savepoint
    if guarded.guard_loop is None and blocking_warnings[-1] and running_loop() is not None:
        warn_of_blocking(session)
    unit = guarded.guard_hooks
    watch = Watched if unit is None or unit._deadline is None else Limited
    watched = watch(session, connection, outcome, autocommit=guarded.guard_autocommit and read_only.is_kept(connection))
    outcome.connections = (*outcome.connections, watched)
    _watched[ref(connection, _watched.pop)] = ref(watched)  # removed with the connection
    if guarded.guard_record is not None:
        guarded.guard_record.begun(watched, connection)
    if id(connection.dialect) not in _heard:
        _hear(connection.dialect)
    if isinstance(session, ReadOnlySession) and not transaction.nested:
        read_only.begin(connection)
    if unit is not None and unit._hears_begin and not transaction.nested:
        if watched.autocommit and unit._begin_hooks:
            watched.begin()
        unit._begun(connection)


def _before_commit(session: Any) -> None:
    outcome: Outcome = session.guard_outcome
    if outcome.connections:
        outcome.check()
    outcome.committing = True


def note_commit(session: Any) -> None:
    """Record that a session has committed."""
    guarded: GuardedSession = session
    outcome, transaction = guarded.guard_outcome, session.get_transaction()
    outcome.committing = False
    if transaction is None or session.get_nested_transaction() is not None:  # a released savepoint fires this event too
        return
    for one in outcome.connections:
        if one.sent:
            outcome.committed = outcome.committed or APPLICATION
    outcome.connections, outcome.prepared, outcome.done_early, outcome.travelled = (), False, False, None
    outcome.kept, outcome.wrote = outcome.kept or outcome.wrote, False
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
    _heard[id(dialect)] = ref(dialect, partial(_heard.pop, id(dialect)))
    for name, function in _LISTENERS.items():
        event.listen(dialect, name, function)


def _do_execute(cursor: Any, statement: str, parameters: Any, context: Any, send: str = "do_execute") -> bool | None:
    root = context.root_connection
    watched = None if (found := _watched.get(ref(root))) is None else found()
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
        if watched.outcome.at_end and send_with_commit(watched, cursor, statement, parameters, context):
            return True
        record = session.guard_record
        if outermost or record is not None:
            # Sent on session.connection() itself, which bypasses the guards of the session's methods; or measured.
            execute = sender_after(_LISTENERS[send], send, context.dialect)
            measured = send_unmeasured if record is None else record.send
            measured(watched, context, execute, cursor, statement, parameters)
            return True
        return None
    finally:
        if outermost:
            session._guard_leave()


def _do_executemany(cursor: Any, statement: str, parameters: Any, context: Any) -> bool | None:
    return _do_execute(cursor, statement, parameters, context, "do_executemany")


def _do_execute_no_params(cursor: Any, statement: str, context: Any) -> bool | None:
    return _do_execute(cursor, statement, None, context, "do_execute_no_params")


def _handle_error(context: ExceptionContext) -> BaseException | None:
    connection = context.connection
    watched = None if connection is None else watched_of(connection)
    if connection is None or watched is None:
        return None
    outcome, original = watched.outcome, context.original_exception
    error = (instead := watched.instead_of(context)) or context.sqlalchemy_exception or original
    ends = context.execution_context is None and context.statement is None  # or a statement was not sent
    ends_by_rollback = ends and not outcome.committing
    if context.statement is not None and not isinstance(original, Exception):  # aiosqlite's may have no context yet
        outcome.note_cancelled()
    if ends:
        _note_failed_end(watched, outcome, context)
    else:
        outcome.committing = False
        _note_lost_statement(watched, outcome, context)
        if is_spent(original, writes=watched.session.guard_writes):
            context.is_disconnect = True  # SQLAlchemy then discards it, and all that the pool had before
        end_if_cancelled(connection, original)
    if isinstance(error, Exception) and not ends_by_rollback:  # a failed ROLLBACK is no reason for a retry
        _note_error(outcome, error, original)
    if context.execution_context is not None and not context.is_disconnect:
        watched.note_error(ends=ends_transaction(original, told=connection.dialect.driver in DRIVERS))
    return instead


def _note_lost_statement(watched: Watched, outcome: Outcome, context: ExceptionContext) -> None:
    """Record that a statement was lost with its connection, if that was a COMMIT or had one with it."""
    original = context.original_exception
    if context.is_disconnect and (watched.sent_commit or outcome.travels) and not is_refusal(original):
        _note_doubt(watched.session, outcome)
        if outcome.travels:
            (context.sqlalchemy_exception or original).add_note(IN_DOUBT)


def _note_error(outcome: Outcome, error: Exception, original: BaseException) -> None:
    outcome.note_error(error)
    if sqlstate_of(original) == "25P02":  # in_failed_sql_transaction
        error.add_note(
            "after a statement has failed, PostgreSQL refuses every other one until a rollback; to continue "
            "after a failure that you expect, write: with session.begin_nested(): ..."
        )


def _note_failed_end(watched: Watched, outcome: Outcome, context: ExceptionContext) -> None:
    """Record a failed COMMIT or ROLLBACK, and invalidate the connection if nobody can know what was done.

    asyncpg refuses a COMMIT beside a running statement, such as a fetch that no event reports, and the transaction
    stays open. The connection would take it back to the pool, and every later user would fail.
    """
    original, record = context.original_exception, watched.session.guard_record
    if record is not None:
        record.ended(watched, original)
    unanswered = sqlstate_of(original) is None and not isinstance(context.sqlalchemy_exception, IntegrityError)
    if outcome.committing:
        others = [one for one in outcome.connections if isinstance(one, Watched) and one is not watched and one.sent]
        if any(not one.connection.in_transaction() for one in others):
            # A session with several connections commits them one after the other.
            outcome.note_committed(Committed.APPLICATION)
        # A textual COMMIT just before it has committed, whatever becomes of this one.
        if context.is_disconnect and (watched.sent_commit or not is_refusal(original)):
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


_LISTENERS: Mapping[str, Callable[..., Any]] = {
    "do_execute": _do_execute,
    "do_executemany": _do_executemany,
    "do_execute_no_params": _do_execute_no_params,
    "handle_error": _handle_error,
}

event.listen(GuardedSession, "after_begin", _after_begin)
event.listen(GuardedSession, "before_commit", instant(_before_commit))
event.listen(GuardedSession, "after_commit", instant(note_commit))
event.listen(GuardedSession, "after_soft_rollback", instant(_after_soft_rollback))
event.listen(ReadOnlySession, "before_flush", refuse_flush)
