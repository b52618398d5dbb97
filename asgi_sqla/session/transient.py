"""Transient errors: an operation that met one may succeed when it is retried.

Holds: the codes of each database, where an error holds them, and how long to wait before a retry. Pure functions.
Must not know: who retries.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError

SQLSTATES = frozenset(("40001", "40P01"))
"""serialization_failure and deadlock_detected of the SQL standard: PostgreSQL, CockroachDB, YugabyteDB."""
MYSQL_UNDONE = frozenset((1213, 1020))
"""ER_LOCK_DEADLOCK, and ER_CHECKREAD of a MariaDB with snapshot isolation: everything is rolled back."""
MYSQL_ERRORS = frozenset((*MYSQL_UNDONE, 1205))
"""Those, and ER_LOCK_WAIT_TIMEOUT: of MySQL and MariaDB."""
SQLITE_CODES = frozenset((5, 6))
"""SQLITE_BUSY with its extended codes, such as 517 for a snapshot that is too old, and SQLITE_LOCKED."""

FIRST_PAUSE = 0.01
LONGEST_PAUSE = 1.0


def is_transient(failure: BaseException) -> bool:
    """Return whether ``failure``, or an error it was made from, says that a retry may succeed."""
    return any(map(_is_transient, _chain(failure)))


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of a PostgreSQL driver's error, under either of its names."""
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def ends_transaction(error: BaseException, *, told: bool) -> bool:
    """Return whether the database has rolled back the whole transaction, and would commit what follows it.

    If the driver has not ``told`` whether one is open, a lock timeout may have ended it: MariaDB and MySQL have a
    setting.
    """
    return _mysql_error(error) in (MYSQL_UNDONE if told else MYSQL_ERRORS)


def pause(attempt: int) -> float:
    """Return the seconds to wait after ``attempt`` has failed: exponential, bounded and jittered."""
    return random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt, 10)))  # noqa: S311  # not for security


def _chain(failure: BaseException) -> Iterator[BaseException]:
    """Yield ``failure`` and every error that it wraps, was caused by, or was raised in the handling of."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [failure]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, None if one.__suppress_context__ else one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        if isinstance(one, DBAPIError):
            waiting.append(one.orig)


def _is_transient(one: BaseException) -> bool:
    if isinstance(one, DBAPIError) and one.connection_invalidated:
        return True
    if sqlstate_of(one) in SQLSTATES:
        return True
    sqlite_code = getattr(one, "sqlite_errorcode", None)
    if sqlite_code is not None:
        return sqlite_code & 0xFF in SQLITE_CODES
    return _mysql_error(one) in MYSQL_ERRORS


def _mysql_error(one: BaseException) -> object:
    """Return MySQL's number of an error: the first argument, or for some drivers an attribute."""
    if type(one).__module__.partition(".")[0] not in _MYSQL_MODULES:
        return None
    return getattr(one, "errno", None) or (one.args[0] if one.args else None)


_MYSQL_MODULES = frozenset(("pymysql", "MySQLdb", "asyncmy", "aiomysql", "mysql", "mariadb"))
"""Drivers whose errors have MySQL's number as first argument; elsewhere a number can mean anything."""
