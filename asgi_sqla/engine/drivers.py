"""What a driver knows of its transaction, read from the driver itself: no round trip, nothing awaited.

Every driver in the table keeps what the server last said. SQLAlchemy does not read it, and so assumes transactions that
the database has ended by itself.

Holds: the state that each driver knows, what hides it, and how to cut a connection that no longer answers.
Must not know: sessions, or what is decided on the state.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from enum import Enum
from operator import attrgetter, methodcaller
from typing import Any, NamedTuple

from sqlalchemy.engine import Connection

MYSQL: frozenset[str] = frozenset(("mysql", "mariadb"))
"""SQLAlchemy's names of the dialects of both."""


class Word(Enum):
    """The driver's knowledge of what the server last said."""

    UNKNOWN = "the driver does not know"
    IDLE = "no transaction is open"
    OPEN = "a transaction is open"
    FAILED = "a transaction is open, and only ROLLBACK can end it"


UNKNOWN, IDLE, OPEN, FAILED = Word.UNKNOWN, Word.IDLE, Word.OPEN, Word.FAILED


class Driver(NamedTuple):
    """How to read a driver's state, and how to cut its connection."""

    peek: Callable[[Any], Any]
    """Reads the state from the driver's connection; called before every statement, and so nothing slower than C."""
    words: Mapping[Any, Word]
    """The meaning of the state."""
    cut: Callable[[Any], object]
    is_closed: Callable[[Any], bool] = lambda _connection: False
    """Returns whether a connection is closed, if its driver would otherwise call it idle."""
    hidden_by_errors: bool = False
    """Whether the state must be refreshed with a statement after an error, which carries no state."""
    begins_with_statement: bool = False
    """Whether the first statement of any kind opens the transaction, or only one that needs it."""

    def ask(self, connection: Any) -> Word:
        """Return the state of a connection, at any time."""
        return UNKNOWN if self.is_closed(connection) else self.words[self.peek(connection)]


class _Libpq(dict[int, Word]):
    """PQTRANS_IDLE, PQTRANS_INTRANS and PQTRANS_INERROR of libpq; the other values mean nothing."""

    def __missing__(self, _status: int) -> Word:
        return UNKNOWN


class _Flags(dict[int | None, Word]):
    """The status flags of packets of MySQL and MariaDB, each combination judged once."""

    def __missing__(self, status: int | None) -> Word:
        word = UNKNOWN if status is None else OPEN if status & _IN_TRANSACTION else IDLE
        self[status] = word
        return word


_IN_TRANSACTION = 1
"""SERVER_STATUS_IN_TRANS."""
_BOOL = {True: OPEN, False: IDLE}
_LIBPQ = _Libpq({0: IDLE, 2: OPEN, 3: FAILED})
_FLAGS = _Flags()


def _asyncmy_flags(connection: Any) -> Any:
    # Its connection keeps the last flags of a result that were not zero, so only the result itself can say "idle".
    # COMMIT and ROLLBACK have no result, and the connection has all their flags.
    result = connection._result
    return connection.server_status if result is None else result.server_status


def _say_nothing(_connection: Any) -> None:
    return None


def cut_socket(connection: Any) -> None:
    """Shut the socket down: unlike closing, that wakes a call that waits for it in another thread or loop."""
    with socket.socket(fileno=os.dup(connection.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)


def _cut_pymysql(connection: Any) -> None:
    connection._sock.shutdown(socket.SHUT_RDWR)


def _close(connection: Any) -> None:
    connection.close()


def _terminate(connection: Any) -> None:
    connection.terminate()


def _interrupt(connection: Any) -> None:
    connection.interrupt()


def _interrupt_aiosqlite(connection: Any) -> None:
    connection._conn.interrupt()  # its own method is an async function that awaits nothing


def _cut_nothing(_connection: Any) -> None:
    """Do nothing: nothing is known of this driver that would wake a waiting call."""


DRIVERS: dict[str, Driver] = {
    # It returns True for a failed transaction too, and False for a closed connection.
    "asyncpg": Driver(
        methodcaller("is_in_transaction"),
        _BOOL,
        _terminate,
        methodcaller("is_closed"),
        hidden_by_errors=True,
        begins_with_statement=True,
    ),
    "psycopg": Driver(attrgetter("pgconn.transaction_status"), _LIBPQ, cut_socket, begins_with_statement=True),
    "psycopg2": Driver(methodcaller("get_transaction_status"), _LIBPQ, cut_socket, begins_with_statement=True),
    "pysqlite": Driver(attrgetter("in_transaction"), _BOOL, _interrupt),
    "aiosqlite": Driver(attrgetter("_connection.in_transaction"), _BOOL, _interrupt_aiosqlite),
    "pymysql": Driver(attrgetter("server_status"), _FLAGS, _cut_pymysql, hidden_by_errors=True),
    "aiomysql": Driver(attrgetter("server_status"), _FLAGS, _close, hidden_by_errors=True),
    "asyncmy": Driver(_asyncmy_flags, _FLAGS, _close, hidden_by_errors=True),
}
"""The known drivers, by SQLAlchemy's names."""
OTHER = Driver(_say_nothing, {None: UNKNOWN}, _cut_nothing, hidden_by_errors=True, begins_with_statement=True)
"""Any other driver, such as mysqlclient: only errors give information, and a statement follows each."""


def driver_of(dialect: Any) -> Driver:
    """Return the entry of a dialect's driver."""
    return DRIVERS.get(dialect.driver, OTHER)


def commits_each(connection: Connection) -> bool:
    """Return whether an idle driver means autocommit: on MySQL and in sqlite3's own mode reads begin nothing."""
    dialect, fairy = connection.dialect, connection.connection
    if driver_of(dialect).begins_with_statement:
        return dialect.detect_autocommit_setting(fairy.dbapi_connection)  # type: ignore[arg-type]  # it is not closed
    raw: Any = fairy.driver_connection
    return bool(raw.get_autocommit()) if dialect.name in MYSQL else raw.isolation_level is None


def forget_rows(connection: Connection) -> bool:
    """Forget rows that the server is still sending; return whether there were any, so that only closing helps.

    The cursors for MySQL and MariaDB read them all when they are closed, and PyMySQL's result when it is collected.
    """
    raw: Any = None if connection.closed or connection.invalidated else connection.connection.driver_connection
    result: Any = getattr(raw, "_result", None)
    if not getattr(result, "unbuffered_active", False):
        return False
    result.unbuffered_active = False
    return True


def is_read_out(cursor: Any) -> bool:
    """Return whether a cursor that fetches its rows in parts is closed, as after its last row; True if nobody knows."""
    if hasattr(cursor, "_cursor"):  # SQLAlchemy's adapter of an async driver
        return cursor._cursor is None or bool(getattr(cursor._cursor, "closed", False))  # as 2.0 leaves psycopg's
    if hasattr(cursor, "closed"):  # psycopg, psycopg2
        return bool(cursor.closed)
    return getattr(cursor, "connection", None) is None  # the cursors for MySQL drop it, and sqlite3's never do


def cut(connection: Any, dialect: Any) -> None:
    """Cut a driver's connection that no longer answers: a call that waits for it gets an error now."""
    try:
        driver_of(dialect).cut(connection)
    except Exception:  # it is closed already, and each driver raises its own error for that
        return
