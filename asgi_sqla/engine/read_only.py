"""Read-only connections: permanently on our own engines, for one transaction on an engine that was passed in.

Our own are in autocommit too, so that a SELECT is one round trip. The few statements that need a transaction begin one.

Holds: what makes a connection of each database read-only, what begins a transaction on one, and how everything is
undone before the next user.
Must not know: sessions, or why a unit only reads.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Dialect, Engine
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolResetState, SingletonThreadPool, StaticPool

from asgi_sqla.engine.drivers import MYSQL
from asgi_sqla.engine.instant import instant

CONNECTION = {
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "cockroachdb": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
    "sqlite": "PRAGMA query_only=ON",
}
"""The statement that makes a connection read-only permanently, by dialect."""
PARAMETER = "default_transaction_read_only"
"""What does it on PostgreSQL when the connection starts."""
_ELSEWHERE = frozenset(("conninfo", "dsn", "service", "target_session_attrs"))
_ELSEWHERE_IN_ENVIRONMENT = frozenset(("PGSERVICE", "PGTARGETSESSIONATTRS"))
"""What makes a connection depend on more than its arguments."""
TRANSACTION = {
    "postgresql": "SET TRANSACTION READ ONLY",
    "cockroachdb": "SET TRANSACTION READ ONLY",
    "mysql": "SET TRANSACTION READ ONLY",
    "mariadb": "SET TRANSACTION READ ONLY",
}
"""The statement that makes the current transaction read-only, by dialect."""

CURSORS = frozenset(("postgresql", "cockroachdb"))
"""The dialects whose server-side cursors exist only in a transaction."""

_BEGUN, _CHANGED = "asgi_sqla_begun", "asgi_sqla_changed"
"""The keys in ``Connection.info`` of a connection that has left autocommit, and of one that a unit has changed."""
_QUERY_ONLY = "asgi_sqla_query_only"

_kept: WeakSet[Dialect] = WeakSet()
"""The dialects of engines whose connections are all read-only; a pool can be replaced, a dialect stays."""
_restoring: WeakSet[Pool] = WeakSet()
"""The pools of others that undo it when a connection returns."""


def start_read_only(url: URL, args: dict[str, Any]) -> None:
    """Add PARAMETER to the driver's arguments, if the driver sends startup parameters.

    It saves the round trip of a statement, and a pooler refuses it instead of handing it to another client.
    """
    # A service may have options, and the choice among several hosts may depend on what the parameter says.
    elsewhere = _ELSEWHERE & {*args, *url.query} or _ELSEWHERE_IN_ENVIRONMENT & os.environ.keys()
    if url.get_backend_name() != "postgresql" or elsewhere:
        return
    if url.get_driver_name() == "asyncpg":
        args["server_settings"] = {**(args.get("server_settings") or {}), PARAMETER: "on"}
    elif url.get_driver_name() in ("psycopg", "psycopg_async", "psycopg2"):
        # libpq takes the options of one place only.
        given = args.get("options") or url.query.get("options") or os.environ.get("PGOPTIONS", "")
        args["options"] = f"{given} -c {PARAMETER}=on".strip()


def keep_read_only(engine: Engine, connect_args: Mapping[str, Any], *, pooler: bool) -> None:
    """Make every connection of ``engine`` read-only; it is ours, and only for reading."""
    dialect: Any = engine.dialect
    statement = CONNECTION.get(dialect.name)

    def on_connect(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()
        connection.commit()

    _kept.add(dialect)
    if pooler:
        _begin_read_only(engine)
    elif statement is not None and not _has_started(connect_args):
        event.listen(engine, "connect", on_connect)
    event.listen(engine, "reset", instant(functools.partial(_undo, dialect)))  # unless it has something to undo
    if dialect.name in MYSQL:
        dialect.do_commit = functools.partial(_commit, dialect)


def _undo(dialect: Dialect, adapted: Any, record: ConnectionPoolEntry, state: PoolResetState) -> None:
    """Undo what a unit did to the connection that it returns; what nobody knows how to undo ends with it."""
    begun, changed = record.info.pop(_BEGUN, False), record.info.pop(_CHANGED, False)
    if changed and not state.terminate_only:
        record.invalidate()
    elif begun and not state.terminate_only:
        _return_to_autocommit(dialect, adapted)


def _commit(dialect: Dialect, adapted: Any) -> None:
    """Send no COMMIT in autocommit, as the drivers of MySQL and MariaDB would."""
    if not dialect.detect_autocommit_setting(adapted):
        adapted.commit()


def _has_started(connect_args: Mapping[str, Any]) -> bool:
    """Return whether a startup parameter has made the connections read-only."""
    return any(PARAMETER in (connect_args.get(name) or ()) for name in ("server_settings", "options"))


def _begin_read_only(engine: Engine) -> None:
    """Have each BEGIN say READ ONLY: it takes no round trip, and ends with the transaction."""
    dialect: Any = engine.dialect
    set_readonly, set_isolation_level = dialect.set_readonly, dialect.set_isolation_level

    def set_level(adapted: Any, level: str) -> None:
        # In autocommit psycopg2 would send a SET for it, which a pooler hands to another client.
        adapted.rollback()
        adapted.readonly = None
        set_isolation_level(adapted, level)
        if level != "AUTOCOMMIT":
            adapted.readonly = True

    def on_connect(adapted: Any, _record: object) -> None:
        if dialect.driver != "psycopg2" or not dialect.detect_autocommit_setting(adapted):
            set_readonly(adapted, True)

    dialect.begins_read_only = True
    event.listen(engine, "connect", on_connect)
    if dialect.driver == "psycopg2":
        dialect.set_isolation_level = set_level
    # SQLAlchemy resets a user's execution option by setting it to False.
    dialect.set_readonly = lambda _adapted, _value: None


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
        if isinstance(connection.engine.pool, StaticPool | SingletonThreadPool):
            return  # a writer may be using the same connection
        # SQLite has it only for connections, so it is undone when this one returns to its pool.
        _restore_on_return(connection.engine)
        connection.exec_driver_sql("PRAGMA query_only=ON")
        fairy: Any = connection.connection
        fairy.record_info[_QUERY_ONLY] = True
    elif (statement := TRANSACTION.get(connection.dialect.name)) is not None:
        connection.exec_driver_sql(statement)


def needs_transaction(statement: str, context: Any) -> bool:
    """Return whether a statement on a connection in autocommit has no effect, or fails, without a transaction."""
    if statement[:9] == "SAVEPOINT":
        return True
    dialect = context.dialect
    if dialect.name not in CURSORS:
        return dialect.name in MYSQL and _locks(context)
    if getattr(dialect, "begins_read_only", False) and (statement.lstrip()[:6].upper() != "SELECT" or _locks(context)):
        return True  # nothing else would refuse it
    return bool(context.execution_options.get("stream_results"))


def _locks(context: Any) -> bool:
    return getattr(context.compiled and context.compiled.statement, "_for_update_arg", None) is not None


def begin_in_autocommit(connection: Connection) -> Any:
    """Begin a transaction with the next statement, on one of our connections; its return to the pool undoes that.

    Return the driver's connection; on SQLite None, because it says nothing about a transaction in autocommit.
    """
    dialect, adapted = connection.dialect, _adapted(connection)
    connection.info[_BEGUN] = True
    if dialect.name == "sqlite":
        cursor = adapted.cursor()
        cursor.execute("BEGIN")
        cursor.close()
        return None
    if dialect.name in MYSQL:  # where SQLAlchemy's way sends two more statements, for the isolation level
        adapted.autocommit(False)
    elif dialect.default_isolation_level is not None:
        dialect.set_isolation_level(adapted, dialect.default_isolation_level)
    return connection.connection.driver_connection


def is_unchanged(info: Mapping[str, Any]) -> bool:
    """Return whether nothing has to be undone on a connection with this ``info`` before its next user has it."""
    return not (info.get(_BEGUN) or info.get(_CHANGED))


def ends_in_silence(dialect: Any) -> bool:
    """Return whether no end of a transaction reaches the server in autocommit, whatever the driver would send.

    From 2.0.43 on SQLAlchemy can leave out ROLLBACK, and our engines for reading ask for that.
    """
    return dialect.name in MYSQL and dialect in _kept and bool(getattr(dialect, "skip_autocommit_rollback", False))


def note_changed(connection: Connection) -> None:
    """Record that a statement may have changed a connection for its next user; only our own is then closed."""
    if is_kept(connection):
        connection.info[_CHANGED] = True


def _return_to_autocommit(dialect: Dialect, adapted: Any) -> None:
    if dialect.name == "sqlite":
        adapted.rollback()  # SQLAlchemy sends no ROLLBACK in autocommit
    elif dialect.name in MYSQL:
        adapted.autocommit(True)
    else:
        dialect.set_isolation_level(adapted, "AUTOCOMMIT")


def _adapted(connection: Connection) -> Any:
    return connection.connection.dbapi_connection


def _restore_on_return(engine: Engine) -> None:
    """Undo it when ``engine`` gets a SQLite connection back."""
    pool = engine.pool  # the engine may be a copy of the owner's, with other options
    if pool not in _restoring:  # event.contains() goes by id(), which may be that of a pool that is gone
        _restoring.add(pool)
        event.listen(pool, "checkin", _restore)


def _restore(connection: Any, record: Any) -> None:
    if connection is not None and record.record_info.pop(_QUERY_ONLY, False):
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only=OFF")
        cursor.close()
