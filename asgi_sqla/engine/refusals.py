"""A COMMIT whose connection was lost, and that was certainly not carried out: there is no doubt, so it may be retried.

PostgreSQL ends a session by a FATAL error at a point where nothing is half done. If that is its answer to COMMIT, the
transaction was rolled back. One that is written already is acknowledged first; where the server must not do that, as it
stops while a synchronous standby has not confirmed, it sends no error and closes the connection. So a restart, a
failover or ``pg_terminate_backend()`` mostly leaves no doubt. A crash does: it is announced by a notice, at any point.

Holds: which errors say so.
Must not know: sessions, or what follows from it.
"""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from asgi_sqla.engine.classification import sqlstate_of

FATAL = frozenset(("57P01", "25P03", "25P04"))
"""ADMIN_SHUTDOWN, and the two timeouts of a transaction; a notice with one of these codes is no error to any driver."""
NOT_SENT = (
    *("cannot switch to state", "cannot perform operation: connection is closed", "connection is closed"),
    "cannot call Transaction.commit(): the underlying connection is closed",  # what SQLAlchemy's own adapter calls
)
"""How the messages of asyncpg begin if it sent nothing: the server has gone, or its last words are just being read."""


def is_refusal(error: BaseException) -> bool:
    """Return whether ``error``, of a COMMIT, says that nothing was committed, although its connection is lost."""
    one: BaseException | None = error
    seen = 0
    while one is not None and seen < 5:  # SQLAlchemy's, its adapter's, the driver's, and the server's
        of_asyncpg = type(one).__module__.startswith("asyncpg.")
        if sqlstate_of(one) in FATAL or (of_asyncpg and str(one).startswith(NOT_SENT)):
            return True
        one = one.orig if isinstance(one, DBAPIError) else one.__cause__
        seen += 1
    return False
