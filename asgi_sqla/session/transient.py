"""Transient errors: an operation that met one may succeed when it is retried.

Holds: what an error says of its transaction, and how long to wait before a retry. Pure functions.
Must not know: who retries.
"""

from __future__ import annotations

import random

from asgi_sqla.engine.classification import ErrorKind, kinds, mysql_number_of

MYSQL_UNDONE = frozenset((1213, 1020))
"""ER_LOCK_DEADLOCK, and ER_CHECKREAD of a MariaDB with snapshot isolation: everything is rolled back."""
MYSQL_ERRORS = frozenset((*MYSQL_UNDONE, 1205))
"""Those, and ER_LOCK_WAIT_TIMEOUT: of MySQL and MariaDB."""

FIRST_PAUSE = 0.01
LONGEST_PAUSE = 1.0
FIRST_OUTAGE_PAUSE = 0.25
LONGEST_OUTAGE_PAUSE = 2.0
"""In seconds; with 3 retries or more the pauses of an outage are longer than a restart of one and a half seconds."""
OUTAGES = frozenset((ErrorKind.UNAVAILABLE, ErrorKind.POOL_EXHAUSTED, ErrorKind.STANDBY))
"""What does not pass in milliseconds: a server has to come back, or another to replace it, or a pool to be refilled."""


def transient_kind(failure: BaseException) -> ErrorKind | None:
    """Return the kind of the first error in ``failure``, or that it was made from, after which a retry may succeed."""
    return next((kind for kind in kinds(failure) if kind.transient), None)


def is_transient(failure: BaseException) -> bool:
    """Return whether ``failure``, or an error it was made from, says that a retry may succeed."""
    return transient_kind(failure) is not None


def ends_transaction(error: BaseException, *, told: bool) -> bool:
    """Return whether the database has rolled back the whole transaction, and would commit what follows it.

    If the driver has not ``told`` whether one is open, a lock timeout may have ended it: MariaDB and MySQL have a
    setting.
    """
    return mysql_number_of(error) in (MYSQL_UNDONE if told else MYSQL_ERRORS)


def pause(attempt: int, kind: ErrorKind) -> float:
    """Return the seconds to wait after ``attempt`` met an error of ``kind``: exponential, bounded and jittered.

    A deadlock passes at once, so its pause may be almost nothing. In an outage it is at least half of its bound.
    """
    longest = longest_pause(attempt, kind)
    return random.uniform(longest / 2 if kind in OUTAGES else 0, longest)  # noqa: S311  # not for security


def longest_pause(attempt: int, kind: ErrorKind) -> float:
    """Return the bound of ``pause``."""
    longest, first = (LONGEST_OUTAGE_PAUSE, FIRST_OUTAGE_PAUSE) if kind in OUTAGES else (LONGEST_PAUSE, FIRST_PAUSE)
    return min(longest, first * 2.0 ** min(attempt, 10))
