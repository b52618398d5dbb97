"""What forbids to run a unit of work again: a retry must never write twice.

Holds: when a request or a function may be retried, and what is heard of commits past a unit's own sessions.
Must not know: who retries, or how.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.engine import Connection

from asgi_sqla.session.listeners import is_watched
from asgi_sqla.session.transient import is_transient
from asgi_sqla.unit.context import inherited
from asgi_sqla.unit.unit import UnitOfWork


def may_retry(unit: UnitOfWork, failure: BaseException) -> bool:
    """Whether a transient error stopped ``unit``, and nothing of it is in a database for good, or may be."""
    errors = (failure, *unit._sessions.failures())
    return any(is_transient(one) for one in errors) and unit._may_be_repeated()


def watch_commits(watch: Callable[[str, Callable[[Connection], None]], object]) -> None:
    """Hear, by ``watch(event, function)``, of what is committed on connections that are no session's."""
    watch("commit", _note_commit)
    watch("begin", _note_autocommit)


def _note_commit(connection: Connection) -> None:
    unit = inherited()
    if isinstance(unit, UnitOfWork) and not is_watched(connection):
        unit._fenced = True


def _note_autocommit(connection: Connection) -> None:
    default = connection.dialect._on_connect_isolation_level
    level = connection.get_execution_options().get("isolation_level", default)
    unit = inherited()
    if isinstance(unit, UnitOfWork) and str(level).upper() == "AUTOCOMMIT":
        unit._fenced = True
