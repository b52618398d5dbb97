"""Whether a session is in use now: it keeps a second user out until the first has finished.

The guard asks "in use now?", never "by whom?": frameworks run parts of one request in several tasks and threads. A
rollback beside a running statement breaks an asyncpg connection for good, so a session in use is never ended.

Holds: the subclass of every session of ours, of SQLAlchemy's ``Session`` or of the user's own class.
Must not know: units, engines, or why a session ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from threading import Lock, get_ident
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeAlias

from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin

from asgi_sqla.engine.drivers import forget_rows
from asgi_sqla.engine.waiter import task_on
from asgi_sqla.errors import OWN_SCOPE, ConfigurationError, WrongEventLoopError, ended, in_use
from asgi_sqla.session.gate import Gate, acquire_late
from asgi_sqla.session.outcome import Outcome
from asgi_sqla.session.transactions import TRANSACTION, GuardedTransaction

if TYPE_CHECKING:
    from types import TracebackType

    from asgi_sqla.session.outcome import Hooks, Recording


User: TypeAlias = "asyncio.Task[Any] | int"
"""The caller: a task, or in a plain thread its identifier."""


def current_user() -> User:
    """Return the running task, or the thread where there is none."""
    try:
        return asyncio.current_task() or get_ident()
    except RuntimeError:
        return get_ident()


running_loop: Callable[[], asyncio.AbstractEventLoop | None] = asyncio._get_running_loop
"""Return the asyncio event loop that runs in this thread; None if there is none, as under trio."""


def loop_is_running() -> bool:
    """Return whether an asyncio event loop runs in this thread."""
    return running_loop() is not None


class GuardedSession(Session):
    """A session that lets in one task or thread at a time, and none after its end."""

    guard_unit: object = None
    """What errors name: the unit of work."""
    guard_hooks: Hooks | None = None
    guard_loop: asyncio.AbstractEventLoop | None = None
    """The only event loop that may use it; None for threads."""
    guard_users: set[User] | None = None
    """Every task and thread that used the session; None where the unit does not need to know."""
    guard_writes = True
    """Whether it may have anything to commit."""
    guard_autocommit = False
    """Whether it has no transactions: it only reads, and each statement commits by itself."""
    guard_flushes_as_usual = True
    """Whether ``flush()`` is SQLAlchemy's, and not that of the user's own class."""
    guard_ends_as_usual = True
    """Whether all that ends a transaction or the session is SQLAlchemy's, too."""
    guard_record: Recording | None = None
    """What it did, if its database has observers."""
    guard_gate: Gate | None = None
    """Closed while its unit commits in the middle."""
    guard_binds: Mapping[Engine, Engine] = MappingProxyType({})
    """The engines of an isolation level of its own, by those that they were made from."""
    guard_awaits = False
    """Whether a task ends this sync session: then no other task of that event loop is its user."""
    guard_left: float = 0.0
    """When the last call on it returned, by the monotonic clock."""
    _guard_user: User | None = None
    _guard_inside: object = None
    """The greenlet of the running call: the calls that it makes in turn need no check."""
    _guard_end: Callable[[GuardedSession], None] | None = None
    _guard_over = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.guard_outcome: Outcome = Outcome()
        self.guard_lock: Lock = Lock()
        """Held during a call; held forever after the end."""
        super().__init__(*args, **kwargs)

    def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Refuse: ``db.session`` is a session already."""
        raise ConfigurationError(
            "a session is not callable: db.session and db.async_session are the sessions themselves"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Do nothing, as the unit ends the session; after an exception, roll back."""
        if exc is not None and not self._guard_over:
            self.rollback()

    def begin(self, nested: bool = False) -> SessionTransaction:
        """Begin, and return a transaction that guards its own end."""
        transaction = super().begin(nested)
        transaction.__class__ = GuardedTransaction  # SQLAlchemy hard-codes the class
        return transaction

    def _autobegin_t(self, begin: bool = False) -> SessionTransaction:
        if self._transaction is not None or not (begin or self.autobegin):
            return super()._autobegin_t(begin)
        return TRANSACTION(self, SessionTransactionOrigin.BEGIN if begin else SessionTransactionOrigin.AUTOBEGIN)

    def close(self) -> None:
        """Reset, as only the unit closes for good. If this discards work, a later verdict to commit is an error."""
        self._guard_discard("close", super().reset)

    def reset(self) -> None:
        """Do what ``close`` does."""
        self._guard_discard("reset", super().reset)

    def invalidate(self) -> None:
        """Invalidate the connection, and do what ``close`` does."""
        self._guard_discard("invalidate", self._guard_invalidate)

    def _guard_invalidate(self) -> None:
        # SQLAlchemy's own would close the session for good, as it does with close_resets_only=False.
        for one in self.guard_outcome.connections:
            one.connection.invalidate()
        super().reset()

    def expunge_all(self) -> None:
        """Remove every object. If this discards changes, a later verdict to commit is an error."""
        if self._guard_end is not None:  # the end itself, or a call after it
            if self._guard_inside is not getcurrent():
                raise ended(self.guard_unit)
        elif (lost := self._guard_unflushed()) is not None:
            self.guard_outcome.note_discarded("expunge_all", lost)
        super().expunge_all()

    def guard(self, unit: Hooks, loop: asyncio.AbstractEventLoop | None, users: set[User] | None) -> None:
        """Guard for ``unit`` on ``loop``; a websocket's session is handed from each message's unit to the next."""
        self.guard_unit = self.guard_hooks = unit
        self.guard_users = users
        self.guard_loop = loop

    @property
    def _guard_streams(self) -> Collection[Any]:
        """Executions whose rows are still on the server and still referenced by a reader."""
        return self.guard_outcome.streams

    @property
    def guard_is_over(self) -> bool:
        """Whether it has been closed for good."""
        return self._guard_over

    def guard_renew(self) -> None:
        """Release the connection and every object, so that the next unit can use it."""
        super().reset()
        self.guard_outcome = Outcome()

    def guard_close(self) -> None:
        """Close for good; this is the last operation on the session."""
        super().close()

    def guard_give_up(self) -> None:
        """Close every connection without a rollback, and close the session as ``guard_close`` does."""
        super().invalidate()

    def guard_close_streams(self, *, discarding: bool = False) -> None:
        """Close open cursors: their readers get an error, and never a connection that another unit has.

        ``discarding`` closes a connection instead, if its cursor would first read a million rows to their end.
        """
        for context in list(self._guard_streams):
            connection = context.root_connection
            if connection.closed or connection.invalidated:  # its cursors have ended with it, and cannot be closed
                continue
            if discarding and forget_rows(connection):
                connection.invalidate()
            else:
                context.cursor.close()

    def guard_end(self, end: Callable[[GuardedSession], None]) -> bool:
        """Call ``end(self)`` as the last use of the session; return whether that is done.

        If a call on the session is running, that call makes it when it returns.
        """
        self._guard_end = end
        self._guard_end_if_idle()
        return self._guard_over

    def _guard_end_if_idle(self) -> None:
        # The end keeps the lock forever, so it happens only once.
        if self._guard_end is None or not self.guard_lock.acquire(False):
            return
        self._guard_inside = getcurrent()
        try:
            self._guard_end(self)
        finally:
            self._guard_inside = self.guard_hooks = None
            self._guard_over = True

    def _guard_discard(self, call: str, discard: Callable[[], None]) -> None:
        """Do what the application asked for, and record whether that discarded work."""
        lost = self._guard_unflushed()
        if lost is None and self.guard_outcome.wrote and self.in_transaction():
            lost = "statements sent"
        if (
            lost is None and not self.is_active
        ):  # a flush failed and rolled everything back, and SQLAlchemy waits for rollback()
            lost = "what a failed flush has rolled back"
        transaction = self.get_transaction()
        try:
            discard()
        finally:
            self.guard_outcome.forget_transaction()
            if lost is not None:
                self.guard_outcome.note_discarded(call, lost)
            callbacks = None if self.guard_hooks is None else self.guard_hooks._callbacks
            if transaction is not None and callbacks is not None:
                callbacks.note("commit" if lost is None else "rollback", transaction)

    def _guard_unflushed(self) -> str | None:
        changed = [one for one in self.dirty if self.is_modified(one)]
        counts = {"new": len(self.new), "changed": len(changed), "deleted": len(self.deleted)}
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        return f"{said} objects" if said else None

    def _guard_refuse_if_ended(self) -> None:
        if self._guard_end is not None and self._guard_inside is not getcurrent():
            raise ended(self.guard_unit)

    def _guard_enter(self) -> bool:
        """Let the caller in; return False if it is in already, further up its own stack."""
        loop = self.guard_loop
        user: User | None = get_ident() if loop is None else task_on(loop)
        if user is None or (loop is not None and running_loop() is not loop):
            raise self._guard_strayed()
        if user == self._guard_user and not self.guard_awaits:
            return False
        if self._guard_end is not None:
            raise ended(self.guard_unit)
        if self.guard_gate is not None:
            self.guard_gate.wait(self)
        if not self.guard_lock.acquire(False) and not acquire_late(self):
            raise in_use(self.guard_unit, self._guard_user)
        self._guard_user = user
        self._guard_inside = getcurrent()
        if self.guard_users is not None:
            self.guard_users.add(current_user())
        return True

    def _guard_strayed(self) -> WrongEventLoopError:
        return WrongEventLoopError(
            f"an AsyncSession of {self.guard_unit} was used outside the event loop it was made on; "
            f"code on another event loop must open its own unit of work: {OWN_SCOPE}"
        )

    def _guard_leave(self) -> None:
        self._guard_user = self._guard_inside = None
        self.guard_left = monotonic()
        self.guard_lock.release()
        if self._guard_end is not None:
            self._guard_end_if_idle()
