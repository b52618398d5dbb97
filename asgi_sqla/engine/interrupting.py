"""Ends a running statement in its server, from outside: the driver asks the server, or another connection does.

A request to end a statement names its connection, and may arrive after the statement has ended. It must not hit the
next user of the connection. So the connection is marked first, and its next user connects anew.

The statement of a cancelled task is ended under aiosqlite as well. Its thread would go on with it, and SQLAlchemy next
closes the connection, which waits for the thread.

Holds: how each driver asks, and the mark.
Must not know: sessions, units, or why a statement is ended.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy.engine import Connection
from sqlalchemy.exc import InvalidRequestError, SAWarning
from sqlalchemy.pool import Pool, SingletonThreadPool, StaticPool

from asgi_sqla.engine.cancelling import asking_first
from asgi_sqla.engine.loops import await_
from asgi_sqla.engine.moment import moment

LIMIT = 5.0
"""Seconds that a server has to hear of it."""
AGAIN = 0.01
"""Seconds until a cancelled statement of aiosqlite is interrupted, and until it is again: it may not have begun."""

Request: TypeAlias = Callable[[], object]
"""Asks a server to end a statement: called in a thread, or under an async driver in SQLAlchemy's greenlet."""


def interruption(connection: Connection) -> Request | None:
    """Return what ends the statement that runs on ``connection``; None if nothing can.

    The connection may be in use by another thread or task, which may end with it at any moment.
    """
    make = _DRIVERS.get(connection.dialect.driver)
    pool = connection.engine.pool
    if make is None or _is_shared(pool):
        return None
    try:
        if _is_over(connection):
            return None
        fairy = connection.connection
        raw: Any = fairy.driver_connection
        fairy.invalidate(soft=True)
        if _is_over(connection) or fairy.driver_connection is not raw:
            return None
    except (AttributeError, InvalidRequestError, SAWarning):  # it was closed at this moment
        return None
    return make(raw, connection.dialect.is_async, pool)


def end_if_cancelled(connection: Connection, error: BaseException) -> None:
    """End the statement that raised ``error`` if its task was cancelled and its driver goes on with it.

    SQLAlchemy closes the connection next.
    """
    goes_on = not isinstance(error, Exception) and connection.dialect.driver == "aiosqlite"
    if not goes_on or _is_shared(connection.engine.pool) or _is_over(connection):
        return
    with suppress(RuntimeError):  # its loop has gone, and its greenlet with it
        loop = asyncio.get_running_loop()
        raw, end = connection.connection.driver_connection, loop.time() + LIMIT
        # Not at once: what has ended needs no interrupt, which would hit the end of its transaction instead.
        loop.call_later(AGAIN, _interrupt_until_closed, loop, connection, raw, end)


def _interrupt_until_closed(loop: asyncio.AbstractEventLoop, connection: Connection, raw: Any, end: float) -> None:
    found = getattr(raw, "_connection", None)
    # If it went back to the pool after all, its next user must not be interrupted.
    if found is None or loop.time() > end or _is_over(connection) or connection.connection.driver_connection is not raw:
        return
    with suppress(found.ProgrammingError):  # it is being closed
        found.interrupt()
    loop.call_later(AGAIN, _interrupt_until_closed, loop, connection, raw, end)


def _is_shared(pool: Pool) -> bool:
    """Return whether others may use the same connection."""
    return isinstance(pool, StaticPool | SingletonThreadPool)


def _is_over(connection: Connection) -> bool:
    return connection.closed or connection.invalidated


def _psycopg(raw: Any, asynchronous: bool, _pool: Pool) -> Request:
    if asynchronous:
        return lambda: await_(raw.cancel_safe(timeout=LIMIT))
    return partial(raw.cancel_safe, timeout=LIMIT)


def _psycopg2(raw: Any, _asynchronous: bool, _pool: Pool) -> Request:
    return asking_first(raw, raw.cancel, LIMIT)


def _sqlite(raw: Any, _asynchronous: bool, _pool: Pool) -> Request:
    request: Request = raw.interrupt
    return request


def _aiosqlite(raw: Any, _asynchronous: bool, _pool: Pool) -> Request:
    request: Request = raw._conn.interrupt  # its own method is an async function that awaits nothing
    return request


def _mysql(raw: Any, _asynchronous: bool, pool: Pool) -> Request:
    return partial(_kill_query, pool, int(raw.thread_id()), _local_port(raw))


_DRIVERS: Mapping[str, Callable[[Any, bool, Pool], Request]] = {
    # asyncpg asks by itself when its caller is cancelled.
    "psycopg": _psycopg,
    "psycopg2": _psycopg2,
    "pysqlite": _sqlite,
    "aiosqlite": _aiosqlite,
    "pymysql": _mysql,
    "mysqldb": _mysql,
    "aiomysql": _mysql,
    "asyncmy": _mysql,
}
"""By SQLAlchemy's names of the drivers."""


def _kill_query(pool: Pool, thread: int, port: int | None) -> None:
    """End the query of ``thread`` by a connection of its own, as the pool may have none left.

    It ends every query of the pool that is to be ended meanwhile, because a hundred clients may hang up at once.
    """
    with moment:
        if pool in _to_kill:
            _to_kill[pool].append((thread, port))
            return
        _to_kill[pool] = deque([(thread, port)])
    spare = pool.recreate()
    fairy = None
    try:
        fairy = spare.connect()
        cursor = fairy.cursor()
        while (one := _next(pool)) is not None:
            _kill_if_ours(cursor, *one)
    except BaseException:
        with moment:
            _to_kill.pop(pool, None)
        raise
    finally:
        if fairy is not None:
            fairy.invalidate()
        spare.dispose()


def _next(pool: Pool) -> tuple[int, int | None] | None:
    with moment:
        if _to_kill[pool]:
            return _to_kill[pool].popleft()
        del _to_kill[pool]
    return None


def _kill_if_ours(cursor: Any, thread: int, port: int | None) -> None:
    """End the query of ``thread`` if its connection comes from ``port`` of this machine.

    A proxy, or a second server behind the same name, may give the number to a stranger's connection.
    """
    came_from = "host = 'localhost'" if port is None else f"host LIKE '%:{port}'"  # a "%" without parameters stays
    cursor.execute(
        f"SELECT id FROM information_schema.processlist WHERE id = {thread} AND command <> 'Sleep' AND {came_from}"  # noqa: S608  # numbers
    )
    if cursor.fetchone() is not None:  # an idle one would be "killed" until its next statement
        cursor.execute(f"KILL QUERY {thread}")


_to_kill: dict[Pool, deque[tuple[int, int | None]]] = {}
"""The threads whose queries one connection is ending, for each pool."""


def _local_port(raw: Any) -> int | None:
    """Return the port of this machine that a connection comes from; None if it is a socket in the file system."""
    for name in ("_transport", "_writer", "_sock"):
        if (found := getattr(raw, name, None)) is not None:
            address = found.getsockname() if hasattr(found, "getsockname") else found.get_extra_info("sockname")
            return _port_of(address)
    with socket.socket(fileno=os.dup(raw.fileno())) as twin:
        return _port_of(twin.getsockname())


def _port_of(address: Any) -> int | None:
    return int(address[1]) if isinstance(address, tuple) else None
