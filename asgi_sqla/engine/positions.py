"""WAL positions of PostgreSQL: where a primary is, and whether a replica has replayed that far.

Holds: the two statements, an engine that reads from a replica only if it has, and one that asks the primary.
Must not know: marks, clients, units, or why a position matters.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import anyio
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from asgi_sqla.engine.drivers import cut
from asgi_sqla.engine.engines import Engines
from asgi_sqla.engine.showing import shown

CURRENT = "SELECT pg_current_wal_insert_lsn()::text"
"""The position of a primary. With ``synchronous_commit=off`` a COMMIT is answered before its record is written, so only
the position of the next insertion is never before the record."""
REPLAYED = "SELECT pg_last_wal_replay_lsn()::text"
"""The position of a replica; NULL on a server that replays nothing, such as the target of a logical replication."""
NEVER = 1 << 64
"""A position that no replica has replayed: every WAL position is below it."""
KEY = "asgi_sqla_replayed"
"""The key of the last known position of a pooled connection's server."""
_AUTOCOMMIT: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}

_tasks: set[asyncio.Task[int]] = set()
"""Questions that nobody waits for any more; an event loop keeps only weak references to its tasks."""

logger: logging.Logger = logging.getLogger("asgi_sqla")


def parse(position: str) -> int:
    """Return PostgreSQL's notation of a position, such as ``16/B374D848``, as a number."""
    high, low = position.split("/")
    return int(high, 16) << 32 | int(low, 16)


async def current_position(engines: Engines) -> int:
    """Return the position of the primary of ``engines``, in one round trip, by the kind of engine that is in use."""
    loop = asyncio._get_running_loop()
    if loop is not None and (loop in engines.of_loops or (not engines.in_use and engines.has_async())):
        return await _without_cancelling(engines.asynchronous())
    asking: list[Any] = []
    try:
        return await anyio.to_thread.run_sync(
            _current, engines.sync(), asking, limiter=anyio.CapacityLimiter(1), abandon_on_cancel=True
        )
    except BaseException:  # a thread that waits for a silent server would never give its connection back
        _cut_all(asking, engines.sync().dialect)
        raise


async def _without_cancelling(engine: AsyncEngine) -> int:
    """Ask; cut the connection of a question that is cancelled.

    A driver would first ask the server to cancel it, and wait for that too: psycopg with libpq 16 holds the GIL then.
    """
    asking: list[Any] = []
    task = asyncio.ensure_future(_current_async(engine, asking))
    _tasks.add(task)
    task.add_done_callback(_forget)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not _cut_all(asking, engine.dialect):
            task.cancel()  # it waits for a connection
        raise


async def _current_async(engine: AsyncEngine, asking: list[Any]) -> int:
    async with engine.execution_options(**_AUTOCOMMIT).connect() as connection:
        asking.append((await connection.get_raw_connection()).driver_connection)
        said = (await connection.exec_driver_sql(CURRENT)).scalar_one()
        asking.clear()
        return parse(said)


def _current(engine: Engine, asking: list[Any]) -> int:
    with engine.execution_options(**_AUTOCOMMIT).connect() as connection:
        asking.append(connection.connection.driver_connection)
        said = connection.exec_driver_sql(CURRENT).scalar_one()
        asking.clear()
        return parse(said)


def _cut_all(asking: list[Any], dialect: Any) -> bool:
    """Cut the connections on which a question waits for its answer; return whether there was one."""
    for driver_connection in asking:
        cut(driver_connection, dialect)
    return bool(asking)


def _forget(task: asyncio.Task[int]) -> None:
    _tasks.discard(task)
    if not task.cancelled():
        task.exception()  # nobody waits for it


class Following(OptionEngine):
    """The engine of one session: connects to a replica that has replayed ``position``, or else to the primary."""

    def __init__(self, replica: Engine, primary: Callable[[], Engine], position: int) -> None:
        super().__init__(replica, {})
        self._replica = replica
        self._primary = primary
        self._position = position
        self._behind = False
        """Whether a connection went to the primary; the next ones do too, as a unit must not go back in time."""

    def execution_options(self, **options: Any) -> Following:
        """Return an engine with ``options`` that follows as well."""
        primary = self._primary
        return Following(
            self._replica.execution_options(**options), lambda: primary().execution_options(**options), self._position
        )

    def connect(self) -> Connection:
        """Return a connection to the replica or to the primary; never wait for the replica to catch up."""
        if not self._behind:
            try:
                if (connection := self._connect_to_replica()) is not None:
                    return connection
            except PoolTimeoutError:  # the primary must not get the load that the replicas cannot serve
                raise
            except Exception as exc:
                logger.warning("the replica %s could not be asked for its WAL position: %r", shown(self.url), exc)
            self._behind = True
        connection = self._primary().connect()
        connection.engine = self  # a session finds its connections by their engines
        return connection

    def _connect_to_replica(self) -> Connection | None:
        connection, kept = super().connect(), False
        try:
            kept = _has_replayed(connection, self._position)
        finally:
            if not kept:
                connection.close()
        return connection if kept else None


def _has_replayed(connection: Connection, position: int) -> bool:
    """Return whether the replica has replayed ``position``; it is asked unless an earlier answer is enough."""
    if connection.info.get(KEY, -1) >= position:
        return True
    said = connection.exec_driver_sql(REPLAYED).scalar()
    connection.rollback()  # or a transaction with one snapshot would read from before the answer
    if said is None:
        return False
    connection.info[KEY] = replayed = parse(said)
    return replayed >= position
