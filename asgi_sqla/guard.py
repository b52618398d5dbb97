"""Knows whether a session is in use now, and keeps a second user out until it is not.

Lives here: the subclass that every session of ours is, of SQLAlchemy's ``Session`` or the user's
own class. It asks "in use now?", never "whose?": frameworks run parts of one request in several
tasks and threads, and a rollback beside a running statement poisons an asyncpg connection for good.
Must not know: units, engines, or why a session ends.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from inspect import isfunction
from threading import Lock, get_ident
from typing import Any, TypeAlias, cast
from weakref import WeakKeyDictionary, WeakSet, ref

from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy import event, select
from sqlalchemy.engine import Connection, Dialect, ExceptionContext
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, SessionTransaction

from asgi_sqla.errors import SessionInUseError, UnitOfWorkEndedError, WrongEventLoopError
from asgi_sqla.transient import IN_DOUBT, ends_transaction, is_transient

User: TypeAlias = "asyncio.Task[Any] | int"
"""Who makes a call: a task, or in a plain thread its identifier."""

OWN_SCOPE = "async with session_scope() as session: ..."

CALLS = (
    ("begin_nested", "bulk_insert_mappings", "bulk_save_objects", "bulk_update_mappings", "close")
    + ("commit", "connection", "delete", "delete_all", "execute", "flush", "get", "get_one")
    + ("invalidate", "merge", "merge_all", "prepare", "refresh", "reset", "rollback", "scalar", "scalars")
)
"""The methods of ``Session`` that may talk to the database."""


def current_user() -> User:
    """Return the running task, or the thread where there is none."""
    try:
        return asyncio.current_task() or get_ident()
    except RuntimeError:
        return get_ident()


def ended(unit: object) -> UnitOfWorkEndedError:
    """Return the error for whoever comes after ``unit`` has ended."""
    return UnitOfWorkEndedError(
        f"{unit} has ended, and its sessions with it; a task, thread or callback that outlives its "
        f"request opens its own unit of work: {OWN_SCOPE}"
    )


class GuardedSession(Session):
    """A session that lets one task or thread in at a time, and nobody after its end."""

    guard_unit: object = None
    guard_error: Exception | None = None
    """The last error of the database, or the first that passes: what follows that one is its consequence."""
    guard_unhandled = False
    """Whether nothing was rolled back since that error."""
    guard_committed = False
    """Whether a transaction of the session is in the database for good."""
    guard_users: set[User] | None = None
    """Everybody who used the session, if the unit wants to know."""
    _guard_loop: asyncio.AbstractEventLoop | None = None
    _guard_user: User | None = None
    _guard_inside: object = None
    """The greenlet of the call that is running: what it calls in turn need not be asked who it is."""
    _guard_end: Callable[[Session], None] | None = None
    _guard_over = False
    _guard_connections: tuple[Connection, ...] = ()
    _guard_committing = False
    _guard_undone: Connection | None = None

    def guard(self, unit: object, loop: asyncio.AbstractEventLoop | None, users: set[User] | None) -> None:
        """Begin to guard. ``unit`` is named in errors; ``loop`` is the only one to let in, None for threads."""
        self.guard_unit = unit
        self.guard_users = users
        self._guard_loop = loop
        self._guard_lock = Lock()

    @property
    def guard_in_use(self) -> bool:
        """Whether a call on the session is running now."""
        return self._guard_lock.locked() and not self._guard_over

    def guard_end(self, end: Callable[[Session], None]) -> bool:
        """Call ``end(self)`` as the last use of the session; return whether that was done now.

        When a call is running, whoever runs it does it on leaving: never under its user.
        """
        self._guard_end = end
        return self._guard_end_if_idle()

    def _guard_end_if_idle(self) -> bool:
        # Whoever ends it keeps the lock for ever, so there is no second one.
        if self._guard_end is None or not self._guard_lock.acquire(blocking=False):
            return False
        self._guard_inside = getcurrent()
        self._guard_end(self)
        self._guard_inside = None
        self.guard_unit = str(self.guard_unit)  # or each would keep the other alive
        self._guard_over = True
        return True

    def _guard_enter(self) -> bool:
        """Let the caller in; return False if it is in already, further up its own stack."""
        user = self._guard_checked_user()
        if user == self._guard_user:
            return False
        if self._guard_end is not None:
            raise ended(self.guard_unit)
        if not self._guard_lock.acquire(blocking=False):
            raise SessionInUseError(
                f"a session of {self.guard_unit} is in use by {self._guard_user}; a session serves one "
                f"task or thread at a time, so each opens its own: {OWN_SCOPE}"
            )
        self._guard_user = user
        self._guard_inside = getcurrent()
        if self.guard_users is not None:
            self.guard_users.add(current_user())
        return True

    def _guard_checked_user(self) -> User:
        loop = self._guard_loop
        if loop is None:
            return get_ident()
        try:
            running: object = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop and (task := asyncio.current_task(loop)) is not None:
            return task
        raise WrongEventLoopError(
            f"an AsyncSession of {self.guard_unit} was used outside the event loop it was made on; "
            f"there, open a unit of work: {OWN_SCOPE}"
        )

    def _guard_leave(self) -> None:
        self._guard_user = self._guard_inside = None
        self._guard_lock.release()
        self._guard_end_if_idle()


def _guarded(name: str, base: type[Session]) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(base, name)

    @functools.wraps(method)
    def call(self: GuardedSession, *args: Any, **kwargs: Any) -> Any:
        outermost = getcurrent() is not self._guard_inside and self._guard_enter()
        try:
            return method(self, *args, **kwargs)
        finally:
            if outermost:
                self._guard_leave()

    return call


# PostgreSQL answers the COMMIT of a transaction in which a statement failed with ROLLBACK, and no
# driver calls that an error. So a connection that saw a failure is asked before each COMMIT.
_failed: WeakSet[Connection] = WeakSet()
_watched: WeakSet[Dialect] = WeakSet()
_sessions: WeakKeyDictionary[Connection, ref[GuardedSession]] = WeakKeyDictionary()


@event.listens_for(GuardedSession, "after_begin")
def _watch(session: Any, _transaction: SessionTransaction, connection: Connection) -> None:
    if connection not in (before := session._guard_connections):
        session._guard_connections = (connection, *(one for one in before if not one.closed))
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
    for connection in session._guard_connections:
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
