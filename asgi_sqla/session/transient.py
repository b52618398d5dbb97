"""Transient errors: what ran into one may succeed when it is tried again.

Holds: the codes of each database, where in an error they are found, and how long to wait before a retry. Pure.
Must not know: who retries.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError

SQLSTATES = frozenset(("40001", "40P01"))
"""serialization_failure and deadlock_detected: PostgreSQL, CockroachDB, YugabyteDB."""
MYSQL_UNDONE = frozenset((1213, 1020))
"""ER_LOCK_DEADLOCK, and ER_CHECKREAD (a MariaDB that keeps to its snapshot): the whole transaction is rolled back."""
MYSQL_ERRORS = frozenset((*MYSQL_UNDONE, 1205))
"""Those, and ER_LOCK_WAIT_TIMEOUT: MySQL and MariaDB."""
SQLITE_CODES = frozenset((5, 6))
"""SQLITE_BUSY, its extended codes (517, a snapshot that is too old) included, and SQLITE_LOCKED."""

FIRST_PAUSE = 0.01
LONGEST_PAUSE = 1.0


def is_transient(failure: BaseException) -> bool:
    """Whether ``failure``, or one it was made of, says that a retry may succeed."""
    return any(map(_is_transient, _chain(failure)))


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE that a driver of PostgreSQL gives, under either of its names."""
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def ends_transaction(error: BaseException, *, told: bool) -> bool:
    """Whether the database has rolled back all of the transaction, and would commit what comes after it.

    Where the driver has not ``told`` whether one is open, a lock timeout may have: MariaDB and MySQL have a setting.
    """
    return _mysql_error(error) in (MYSQL_UNDONE if told else MYSQL_ERRORS)


def pause(attempt: int) -> float:
    """Return the seconds to wait after ``attempt`` has failed: longer each time, bounded, jittered."""
    return random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt, 10)))  # noqa: S311  # nobody attacks a pause


def _chain(failure: BaseException) -> Iterator[BaseException]:
    """Yield ``failure`` and whatever it wraps, was caused by, or came up in the handling of."""
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
"""Where a number as first argument is MySQL's; elsewhere it may be anything."""
