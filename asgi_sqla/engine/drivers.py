"""What a driver knows of its transaction, asked of the driver itself: no round trip, nothing awaited.

Every driver of the table keeps what the server last said. SQLAlchemy does not ask it, and so believes in transactions
that the database has ended by itself.

Holds: the word of each driver, what hides it, and how to cut a connection that no longer answers.
Must not know: sessions, or what is decided on the driver's word.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from enum import Enum
from operator import attrgetter, methodcaller
from typing import Any, NamedTuple


class Word(Enum):
    """What the driver says that the server last said."""

    UNKNOWN = "nothing that the driver can tell"
    IDLE = "no transaction is open"
    OPEN = "a transaction is open"
    FAILED = "a transaction is open, and only ROLLBACK will end it"


UNKNOWN, IDLE, OPEN, FAILED = Word.UNKNOWN, Word.IDLE, Word.OPEN, Word.FAILED


class Driver(NamedTuple):
    """How to ask a driver, and how to cut its connection."""

    peek: Callable[[Any], Any]
    """What the driver keeps, read off its connection before every statement, and so by nothing slower than C."""
    words: Mapping[Any, Word]
    """What that means."""
    cut: Callable[[Any], object]
    is_closed: Callable[[Any], bool] = lambda _connection: False
    """Whether a connection is closed, where its driver would then call it idle."""
    hidden_by_errors: bool = False
    """Whether its word is to be asked for with a statement after an error, which carried no state."""
    begins_with_statement: bool = False
    """Whether the first statement of any kind opens the transaction; if not, only one that needs it."""

    def ask(self, connection: Any) -> Word:
        """Return what the driver says of one of its connections, at any time."""
        return UNKNOWN if self.is_closed(connection) else self.words[self.peek(connection)]


class _Libpq(dict[int, Word]):
    """PQTRANS_IDLE, PQTRANS_INTRANS and PQTRANS_INERROR; the others say nothing."""

    def __missing__(self, _status: int) -> Word:
        return UNKNOWN


class _Flags(dict[int | None, Word]):
    """The status flags of MySQL's and MariaDB's packets, each set of them judged once."""

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
    # Its connection keeps the last flags of a result that were not zero, so only its result says "idle" then; of
    # COMMIT and ROLLBACK there is no result, and the connection has all of their flags.
    result = connection._result
    return connection.server_status if result is None else result.server_status


def _say_nothing(_connection: Any) -> None:
    return None


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
    # It says True of a failed transaction too, and False of a closed connection.
    "asyncpg": Driver(
        methodcaller("is_in_transaction"),
        _BOOL,
        _terminate,
        methodcaller("is_closed"),
        hidden_by_errors=True,
        begins_with_statement=True,
    ),
    "psycopg": Driver(attrgetter("pgconn.transaction_status"), _LIBPQ, _cut_socket, begins_with_statement=True),
    "psycopg2": Driver(methodcaller("get_transaction_status"), _LIBPQ, _cut_socket, begins_with_statement=True),
    "pysqlite": Driver(attrgetter("in_transaction"), _BOOL, _interrupt),
    "aiosqlite": Driver(attrgetter("_connection.in_transaction"), _BOOL, _interrupt_aiosqlite),
    "pymysql": Driver(attrgetter("server_status"), _FLAGS, _cut_pymysql, hidden_by_errors=True),
    "aiomysql": Driver(attrgetter("server_status"), _FLAGS, _close, hidden_by_errors=True),
    "asyncmy": Driver(_asyncmy_flags, _FLAGS, _close, hidden_by_errors=True),
}
"""What is known of each driver, by SQLAlchemy's name of it."""
OTHER = Driver(_say_nothing, {None: UNKNOWN}, _cut_nothing, hidden_by_errors=True, begins_with_statement=True)
"""Any other driver, mysqlclient among them: only errors tell, and a statement is asked after one."""


def driver_of(dialect: Any) -> Driver:
    """Return what is known of the driver of a dialect."""
    return DRIVERS.get(dialect.driver, OTHER)


def cut(connection: Any, dialect: Any) -> None:
    """Cut a driver's connection that no longer answers: whoever waits for it gets an error now."""
    try:
        driver_of(dialect).cut(connection)
    except Exception:  # it is closed already, for which each driver has an error of its own
        return
