"""Connections that only read: made so for good where the engine is ours, or for one transaction where it is not.

Holds: the statement by which each database is told, and how a connection is given back as it was.
Must not know: sessions, or why anything only reads.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect, Engine

CONNECTION = {
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "cockroachdb": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
    "sqlite": "PRAGMA query_only=ON",
}
"""What makes a connection read-only for good, by dialect."""
TRANSACTION = {
    "postgresql": "SET TRANSACTION READ ONLY",
    "cockroachdb": "SET TRANSACTION READ ONLY",
    "mysql": "SET TRANSACTION READ ONLY",
    "mariadb": "SET TRANSACTION READ ONLY",
}
"""What makes only the transaction read-only that has just begun, by dialect."""

_kept: WeakSet[Dialect] = WeakSet()
"""The dialects of engines whose connections are all read-only; a pool may be replaced, a dialect stays."""


def keep_read_only(engine: Engine) -> None:
    """Open every connection of ``engine``, which is ours and for nothing else, read-only."""
    statement = CONNECTION.get(engine.dialect.name)

    def on_connect(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()
        connection.commit()

    _kept.add(engine.dialect)
    if statement is not None:
        event.listen(engine, "connect", on_connect)


def is_kept(connection: Connection) -> bool:
    """Whether ``connection`` is of an engine that was made for reading."""
    return connection.dialect in _kept


def begin(connection: Connection) -> None:
    """Make the transaction that has just begun read-only, on a connection that is not so by itself.

    It is of an engine that was handed in, or that ``binds=`` or ``get_bind()`` of the user's session class chose.
    """
    if is_kept(connection):
        return
    if connection.dialect.name == "sqlite":
        # SQLite knows it only of connections, so it is undone when this one goes back to its pool.
        _restore_on_return(connection.engine)
        connection.exec_driver_sql("PRAGMA query_only=ON")
        fairy: Any = connection.connection
        fairy.record_info["asgi_sqla_query_only"] = True
    elif (statement := TRANSACTION.get(connection.dialect.name)) is not None:
        connection.exec_driver_sql(statement)


def _restore_on_return(engine: Engine) -> None:
    """Let ``engine`` get its SQLite connections back as they were."""
    pool = engine.pool  # the engine may be a copy of the owner's, with options of its own
    if not event.contains(pool, "checkin", _restore):
        event.listen(pool, "checkin", _restore)


def _restore(connection: Any, record: Any) -> None:
    if connection is not None and record.record_info.pop("asgi_sqla_query_only", False):
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only=OFF")
        cursor.close()
