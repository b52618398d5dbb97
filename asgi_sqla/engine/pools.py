"""Pools that bound how many may wait for a connection, and that say who holds theirs when none comes.

Holds: the pools of our engines, and their numbers.
Must not know: sessions or units; who holds a connection is asked of the room that knows.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from time import monotonic
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from sqlalchemy.engine import Engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, Pool, QueuePool
from sqlalchemy.util.queue import AsyncAdaptedQueue, Empty

from asgi_sqla.engine.deadlines import Deadline, running_deadline
from asgi_sqla.engine.moment import moment
from asgi_sqla.engine.showing import shown
from asgi_sqla.errors import DeadlineExceededError, PoolExhaustedError

E = TypeVar("E", bound=Exception)
Role: TypeAlias = Literal["write", "read", "snapshot"]
"""The purpose of an engine: anything; reading in autocommit; reading in a transaction with an isolation level."""
MOST_HOLDERS = 10
LOG_EVERY = 1.0
"""Seconds between two log lines of one pool: with a full pool every request would write one."""

logger: logging.Logger = logging.getLogger("asgi_sqla")


holders_of: list[Callable[[Pool], Sequence[object]]] = []
"""Each returns who holds connections of a pool, the longest first; the room that knows appends one."""


class PoolStatus(NamedTuple):
    """The numbers of one pool at this moment."""

    role: Role
    """The units that it is for: those that may write, that read in autocommit, or that read in a transaction."""
    kind: Literal["sync", "async"]
    size: int
    """How many connections it keeps open."""
    out: int
    """How many connections are checked out."""
    overflow: int
    """How many of them are beyond ``size``."""
    waiting: int
    """How many tasks and threads wait for one; 0 for an engine that was passed in."""
    idle: int
    """How many connections are open and not checked out."""
    max: int | None
    """How many connections it may open in all; None for no limit."""
    database: str
    """The URL of its engine, without the password."""


class _Queue(AsyncAdaptedQueue[ConnectionPoolEntry]):
    """The queue of an async pool; what nobody waits for comes and goes without the layers above asyncio's own.

    Nobody ever waits to put a connection back, nor for all of them to have come back.
    """

    def get(self, block: bool = True, timeout: float | None = None) -> ConnectionPoolEntry:
        idle: deque[ConnectionPoolEntry] = self._queue._queue  # type: ignore[attr-defined]  # asyncio's own name
        if idle:
            return idle.pop() if self.use_lifo else idle.popleft()
        return super().get(block, timeout)

    def put(self, item: ConnectionPoolEntry, block: bool = True, timeout: float | None = None) -> None:
        queue: Any = self._queue
        if queue._getters or len(queue._queue) >= self.maxsize:
            super().put(item, block, timeout)
        else:
            queue._queue.append(item)


class _Bounded(QueuePool):
    """Mixed into a queue pool of SQLAlchemy's, by ``bounded``."""

    max_waiting: int | None = None
    waiting: int = 0
    """How many tasks and threads wait for a connection."""
    _logged: float = 0.0

    def _do_get(self) -> ConnectionPoolEntry:
        if self._max_overflow == -1 or self._overflow < self._max_overflow:
            return super()._do_get()
        try:
            return self._pool.get(False)
        except Empty:
            pass  # outside the handler, so that no error has this one as its context
        with moment:
            refused = self.max_waiting is not None and self.waiting >= self.max_waiting
            self.waiting += not refused
        if refused:
            raise self._explained(
                PoolExhaustedError(
                    f"all {self.size() + self.overflow()} connections are in use and {self.max_waiting} tasks or "
                    "threads wait for one already, which is max_waiting="
                )
            )
        try:
            deadline = running_deadline()
            return super()._do_get() if deadline is None else self._get_until(deadline)
        except (PoolTimeoutError, DeadlineExceededError) as exc:
            raise self._explained(exc)  # noqa: B904  # it is the same error
        finally:
            with moment:
                self.waiting -= 1

    def _get_until(self, deadline: Deadline) -> ConnectionPoolEntry:
        left, timeout = deadline.left, self._timeout
        if timeout < left:
            return super()._do_get()
        try:
            return self._pool.get(left > 0, max(left, 0.0))
        except Empty:
            pass
        raise deadline.exceeded("no connection came back to the pool in time")

    def _explained(self, error: E) -> E:
        """Add who holds the connections to an error, and log it."""
        found = [one for ask in holders_of for one in ask(self)]
        if found:
            said = f"its connections are held by {', '.join(map(str, found[:MOST_HOLDERS]))}"
            error.add_note(f"{said}{', and others' if len(found) > MOST_HOLDERS else ''}")
            if monotonic() - self._logged > LOG_EVERY:
                self._logged = monotonic()
                logger.warning("a pool is exhausted; %s", said)
        return error


@cache
def bounded(pool: type[QueuePool], max_waiting: int | None) -> type[QueuePool]:
    """Return ``pool`` with a bound; the bound is in the class, because SQLAlchemy makes a pool anew from its class."""
    # Its logger keeps the name that users configure, as SQLAlchemy derives that from the class.
    members: dict[str, Any] = {"__module__": pool.__module__, "max_waiting": max_waiting}
    if pool._queue_class is AsyncAdaptedQueue:
        members["_queue_class"] = _Queue
    return type(pool.__name__, (_Bounded, pool), members)


def status_of(engine: Engine, role: Role) -> PoolStatus | None:
    """Return the numbers of the pool of ``engine``; None for a pool that is no queue, and so has none."""
    pool = engine.pool
    kind: Literal["sync", "async"] = "async" if engine.dialect.is_async else "sync"
    if not isinstance(pool, QueuePool):
        return None
    most = None if pool._max_overflow == -1 else pool.size() + pool._max_overflow
    return PoolStatus(
        role, kind, pool.size(), pool.checkedout(), max(0, pool.overflow()), getattr(pool, "waiting", 0),
        pool.checkedin(), most, shown(engine.url),
    )  # fmt: skip


def is_full(pool: Pool) -> bool:
    """Return whether the next one who asks ``pool`` for a connection would wait."""
    if not isinstance(pool, QueuePool) or pool._max_overflow == -1:
        return False
    return pool.checkedout() >= pool.size() + pool._max_overflow
