"""An engine whose every transaction is a savepoint in the one transaction of one connection.

Lives here: what BEGIN, COMMIT and ROLLBACK become, and that constraints deferred to the COMMIT are checked there.
Must not know: who opened the connection, or when its transaction ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, cast

from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.pool import NullPool

from asgi_sqla.testing.turns import Turn, Turns

DEFERRED_ON_POSTGRESQL = (
    "SELECT string_agg(DISTINCT format('%I.%I', nspname, conname), ', ') FROM pg_constraint c "
    "JOIN pg_namespace n ON n.oid = c.connamespace WHERE condeferred"
)
DEFERRED_ON_SQLITE = "SELECT 1 FROM sqlite_master WHERE sql LIKE '%DEFERRED%' LIMIT 1"


class Savepoints:
    """What a dialect does differently here; mixed into the class of the real one."""

    turns: Turns
    name: str

    def do_begin(self, dbapi_connection: Any) -> None:
        """SAVEPOINT."""
        turn = _turn(dbapi_connection)
        self.turns.wait_for(turn)
        run(dbapi_connection, f"SAVEPOINT {turn.name}")
        turn.begun = True

    def do_commit(self, dbapi_connection: Any) -> None:
        """Check what was deferred to now, and RELEASE."""
        turn = _turn(dbapi_connection)
        if turn.begun and not turn.over:
            self.turns.wait_for(turn)
            restore = self._check_deferred(dbapi_connection)
            run(dbapi_connection, f"RELEASE SAVEPOINT {turn.name}")
            turn.begun = False
            if restore is not None:
                run(dbapi_connection, restore)

    def do_rollback(self, dbapi_connection: Any) -> None:
        """ROLLBACK TO the savepoint."""
        turn = _turn(dbapi_connection)
        if turn.begun and not turn.over:
            self.turns.wait_for(turn)
            run(dbapi_connection, f"ROLLBACK TO SAVEPOINT {turn.name}")
            run(dbapi_connection, f"RELEASE SAVEPOINT {turn.name}")
            turn.begun = False

    def do_close(self, dbapi_connection: Any) -> None:
        """Do nothing, as others use the connection too."""

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        """Do nothing, as the transaction has begun; nor is there anybody to be isolated from."""

    def reset_isolation_level(self, dbapi_connection: Any) -> None:
        """Do nothing, as nothing was set."""

    set_readonly = set_deferrable = set_isolation_level

    def _check_deferred(self, dbapi_connection: Any) -> str | None:
        """Raise what COMMIT would; return what to run once this transaction is over."""
        if self.name == "postgresql":
            names = run(dbapi_connection, DEFERRED_ON_POSTGRESQL)
            if names is not None:
                run(dbapi_connection, f"SET CONSTRAINTS {names} IMMEDIATE")
                return f"SET CONSTRAINTS {names} DEFERRED"
        elif self.name == "sqlite" and run(dbapi_connection, DEFERRED_ON_SQLITE):
            enforced = run(dbapi_connection, "PRAGMA foreign_keys")
            if enforced and run(dbapi_connection, "PRAGMA foreign_key_check"):
                raise sqlite3.IntegrityError("FOREIGN KEY constraint failed")
        return None


_classes: dict[type[Dialect], type[Dialect]] = {}


def savepoint_engine(real: Engine, turns: Turns, connect: Callable[[], Any], lose: Callable[[], None]) -> Engine:
    """Return an engine like ``real`` on the one connection that ``connect()`` returns; ``lose()`` hears of its loss."""
    dialect = _on_savepoints(real.dialect, turns)

    def take() -> Any:
        turn = turns.take()
        try:
            return connect()
        except BaseException:
            turns.give_back(turn)
            raise

    pool = NullPool(take, dialect=dialect)
    engine = Engine(pool, dialect, real.url)
    event.listen(pool, "connect", lambda _connection, record: record.info.update(asgi_sqla_turn=turns.innermost))
    event.listen(pool, "close", lambda _connection, record: turns.give_back(record.info["asgi_sqla_turn"]))
    event.listen(pool, "invalidate", lambda *_: lose())

    @event.listens_for(engine, "before_cursor_execute")
    def _wait(connection: Connection, *_: object) -> None:
        turns.wait_for(_turn(connection.connection))

    return engine


def _on_savepoints(real: Dialect, turns: Turns) -> Dialect:
    """Return a dialect that knows all that ``real`` found out of its database, without its events."""
    cls = type(real)
    if not issubclass(cls, Savepoints):
        own = {"supports_statement_cache": cls.supports_statement_cache}  # asked of each class by itself
        cls = _classes.setdefault(cls, type(f"Savepoints{cls.__name__}", (Savepoints, cls), own))
    dialect: Any = cls.__new__(cls)
    dialect.__dict__.update({name: value for name, value in vars(real).items() if name != "dispatch"})
    dialect.turns = turns
    return cast("Dialect", dialect)


def run(dbapi_connection: Any, statement: str) -> Any:
    """Run ``statement``, past SQLAlchemy's events, and return the first column of the first row, if any."""
    cursor = dbapi_connection.cursor()
    try:
        cursor.execute(statement)
        row = cursor.fetchone() if cursor.description else None
    finally:
        cursor.close()
    return None if row is None else row[0]


def _turn(dbapi_connection: Any) -> Turn:
    turn: Turn = dbapi_connection.info["asgi_sqla_turn"]
    return turn
