"""Knows whether a session is in use now, and keeps a second user out until it is not.

Lives here: the subclass that every session of ours is, of SQLAlchemy's ``Session`` or the user's
own class. It asks "in use now?", never "whose?": frameworks run parts of one request in several
tasks and threads, and a rollback beside a running statement poisons an asyncpg connection for good.
Must not know: units, engines, or why a session ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Lock, get_ident
from typing import Any, TypeAlias

from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy.engine import Connection, Result
from sqlalchemy.orm import Session

from asgi_sqla.errors import SessionInUseError, UnitOfWorkEndedError, WrongEventLoopError

User: TypeAlias = "asyncio.Task[Any] | int"
"""Who makes a call: a task, or in a plain thread its identifier."""

OWN_SCOPE = "async with session_scope() as session: ..."


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
    guard_writes = True
    """Whether it may have anything to commit."""
    guard_users: set[User] | None = None
    """Everybody who used the session, if the unit wants to know."""
    _guard_loop: asyncio.AbstractEventLoop | None = None
    _guard_user: User | None = None
    _guard_inside: object = None
    """The greenlet of the call that is running: what it calls in turn need not be asked who it is."""
    _guard_end: Callable[[GuardedSession], None] | None = None
    _guard_over = False
    _guard_streams: tuple[Result[Any], ...] = ()
    """The results whose rows are still on the server, for all we know."""
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

    def guard_keep_stream(self, result: Result[Any]) -> None:
        """Remember a result that is fetched row by row, which no call on the session tells of."""
        self._guard_streams = (*self._guard_streams, result)

    def guard_close_streams(self) -> None:
        """Have whoever still fetches rows get an error, not a connection that is another's by then."""
        streams, self._guard_streams = self._guard_streams, ()
        for result in streams:
            result.close()

    def guard_end(self, end: Callable[[GuardedSession], None]) -> bool:
        """Call ``end(self)`` as the last use of the session; return whether it is done.

        When a call is running, whoever runs it does it on leaving: never under its user.
        """
        self._guard_end = end
        self._guard_end_if_idle()
        return self._guard_over

    def _guard_end_if_idle(self) -> None:
        # Whoever ends it keeps the lock for ever, so there is no second one.
        if self._guard_end is None or not self._guard_lock.acquire(False):
            return
        self._guard_inside = getcurrent()
        try:
            self._guard_end(self)
        finally:
            self._guard_inside = None
            self.guard_unit = str(self.guard_unit)  # or each would keep the other alive
            self._guard_over = True

    def _guard_enter(self, greenlet: object) -> bool:
        """Let the caller in; return False if it is in already, further up its own stack."""
        user = get_ident() if self._guard_loop is None else self._guard_task(self._guard_loop)
        if user == self._guard_user:
            return False
        if self._guard_end is not None:
            raise ended(self.guard_unit)
        if not self._guard_lock.acquire(False):
            raise SessionInUseError(
                f"a session of {self.guard_unit} is in use by {self._guard_user}; a session serves one "
                f"task or thread at a time, so each opens its own: {OWN_SCOPE}"
            )
        self._guard_user = user
        self._guard_inside = greenlet
        if self.guard_users is not None:
            self.guard_users.add(current_user())
        return True

    def _guard_task(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
        """Return the running task; raise unless it runs on ``loop``."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        if task is not None and task.get_loop() is loop:
            return task
        raise WrongEventLoopError(
            f"an AsyncSession of {self.guard_unit} was used outside the event loop it was made on; "
            f"there, open a unit of work: {OWN_SCOPE}"
        )

    def _guard_leave(self) -> None:
        self._guard_user = self._guard_inside = None
        self._guard_lock.release()
        if self._guard_end is not None:
            self._guard_end_if_idle()
