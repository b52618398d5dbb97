"""What a driver knows of its transaction, asked of the driver itself: no round trip, nothing awaited.

Every driver here keeps what the server last said. SQLAlchemy does not ask it, and so believes in transactions
that the database has ended by itself.

Holds: the word of each driver, what hides it, and how to cut a connection that no longer answers.
Must not know: sessions, or what is decided on the driver's word.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple, TypeAlias


class Word(Enum):
    """What the driver says that the server last said."""

    UNKNOWN = "nothing that the driver can tell"
    IDLE = "no transaction is open"
    OPEN = "a transaction is open"
    FAILED = "a transaction is open, and only ROLLBACK will end it"


UNKNOWN, IDLE, OPEN, FAILED = Word.UNKNOWN, Word.IDLE, Word.OPEN, Word.FAILED

Ask: TypeAlias = Callable[[Any], Word]
"""A function of the driver's own connection."""


class Driver(NamedTuple):
    """How to ask a driver, and how to cut its connection."""

    ask: Ask
    cut: Callable[[Any], object]
    hidden_by_errors: bool
    """Whether its word is to be asked for with a statement after an error, which carried no state."""
    begins_with_statement: bool
    """Whether the first statement of any kind opens the transaction; if not, only one that needs it."""


_LIBPQ = {0: IDLE, 2: OPEN, 3: FAILED}
"""libpq's PQTRANS_IDLE, PQTRANS_INTRANS and PQTRANS_INERROR; the others say nothing."""
_IN_TRANSACTION = 1
"""SERVER_STATUS_IN_TRANS, in the status flags of MySQL's and MariaDB's packets."""


def _say_nothing(_connection: Any) -> Word:
    return UNKNOWN


def _ask_asyncpg(connection: Any) -> Word:
    # It is True for a failed transaction too, and False once the connection is closed.
    if connection.is_in_transaction():
        return OPEN
    return UNKNOWN if connection.is_closed() else IDLE


def _ask_psycopg(connection: Any) -> Word:
    return _LIBPQ.get(connection.pgconn.transaction_status, UNKNOWN)


def _ask_psycopg2(connection: Any) -> Word:
    return _LIBPQ.get(connection.get_transaction_status(), UNKNOWN)


def _ask_sqlite(connection: Any) -> Word:
    try:
        return OPEN if connection.in_transaction else IDLE
    except ValueError:  # aiosqlite says so of a closed connection
        return UNKNOWN


def _ask_mysql(connection: Any) -> Word:
    status = connection.server_status
    return UNKNOWN if status is None else OPEN if status & _IN_TRANSACTION else IDLE


def _ask_asyncmy(connection: Any) -> Word:
    # Its connection keeps the last flags that were not zero, so they never say "idle" again; its result has them all.
    result = connection._result
    return UNKNOWN if result is None else OPEN if result.server_status & _IN_TRANSACTION else IDLE


def _cut_socket(connection: Any) -> None:
    """Shut the socket down under whoever waits for it: that wakes them in any thread or loop, as closing does not."""
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
    connection._conn.interrupt()  # its own method is a coroutine function that awaits nothing


def _cut_nothing(_connection: Any) -> None:
    """Leave it: nothing is known of this driver that would wake who waits."""


DRIVERS: dict[str, Driver] = {
    "asyncpg": Driver(_ask_asyncpg, _terminate, hidden_by_errors=True, begins_with_statement=True),
    "psycopg": Driver(_ask_psycopg, _cut_socket, hidden_by_errors=False, begins_with_statement=True),
    "psycopg2": Driver(_ask_psycopg2, _cut_socket, hidden_by_errors=False, begins_with_statement=True),
    "pysqlite": Driver(_ask_sqlite, _interrupt, hidden_by_errors=False, begins_with_statement=False),
    "aiosqlite": Driver(_ask_sqlite, _interrupt_aiosqlite, hidden_by_errors=False, begins_with_statement=False),
    "pymysql": Driver(_ask_mysql, _cut_pymysql, hidden_by_errors=True, begins_with_statement=False),
    "aiomysql": Driver(_ask_mysql, _close, hidden_by_errors=True, begins_with_statement=False),
    "asyncmy": Driver(_ask_asyncmy, _close, hidden_by_errors=True, begins_with_statement=False),
}
"""What is known of each driver, by SQLAlchemy's name of it."""
OTHER = Driver(_say_nothing, _cut_nothing, hidden_by_errors=True, begins_with_statement=True)
"""Any other driver, mysqlclient among them: only errors tell, and a statement is asked after one."""


def driver_of(dialect: Any) -> Driver:
    """Return what is known of the driver of a dialect."""
    return DRIVERS.get(dialect.driver, OTHER)


def cut(connection: Any, dialect: Any) -> None:
    """Cut a driver's connection that no longer answers: whoever waits for it gets an error now."""
    try:
        driver_of(dialect).cut(connection)
    except (AttributeError, OSError, ValueError):
        return  # it is closed already
