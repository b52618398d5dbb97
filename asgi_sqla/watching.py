"""Makes the guarded subclass of any session class, and watches what becomes of its transactions.

Lives here: which calls are guarded, and what is noted of failures, commits and rollbacks.
Must not know: units, engines of ours, or what is done about it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import isfunction
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet, ref

from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy import event, select
from sqlalchemy.engine import Connection, Dialect, ExceptionContext
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, SessionTransaction

from asgi_sqla.guard import GuardedSession
from asgi_sqla.transient import IN_DOUBT, ends_transaction, is_transient

CALLS = (
    ("begin_nested", "bulk_insert_mappings", "bulk_save_objects", "bulk_update_mappings", "close")
    + ("commit", "connection", "delete", "delete_all", "execute", "flush", "get", "get_one")
    + ("invalidate", "merge", "merge_all", "prepare", "refresh", "reset", "rollback", "scalar", "scalars")
)
"""The methods of ``Session`` that may talk to the database."""


def _guarded(name: str, base: type[Session]) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(base, name)

    @functools.wraps(method)
    def call(self: GuardedSession, *args: Any, **kwargs: Any) -> Any:
        greenlet = getcurrent()
        outermost = greenlet is not self._guard_inside and self._guard_enter(greenlet)
        try:
            result = method(self, *args, **kwargs)
            if kwargs and (options := kwargs.get("execution_options")) and _is_stream(options):
                self.guard_keep_stream(result)
            return result
        finally:
            if outermost:
                self._guard_leave()

    return call


def _is_stream(options: Any) -> bool:
    return bool(options.get("stream_results") or options.get("yield_per"))


# PostgreSQL answers the COMMIT of a transaction in which a statement failed with ROLLBACK, and no
# driver calls that an error. So a connection that saw a failure is asked before each COMMIT.
_failed: WeakSet[Connection] = WeakSet()
_watched: WeakSet[Dialect] = WeakSet()
_sessions: WeakKeyDictionary[Connection, ref[GuardedSession]] = WeakKeyDictionary()


@event.listens_for(GuardedSession, "after_begin")
def _watch(session: Any, _transaction: SessionTransaction, connection: Connection) -> None:
    before = session._guard_connections
    if connection in before:  # a savepoint
        return
    session._guard_connections = (connection, *[one for one in before if not one.closed])
    _sessions[connection] = ref(session)
    if connection.dialect not in _watched:
        _watched.add(connection.dialect)
        event.listen(connection.engine, "handle_error", _note_failed)


def _note_failed(context: ExceptionContext) -> None:
    connection = context.connection
    if connection is None:
        return
    _failed.add(connection)
    if context.execution_context is None and _in_doubt(context):
        connection.invalidate()
    error = cast("Exception", context.sqlalchemy_exception or context.original_exception)
    if (session := _sessions.get(connection, lambda: None)()) is None:
        return
    if context.execution_context is None and context.is_disconnect and session._guard_committing:
        error.add_note(IN_DOUBT)
    if session.guard_error is None or not is_transient(session.guard_error):
        session.guard_error = error
    session.guard_unhandled = True
    if ends_transaction(context.original_exception):
        session._guard_undone = connection


def _in_doubt(context: ExceptionContext) -> bool:
    """Whether a COMMIT or ROLLBACK failed for no reason the database gave.

    asyncpg refuses one beside a running statement (a fetch, say, which nothing tells of), and the
    transaction stays open. The connection would carry it back to the pool, to fail every user after.
    """
    original = context.original_exception
    stated = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return stated is None and not isinstance(context.sqlalchemy_exception, IntegrityError)


@event.listens_for(GuardedSession, "before_commit")
def _ask(session: Any) -> None:
    """Raise what the database says of a transaction that it has given up."""
    session._guard_committing = True
    for connection in session._guard_connections if _failed else ():
        if connection in _failed and not connection.closed:
            connection.execute(select(1))
            if session._guard_undone is connection and session.guard_error is not None:
                raise session.guard_error


@event.listens_for(GuardedSession, "after_commit")
def _note_commit(session: Any) -> None:
    session._guard_committing = False
    if not session.in_nested_transaction():  # the release of a savepoint is announced as well
        session.guard_committed = True


@event.listens_for(GuardedSession, "after_soft_rollback")
def _note_rollback(session: Session, _rolled_back: SessionTransaction) -> None:
    cast("GuardedSession", session).guard_unhandled = False


_classes: dict[tuple[type[Session], type[GuardedSession]], type[GuardedSession]] = {}


def guarded(session_class: type[Session], guard: type[GuardedSession] = GuardedSession) -> type[GuardedSession]:
    """Return the subclass of ``session_class`` that ``guard`` guards; the same one each time."""
    if (session_class, guard) not in _classes:
        _classes[session_class, guard] = _make_guarded(session_class, guard)
    return _classes[session_class, guard]


def _make_guarded(session_class: type[Session], guard: type[GuardedSession]) -> type[GuardedSession]:
    base = cast("type[GuardedSession]", type(session_class.__name__, (guard, session_class), {}))
    # The user's own methods too: SQLModel's exec() calls Session.execute() past every subclass.
    own = session_class.__mro__[: session_class.__mro__.index(Session)]
    names = {name for cls in own for name, value in vars(cls).items() if isfunction(value) and name[0] != "_"}
    calls = {name: _guarded(name, base) for name in names.union(CALLS) if hasattr(base, name)}
    return cast("type[GuardedSession]", type(f"Guarded{session_class.__name__}", (base,), calls))
