"""What forbids a retry of a unit of work: a retry must never write twice.

Holds: when a request or a function may be retried, how commits outside a unit's sessions are noticed, and the log line
about a commit whose caller was cancelled.
Must not know: who retries, or how.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy.engine import Connection

from asgi_sqla.engine.classification import ErrorKind
from asgi_sqla.session.listeners import is_committed_by_session, note_rollback
from asgi_sqla.session.transient import transient_kind
from asgi_sqla.unit.context import inherited
from asgi_sqla.unit.unit import UnitOfWork

logger: logging.Logger = logging.getLogger("asgi_sqla")


def may_retry(unit: UnitOfWork, failure: BaseException) -> ErrorKind | None:
    """Return the kind of the transient error that stopped ``unit``, if nothing of it was committed, or may have been.

    Otherwise return None.
    """
    found = [kind for one in (failure, *unit._sessions.failures()) if (kind := transient_kind(one)) is not None]
    return found[0] if found and unit._may_be_repeated() else None


def tell_cancelled(unit: UnitOfWork, cancelled: BaseException | None) -> None:
    """Log that the caller gets a cancellation although some work of ``unit`` was committed."""
    outcomes = [one.session.guard_outcome for one in unit._sessions.all]
    if cancelled is not None and any(one.committed or one.in_doubt for one in outcomes):
        logger.warning(
            "%s: cancelled while it ended, but some of its work was committed, or its COMMIT is in doubt", unit
        )


def watch_commits(watch: Callable[[str, Callable[[Connection], None]], object]) -> None:
    """Use ``watch(event, function)`` to notice commits that bypass a session, on its connection or another."""
    watch("commit", _note_commit)
    watch("begin", _note_autocommit)
    watch("rollback", note_rollback)  # a textual COMMIT may have come before


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
