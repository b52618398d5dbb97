"""Which error is what: the one table, by SQLSTATE or the driver's error code.

Retries, ``ERROR_RESPONSES`` and users read it. An error is judged by its code and never by its class, because drivers
disagree. PostgreSQL's deadlock is an OperationalError of psycopg and a bare DBAPIError under asyncpg; SQLite's "no such
table" is an OperationalError too. libpq and asyncpg give no code when they cannot connect. Only then the place counts
where the error was raised.

Holds: the kinds of error, the codes of each database, and where an error has its code. Pure functions.
Must not know: what is done about a kind.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from enum import Enum
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Any

import sqlalchemy
from sqlalchemy import exc

from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError, DeadlineExceededError


class ErrorKind(Enum):
    """What a database error is, whatever its driver calls it; ``classify()`` returns it."""

    CONFLICT = "conflict"
    """A unique, exclusion or foreign key constraint is violated."""
    CONTENTION = "contention"
    """Another transaction was in the way: a serialization failure, a deadlock, or a lock timeout."""
    CONNECTION_LOST = "connection lost"
    """The connection was lost, or the server ended it."""
    UNAVAILABLE = "unavailable"
    """No connection could be made: it was refused, or the server is starting, stopping, or has too many of them."""
    POOL_EXHAUSTED = "pool exhausted"
    """The pool had no connection to give."""
    STANDBY = "standby"
    """The server has become one that only reads; the connection to it is discarded."""
    CACHED_PLAN = "cached plan"
    """The tables have changed since the statement was prepared; the connection with its plan is discarded."""
    STATEMENT_TIMEOUT = "statement timeout"
    """The database stopped a statement, at a time limit or because somebody cancelled it; or a deadline is over."""

    @property
    def transient(self) -> bool:
        """Whether the same work may succeed when it is retried."""
        return self is not ErrorKind.CONFLICT and self is not ErrorKind.STATEMENT_TIMEOUT


CONFLICT, CONTENTION, CONNECTION_LOST = ErrorKind.CONFLICT, ErrorKind.CONTENTION, ErrorKind.CONNECTION_LOST
UNAVAILABLE, POOL_EXHAUSTED, STANDBY = ErrorKind.UNAVAILABLE, ErrorKind.POOL_EXHAUSTED, ErrorKind.STANDBY
CACHED_PLAN, STATEMENT_TIMEOUT = ErrorKind.CACHED_PLAN, ErrorKind.STATEMENT_TIMEOUT


def _table(rows: dict[ErrorKind, Collection[Any]]) -> dict[Any, ErrorKind]:
    return {code: kind for kind, codes in rows.items() for code in codes}


POSTGRESQL = _table(
    {
        CONFLICT: ("23001", "23503", "23505", "23P01"),
        CONTENTION: ("40001", "40P01", "55P03"),
        # 57P01 and 57P02 end a session that exists, 57P05 and 25P03 an idle one.
        CONNECTION_LOST: ("08003", "08006", "57P01", "57P02", "57P05", "25P03"),
        UNAVAILABLE: ("08000", "08001", "08004", "08P01", "53300", "57P03"),  # 08P01 is what poolers answer
        STANDBY: ("25006",),
        STATEMENT_TIMEOUT: ("57014", "25P04"),
    }
)
"""SQLSTATEs of PostgreSQL, CockroachDB and YugabyteDB; 0A000 is a cached plan only from one place in the server."""
MYSQL = _table(
    {
        CONFLICT: (1022, 1062, 1169, 1216, 1217, 1451, 1452, 1557, 1586, 1761, 1762),
        CONTENTION: (1020, 1205, 1213, 1614, 3572),
        CONNECTION_LOST: (1080, 1158, 1159, 1160, 1161, 1927, 2006, 2013, 2055, 3169, 4031),
        UNAVAILABLE: (1040, 1053, 1077, 1079, 1203, 1226, 2002, 2003, 2005),
        STANDBY: (1836,),
        STATEMENT_TIMEOUT: (1317, 1969, 3024),
    }
)
"""Numbers of MySQL and MariaDB; 1290 means a standby only if its text names the option ``read_only``."""
SQLITE = _table({CONFLICT: (787, 1555, 2067, 2579), CONTENTION: (5, 6), STATEMENT_TIMEOUT: (9,)})
"""Codes of SQLite; an extended code that is not in the table counts as its last byte, as 517 (a stale snapshot)."""
ORACLE = _table(
    {
        CONFLICT: ("ORA-00001", "ORA-02291", "ORA-02292"),
        CONTENTION: ("ORA-00054", "ORA-00060", "ORA-08177", "ORA-30006"),
        CONNECTION_LOST: ("ORA-00028", "ORA-02396", "ORA-03113", "ORA-03114", "ORA-03135", "DPY-4011", "DPI-1080"),
        UNAVAILABLE: ("ORA-00018", "ORA-00020", "ORA-01033", "ORA-01034", "ORA-01089", "ORA-01090", "ORA-12170")
        + ("ORA-12514", "ORA-12516", "ORA-12519", "ORA-12520", "ORA-12528", "ORA-12541", "ORA-12545")
        + ("DPY-6000", "DPY-6001", "DPY-6003", "DPY-6005"),
        STANDBY: ("ORA-16000",),
        STATEMENT_TIMEOUT: ("ORA-01013", "DPY-4024", "DPI-1067"),
    }
)
"""Codes of Oracle (ORA) and of its driver (DPY, DPI), from their documentation; no test runs them."""
MSSQL = _table(
    {
        CONFLICT: (547, 2601, 2627),  # 547 is a CHECK constraint too: its number is the same
        CONTENTION: (1205, 1222, 3960, 41302, 41305, 41325),
        UNAVAILABLE: (10928, 10929, 17142, 40197, 40501, 40613),
        STANDBY: (3906,),
    }
)
"""Numbers of SQL Server, from its documentation; no test runs them."""
ODBC = _table(
    {
        CONTENTION: ("40001",),
        CONNECTION_LOST: ("08003", "08S01"),
        UNAVAILABLE: ("08001", "08004", "HYT01"),
        STATEMENT_TIMEOUT: ("HYT00",),
    }
)
"""SQLSTATEs of ODBC, from its documentation; no test runs them."""

_MYSQL_MODULES = frozenset(("pymysql", "MySQLdb", "asyncmy", "aiomysql", "mysql", "mariadb"))
"""Drivers whose errors have MySQL's number as first argument; elsewhere a number can mean anything."""
_REVALIDATING = "RevalidateCachedQuery"
"""The function of PostgreSQL that refuses a cached plan; its sentence is translated, this is not."""
_INVALID_PLAN = "InvalidCachedStatementError"
"""What asyncpg raises when it has seen that, and SQLAlchemy in turn, without a code."""
_LASTING = (
    r'authentication failed|no password supplied|" does not exist|no pg_hba\.conf entry|not permitted to log in'
    r"|permission denied for|certificate verify failed|does not support SSL"
)
"""What libpq says if a retry would be refused too; it gives no SQLSTATE of a refused connection."""
_NATIVE = r"\((\d+)\)(?= \(SQL|$)"
"""SQL Server's number, which pyodbc puts behind the message and before the function of ODBC."""
_SQLALCHEMY = str(Path(sqlalchemy.__file__).parent)
_POOL = str(Path(_SQLALCHEMY, "pool"))


def classify(error: BaseException) -> ErrorKind | None:
    """Return what kind of database error ``error`` is, or None if it is none of them.

    ``retries`` and ``ERROR_RESPONSES`` judge by the same table, of SQLSTATEs and drivers' error codes. A write that was
    refused as read-only is a STANDBY only in a unit that may write.

    - ``error``: an exception of SQLAlchemy or of a driver, or one that was made from it.

    Raises ConfigurationError if ``error`` is not an exception.
    """
    if not isinstance(error, BaseException):
        raise ConfigurationError(f"classify: error={hidden(error)} is not an exception; write the one you caught")
    return next(kinds(error), None)


def kinds(error: BaseException) -> Iterator[ErrorKind]:
    """Yield the kind of ``error``, and of every error that it wraps, was caused by, or was raised in handling of."""
    return (kind for one in chain(error) if (kind := kind_of(one)) is not None)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and every error that it wraps, was caused by, or was raised in the handling of."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, None if one.__suppress_context__ else one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        if isinstance(one, exc.DBAPIError):
            waiting.append(one.orig)


def kind_of(one: BaseException) -> ErrorKind | None:
    """Return the kind of one error: of SQLAlchemy, of a driver, or of the network below a driver."""
    of_driver, lost = (one.orig or one, one.connection_invalidated) if isinstance(one, exc.DBAPIError) else (one, False)
    kind, known = _by_code(of_driver)
    if kind is STANDBY and not lost:
        return None  # the unit, or the transaction, was to read only
    if kind is CONNECTION_LOST or (kind is None and lost):
        return UNAVAILABLE if came_from_pool(one) else CONNECTION_LOST
    if kind is not None or known:
        return kind
    if isinstance(one, exc.TimeoutError):
        return POOL_EXHAUSTED
    return STATEMENT_TIMEOUT if isinstance(one, DeadlineExceededError) else _without_code(one)


def kind_for_answer(one: BaseException) -> ErrorKind | None:
    """Return the kind of one error, by its class if it has no code, as those of unknown drivers and of tests.

    That is enough to choose an answer. A retry needs to know more.
    """
    kind = kind_of(one)
    if kind is not None or not isinstance(one, exc.DBAPIError) or came_from_pool(one) or _by_code(one.orig or one)[1]:
        return kind
    by_class = ((exc.IntegrityError, CONFLICT), (exc.OperationalError, UNAVAILABLE))
    return next((kind for cls, kind in by_class if isinstance(one, cls)), None)


def came_from_pool(one: BaseException) -> bool:
    """Return whether an error was raised where the pool was to give a connection, or to make one."""
    return _came_out_of(one, _POOL)


def is_of_database(one: BaseException) -> bool:
    """Return whether one error is of a database or its driver, known or not, or of a pool."""
    return isinstance(one, exc.DBAPIError) or kind_of(one) is not None


def is_spent(error: BaseException, *, writes: bool) -> bool:
    """Return whether the connection of ``error`` is of no more use to a unit that ``writes``, though it is not lost."""
    kind, _ = _by_code(error)
    return kind is CACHED_PLAN or (writes and kind is STANDBY)


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of a driver's error, under either of its names."""
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def mysql_number_of(one: BaseException) -> object:
    """Return MySQL's number of an error: the first argument, or for some drivers an attribute."""
    if _module(one) not in _MYSQL_MODULES:
        return None
    return getattr(one, "errno", None) or (one.args[0] if one.args else None)


def _module(one: BaseException) -> str:
    return type(one).__module__.partition(".")[0]


def _by_code(one: BaseException) -> tuple[ErrorKind | None, bool]:
    """Return the kind by the code of a driver's error, and whether there is a code at all."""
    module = _module(one)
    if module in _MYSQL_MODULES:  # some of them give a SQLSTATE too, which says less
        number = mysql_number_of(one)
        if number == 1290 and re.search("read.only", str(one)):  # ER_OPTION_PREVENTS_STATEMENT
            return STANDBY, True
        return (MYSQL.get(number), True) if isinstance(number, int) else (None, False)
    if (code := getattr(one, "sqlite_errorcode", None)) is not None:
        return SQLITE.get(code, SQLITE.get(code & 0xFF)), True
    if module in ("oracledb", "cx_Oracle"):
        full = getattr(one.args[0], "full_code", None) if one.args else None
        return ORACLE.get(full), full is not None
    if module == "pyodbc":
        native = re.search(_NATIVE, str(one.args[-1])) if one.args else None
        kind = None if native is None else MSSQL.get(int(native[1]))
        return kind or ODBC.get(one.args[0] if one.args else None), bool(one.args)
    code = sqlstate_of(one)
    diagnosis = getattr(one, "diag", None) if code == "0A000" else None  # of psycopg and psycopg2
    if getattr(diagnosis, "source_function", None) == _REVALIDATING or type(one).__name__ == _INVALID_PLAN:
        return CACHED_PLAN, True
    return POSTGRESQL.get(code), code is not None


def _without_code(one: BaseException) -> ErrorKind | None:
    """Return the kind of an error that has no code, by what SQLAlchemy was doing."""
    network = isinstance(one, OSError)  # a TimeoutError is one too
    if (network or isinstance(one, exc.OperationalError)) and came_from_pool(one):
        lasting = isinstance(one, SSLCertVerificationError) or (not network and re.search(_LASTING, str(one)))
        return None if lasting else UNAVAILABLE
    if network and _came_out_of(one, _SQLALCHEMY, "do_execute"):  # of asyncpg, for a statement
        return STATEMENT_TIMEOUT if isinstance(one, TimeoutError) else CONNECTION_LOST
    return None


def _came_out_of(one: BaseException, folder: str, function: str = "") -> bool:
    """Return whether an error was raised below a ``function`` in ``folder``: an OSError can be anybody's."""
    traceback = one.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_filename.startswith(folder) and code.co_name.startswith(function):
            return True
        traceback = traceback.tb_next
    return False
