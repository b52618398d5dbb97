"""Read-only connections: permanently on our own engines, for one transaction on an engine that was passed in.

Holds: the statement that makes a connection of each database read-only, and how it is undone before the next user.
Must not know: sessions, or why a unit only reads.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.pool import Pool

CONNECTION = {
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "cockroachdb": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
    "sqlite": "PRAGMA query_only=ON",
}
"""The statement that makes a connection read-only permanently, by dialect."""
TRANSACTION = {
    "postgresql": "SET TRANSACTION READ ONLY",
    "cockroachdb": "SET TRANSACTION READ ONLY",
    "mysql": "SET TRANSACTION READ ONLY",
    "mariadb": "SET TRANSACTION READ ONLY",
}
"""The statement that makes the current transaction read-only, by dialect."""

_kept: WeakSet[Dialect] = WeakSet()
"""The dialects of engines whose connections are all read-only; a pool can be replaced, a dialect stays."""


_restoring: WeakSet[Pool] = WeakSet()
"""The pools of others that undo it when a connection returns."""


def keep_read_only(engine: Engine) -> None:
    """Make every connection of ``engine`` read-only; it is ours, and only for reading."""
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
    """Return whether ``connection`` belongs to an engine that was made for reading."""
    return connection.dialect in _kept


def begin(connection: Connection) -> None:
    """Make the transaction that has just begun read-only, unless its connection is permanently so.

    Its engine was passed in, or chosen by ``binds=`` or ``get_bind()`` of the user's session class.
    """
    if is_kept(connection):
        return
    if connection.dialect.name == "sqlite":
        # SQLite has it only for connections, so it is undone when this one returns to its pool.
        _restore_on_return(connection.engine)
        connection.exec_driver_sql("PRAGMA query_only=ON")
        fairy: Any = connection.connection
        fairy.record_info["asgi_sqla_query_only"] = True
    elif (statement := TRANSACTION.get(connection.dialect.name)) is not None:
        connection.exec_driver_sql(statement)


def _restore_on_return(engine: Engine) -> None:
    """Undo it when ``engine`` gets a SQLite connection back."""
    pool = engine.pool  # the engine may be a copy of the owner's, with other options
    if pool not in _restoring:  # event.contains() goes by id(), which may be that of a pool that is gone
        _restoring.add(pool)
        event.listen(pool, "checkin", _restore)


def _restore(connection: Any, record: Any) -> None:
    if connection is not None and record.record_info.pop("asgi_sqla_query_only", False):
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only=OFF")
        cursor.close()
