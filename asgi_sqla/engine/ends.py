"""Whether the end of a transaction waits for nothing: no server, no disk, no lock, and no listener of the application.

Such an end may run on an event loop, which it does not hold up. Drivers send no COMMIT if no transaction is open: in
autocommit, where read-only units run, none ever is. SQLite has no server, and ends a transaction that only read in
some microseconds. What is not known for certain counts as a wait.

Holds: what is known of drivers, dialects, pools and listeners for this.
Must not know: sessions, or where an end runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sqlalchemy.engine import Connection
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import QueuePool

from asgi_sqla.engine import read_only
from asgi_sqla.engine.drivers import DRIVERS, IDLE, UNKNOWN
from asgi_sqla.engine.instant import MARK
from asgi_sqla.engine.sqlite_reads import Reads

_ENDS = ("commit", "rollback")
"""The events of a connection or its engine when a transaction ends."""
_RETURNS = ("checkin", "reset")
"""The events of a pool when a connection returns."""


class _Known(NamedTuple):
    """What is known of a driver."""

    is_quiet: Callable[[Any], bool]
    """Returns whether nothing else is going on where no transaction is open."""
    modules: tuple[str, ...]
    """The modules of the classes of connections for which that is known."""


def _is_quiet_psycopg(raw: Any) -> bool:
    return not (raw.pgconn.pipeline_status or raw.lock.locked())


def _is_quiet_psycopg2(raw: Any) -> bool:
    # STATUS_READY: it believes so itself, and would otherwise send a COMMIT after a textual one.
    return bool(raw.status == 1)


def _is_quiet(_raw: Any) -> bool:
    return True


_DRIVERS: dict[str, _Known] = {
    "psycopg": _Known(_is_quiet_psycopg, ("asgi_sqla.engine.psycopg_ahead", "psycopg")),
    "psycopg2": _Known(_is_quiet_psycopg2, ("psycopg2.extensions",)),
    "pysqlite": _Known(_is_quiet, ("asgi_sqla.engine.pysqlite", "sqlite3")),
    "pymysql": _Known(_is_quiet, ("pymysql.connections",)),
}
"""The drivers whose ``commit()`` and ``rollback()`` send nothing if no transaction is open.

PyMySQL's do, and so our read-only engines call neither.
"""


def waits_for_nothing(connection: Connection, *, but_the_server: bool = False) -> bool:
    """Return whether commit, rollback and return to the pool of ``connection`` wait for nothing.

    ``but_the_server`` allows a wait for the server, where the driver can wait on an event loop.
    """
    if connection.closed or connection.invalidated:
        return False
    engine = connection.engine
    fairy: Any = connection.connection
    raw: Any = fairy.dbapi_connection
    # First what is false for most, as every unit with a sync session asks.
    known = _DRIVERS.get(engine.dialect.driver)
    if known is None or type(raw).__module__ not in known.modules:
        return False
    try:
        word = DRIVERS[engine.dialect.driver].ask(raw)
        ends = word is IDLE or (but_the_server and word is not UNKNOWN and getattr(raw, "can_await", False))
        if not ((ends and known.is_quiet(raw)) or _has_only_read(raw)):
            return False
    except Exception:  # each driver raises its own error for a connection that it has closed
        return False
    # A savepoint that was begun on the connection itself ends with no statement of its own.
    return (
        type(connection) is Connection
        and _ends_as_usual(engine.dialect)
        and read_only.is_unchanged(fairy.info)
        and not fairy._connection_record.finalize_callback  # as after execution_options(isolation_level=)
        and _returns_at_once(engine.pool)
        # SQLAlchemy asks for these itself before it fires an event.
        and (not (connection._has_events or engine._has_events) or is_unheard(connection.dispatch, _ENDS))
    )


def is_unheard(dispatch: Any, names: Iterable[str]) -> bool:
    """Return whether all who listen to the events ``names`` are functions of ours that never wait."""
    for name in names:
        for listener in getattr(dispatch, name):
            if not getattr(listener, MARK, False):
                return False
    return True


def _has_only_read(raw: Any) -> bool:
    """Return whether a connection is one of SQLite's whose transaction only read."""
    return isinstance(raw, Reads) and raw.has_only_read(raw.total_changes)  # type: ignore[attr-defined]  # sqlite3's


def _ends_as_usual(dialect: Any) -> bool:
    """Return whether nobody has replaced how a dialect ends a transaction, except for one that sends nothing."""
    if dialect.driver == "pymysql":
        return read_only.ends_in_silence(dialect)
    return (
        getattr(dialect.do_commit, "__func__", None) is DefaultDialect.do_commit
        and getattr(dialect.do_rollback, "__func__", None) is DefaultDialect.do_rollback
    )


def _returns_at_once(pool: Any) -> bool:
    """Return whether a pool takes a connection back without closing it."""
    return (
        isinstance(pool, QueuePool)
        and type(pool)._do_return_conn is QueuePool._do_return_conn
        and not pool._pool.full()
        and is_unheard(pool.dispatch, _RETURNS)
    )
