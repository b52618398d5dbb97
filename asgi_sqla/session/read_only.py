"""Sessions of read-only units refuse to write; where the database can, it refuses too.

Holds: what is refused before it is sent.
Must not know: how a connection is made read-only, or why a unit only reads.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session, UOWTransaction

from asgi_sqla.errors import ReadOnlyError
from asgi_sqla.session.guard import GuardedSession


class ReadOnlySession(GuardedSession):
    """A guarded session that refuses to write."""

    guard_writes = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Listen to the statements of a user's own class, because SQLModel's calls skip our ``Session.execute()``."""
        super().__init_subclass__(**options)
        if any(base is not Session and not issubclass(base, GuardedSession) for base in cls.__bases__):
            event.listen(cls, "do_orm_execute", _refuse_statement)

    def execute(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse an INSERT, UPDATE or DELETE."""
        _refuse(self, statement)
        return super().execute(statement, *args, **kwargs)

    def scalar(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse as ``execute`` does."""
        _refuse(self, statement)
        return super().scalar(statement, *args, **kwargs)

    def scalars(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse as ``execute`` does."""
        _refuse(self, statement)
        return super().scalars(statement, *args, **kwargs)


def _refusal(session: Session, what: str) -> ReadOnlyError:
    unit = cast("GuardedSession", session).guard_unit
    return ReadOnlyError(
        f"{what} in {unit}, which is read-only; write in a unit that is not: "
        "another HTTP method, or session_scope() without read_only=True"
    )


def _refuse(session: Session, statement: Any) -> None:
    # Not with the event before each statement, which would cost more than the rest of a read.
    if getattr(statement, "is_dml", False):
        kind = "INSERT" if statement.is_insert else "UPDATE" if statement.is_update else "DELETE"
        raise _refusal(session, kind)


def _refuse_statement(state: ORMExecuteState) -> None:
    _refuse(state.session, state.statement)


def refuse_flush(session: Session, _context: UOWTransaction, _instances: object) -> None:
    """Refuse a flush that would write."""
    modified = [one for one in session.dirty if session.is_modified(one)]
    for kind, objects in (("INSERT", list(session.new)), ("UPDATE", modified), ("DELETE", list(session.deleted))):
        if objects:
            raise _refusal(session, f"{kind} by a flush of {type(objects[0]).__name__}")
