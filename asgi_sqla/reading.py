"""Sessions of read-only units: they refuse to write, and the database does where it can.

Lives here: what is refused before it is sent, and the statement by which each database refuses too.
Must not know: engines, or why a unit only reads.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction, UOWTransaction

from asgi_sqla.errors import ReadOnlyError
from asgi_sqla.guard import GuardedSession

CONNECTION = {
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "cockroachdb": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
    "sqlite": "PRAGMA query_only=ON",
}
"""What makes a connection read-only for good, by dialect."""
TRANSACTION = {
    "postgresql": "SET TRANSACTION READ ONLY",
    "cockroachdb": "SET TRANSACTION READ ONLY",
    "mysql": "SET TRANSACTION READ ONLY",
    "mariadb": "SET TRANSACTION READ ONLY",
}
"""What makes only the transaction read-only that has just begun, by dialect."""


class ReadOnlySession(GuardedSession):
    """A guarded session that refuses to write."""

    guard_writes = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Be told of every statement of a class of the user's own: SQLModel's calls ``Session.execute()`` past ours."""
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


class BorrowedReadOnlySession(ReadOnlySession):
    """One on an engine that was handed in, whose connections are read-only for a transaction at a time."""


def keep_read_only(engine: Engine) -> None:
    """Open every connection of ``engine``, which is ours and for nothing else, read-only."""
    statement = CONNECTION.get(engine.dialect.name)

    def on_connect(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()
        connection.commit()

    if statement is not None:
        event.listen(engine, "connect", on_connect)


def _refusal(session: Session, what: str) -> ReadOnlyError:
    unit = cast("GuardedSession", session).guard_unit
    return ReadOnlyError(
        f"{what} in {unit}, which only reads; write in a unit that is not read_only: "
        "another HTTP method, or session_scope() without read_only=True"
    )


def _refuse(session: Session, statement: Any) -> None:
    # Not by the event before each statement, which would cost more than all the rest of a read.
    if getattr(statement, "is_dml", False):
        kind = "INSERT" if statement.is_insert else "UPDATE" if statement.is_update else "DELETE"
        raise _refusal(session, kind)


def _refuse_statement(state: ORMExecuteState) -> None:
    _refuse(state.session, state.statement)


@event.listens_for(ReadOnlySession, "before_flush")
def _refuse_flush(session: Session, _context: UOWTransaction, _instances: object) -> None:
    modified = [one for one in session.dirty if session.is_modified(one)]
    for kind, objects in (("INSERT", list(session.new)), ("UPDATE", modified), ("DELETE", list(session.deleted))):
        if objects:
            raise _refusal(session, f"{kind} by a flush of {type(objects[0]).__name__}")


@event.listens_for(BorrowedReadOnlySession, "after_begin")
def _begin_read_only(_session: Session, transaction: SessionTransaction, connection: Any) -> None:
    if transaction.nested:
        return
    if connection.dialect.name == "sqlite":
        # SQLite knows it only of connections, so it is undone when this one goes back to its pool.
        connection.exec_driver_sql("PRAGMA query_only=ON")
        fairy = connection.connection
        fairy.record_info["asgi_sqla_query_only"] = True
    elif (statement := TRANSACTION.get(connection.dialect.name)) is not None:
        connection.exec_driver_sql(statement)


def restore_on_return(engine: Engine) -> None:
    """Let ``engine``, which was handed in, get its SQLite connections back as they were."""
    pool = engine.pool  # the engine may be a copy of the owner's, with options of its own
    if engine.dialect.name == "sqlite" and not event.contains(pool, "checkin", _restore):
        event.listen(pool, "checkin", _restore)


def _restore(connection: Any, record: Any) -> None:
    if connection is not None and record.record_info.pop("asgi_sqla_query_only", False):
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only=OFF")
        cursor.close()
