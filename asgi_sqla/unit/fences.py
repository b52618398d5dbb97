"""What forbids a retry of a unit of work: a retry must never write twice.

Holds: when a request or a function may be retried, and how commits outside a unit's sessions are noticed.
Must not know: who retries, or how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy.engine import Connection

from asgi_sqla.engine.classification import ErrorKind
from asgi_sqla.engine.instant import instant
from asgi_sqla.session.listeners import is_committed_by_session, note_rollback
from asgi_sqla.session.transient import transient_kind
from asgi_sqla.unit.context import inherited
from asgi_sqla.unit.deadline import allows_retry
from asgi_sqla.unit.logs import INFO, tell
from asgi_sqla.unit.unit import UnitOfWork

if TYPE_CHECKING:
    from asgi_sqla.unit.observed import Observing


def may_retry(unit: UnitOfWork, failure: BaseException) -> ErrorKind | None:
    """Return the kind of the transient error that stopped ``unit``, if a retry is safe and can begin in time.

    Otherwise return None: something was committed, or may have been, or the deadline comes first.
    """
    found = [kind for one in (failure, *unit._sessions.failures()) if (kind := transient_kind(one)) is not None]
    return found[0] if found and unit._may_be_repeated() and allows_retry(unit, found[0]) else None


def tell_retried(unit: UnitOfWork, failure: BaseException) -> Observing | None:
    """Log that ``unit`` is retried, and return what observes the next attempt, if anything observed this one."""
    said = " ".join(str(failure).split("\n", 1)[0].split())  # what follows are the statement and its parameters
    tell(INFO, unit, "attempt %d is retried after %s: %s", unit.attempt, type(failure).__name__, said)
    if unit._observation is None:
        return None
    unit._observation.end(unit, retried=True)
    return unit._observation.following()


def watch_commits(watch: Callable[[str, Callable[[Connection], None]], object]) -> None:
    """Use ``watch(event, function)`` to notice commits that bypass a session, on its connection or another."""
    watch("commit", instant(_note_commit))
    watch("begin", _note_autocommit)
    watch("rollback", instant(note_rollback))  # a textual COMMIT may have come before


def _note_commit(connection: Connection) -> None:
    unit = inherited()
    if isinstance(unit, UnitOfWork) and not is_committed_by_session(connection):
        unit._fenced = True


def _note_autocommit(connection: Connection) -> None:
    default = connection.dialect._on_connect_isolation_level
    level = connection.get_execution_options().get("isolation_level", default)
    unit = inherited()
    if isinstance(unit, UnitOfWork) and str(level).upper() == "AUTOCOMMIT":
        unit._fenced = True
