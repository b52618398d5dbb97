"""SQLite for applications: foreign keys, WAL, a busy timeout, and transactions that really begin.

Holds: the settings of our own SQLite engines; an engine that was passed in is never changed.
Must not know: who uses them.
"""

from __future__ import annotations

from asyncio import CancelledError
from contextlib import suppress
from itertools import count
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine

from asgi_sqla.engine.deadlines import running_deadline
from asgi_sqla.engine.limits import begin_within
from asgi_sqla.engine.options import TransactionMode
from asgi_sqla.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3

SWITCH_TIMEOUT = 0.02
"""Seconds to keep trying to switch a file to WAL while another connection writes to it."""

_BEGUN = "asgi_sqla_begin_sent"
"""The key in the ``info`` of a connection on which a listener has just begun."""

_memories = count(1)


def is_memory(url: URL) -> bool:
    """Return whether ``url`` names an in-memory database."""
    return url.database in (None, "", ":memory:", "file::memory:") or url.query.get("mode") == "memory"


def is_inside(dialect: Any) -> bool:
    """Return whether the transactions of ``dialect`` are savepoints in another one, as inside ``rolled_back()``."""
    return bool(getattr(dialect, "inside_transaction", False))


def shared_memory(url: URL) -> tuple[URL, sqlite3.Connection]:
    """Return the URL of a new in-memory database, and the connection that keeps it alive.

    Every connection in the process to that URL uses the same database, each in its own transaction: SQLite's ``memdb``
    file system locks it like a file. (A plain ``:memory:`` is a separate database in each thread, and with one shared
    connection a rollback undoes everybody's work.)
    """
    import sqlite3  # imported only for such a database

    if sqlite3.sqlite_version_info < (3, 36):
        raise ConfigurationError(
            f"url={url!r}: an in-memory database shared by all sessions needs SQLite 3.36 or newer, "
            f"this Python has {sqlite3.sqlite_version}; name a file instead"
        )
    name = f"file:/asgi_sqla_{next(_memories)}"
    anchor = sqlite3.connect(f"{name}?vfs=memdb", uri=True, check_same_thread=False)
    shared = url.difference_update_query(("mode", "cache")).update_query_dict({"vfs": "memdb", "uri": "true"})
    return shared.set(database=name), anchor


def _switch_to_wal(cursor: Any) -> None:
    """Switch a file to WAL, permanently; while another connection writes to it, leave that to a later connection.

    The switch needs exclusive access, and SQLite does not wait for a writer then, whatever the timeout is.
    """
    import sqlite3

    until = monotonic() + SWITCH_TIMEOUT
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if monotonic() > until:
                return
            sleep(SWITCH_TIMEOUT / 10)
        else:
            return


def _release(connection: Any, _record: object, _exception: BaseException | None) -> None:
    """Roll back before an invalidated connection is closed.

    A traceback may hold the cursor of a cancelled statement. It keeps a closed connection alive, with its lock on the
    database.
    """
    with suppress(Exception, CancelledError):
        connection.rollback()


def _begin_immediate(connection: Connection) -> None:
    if (deadline := running_deadline()) is not None:
        begin_within(connection, "BEGIN IMMEDIATE", deadline)
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_each(engine: Engine) -> None:
    """Begin each transaction, before anybody hears that it has begun.

    One listener of an engine makes each of its connections ask for every other event too, before and after each
    statement. So SQLAlchemy is not told of ours: if there is another one, it calls ours before that, and otherwise the
    dialect begins.
    """
    dialect: Any = engine.dialect  # of this engine alone
    asynchronous = dialect.is_async

    def on_begin(connection: Connection) -> None:
        try:
            _begin_deferred(connection.connection.dbapi_connection, asynchronous)
        except BaseException:  # cancelled, so it is unknown whether the transaction has begun
            connection.invalidate()
            raise
        connection.info[_BEGUN] = True

    def do_begin(fairy: Any) -> None:
        if not fairy.info.pop(_BEGUN, False):
            _begin_deferred(fairy.dbapi_connection, asynchronous)

    told = vars(engine).get("_has_events")
    event.listen(engine, "begin", on_begin)
    if told is None:  # a listener of all engines is told of by their class
        vars(engine).pop("_has_events", None)
    dialect.do_begin = do_begin


def _begin_deferred(adapted: Any, asynchronous: bool) -> None:
    """Begin without SQLAlchemy's cursor, in one turn of the driver's thread instead of three, or in none.

    It takes no lock, so it cannot fail; but it may be cancelled.
    """
    if hasattr(adapted, "begin_deferred"):
        adapted.begin_deferred()
    elif asynchronous:
        adapted.run_async(lambda driver: driver.execute("BEGIN DEFERRED"))
    else:
        adapted.execute("BEGIN DEFERRED")


def prepare(engine: Engine, mode: TransactionMode | None) -> None:
    """Give every connection of ``engine`` our settings, and unless ``mode`` is None every transaction a real BEGIN."""
    wal = not {"memdb", "ro", "1"}.intersection(str(engine.url.query.get(key)) for key in ("vfs", "mode", "immutable"))

    def on_connect(connection: Any, _record: object) -> None:
        # With None the driver does not begin by itself, which it would do late and only for some statements.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        if wal:
            _switch_to_wal(cursor)
        cursor.close()

    if engine.dialect.driver == "pysqlite":
        from asgi_sqla.engine import pysqlite  # imported only for such an engine

        pysqlite.prepare(engine)
    event.listen(engine, "connect", on_connect)
    event.listen(engine, "invalidate", _release)
    if mode == "immediate":
        event.listen(engine, "begin", _begin_immediate)
    elif mode is not None:
        _begin_each(engine)
