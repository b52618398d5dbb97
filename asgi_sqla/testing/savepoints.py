"""An engine whose transactions are savepoints in one transaction of one connection.

Holds: what replaces BEGIN, COMMIT and ROLLBACK, and how constraints deferred to COMMIT are checked.
Must not know: who opened the connection, or when its transaction ends.
"""

from __future__ import annotations

import sqlite3
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from asgi_sqla.engine.drivers import MYSQL
from asgi_sqla.engine.read_only import TRANSACTION
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.session.statements import Effect, judged
from asgi_sqla.testing.turns import Turn, Turns

COPY = 'rolled_back(..., mode="copy"), or with pytest @pytest.mark.asgi_sqla(mode="copy")'
"""What to write where one transaction cannot do."""
DEFERRED_ON_SQLITE = "SELECT 1 FROM sqlite_master WHERE sql LIKE '%DEFERRED%' LIMIT 1"


class World:
    """The outer transaction of an engine; this class stands for the time before and after."""

    turns: Turns = Turns(awaits=False)
    """The turns on its one connection."""

    def connect(self) -> Any:
        """Return the driver's connection; called by the holder of the turn."""
        raise ConfigurationError(
            "this engine belonged to a rolled_back() that has ended; get a new one from the Database"
        )

    def lose(self) -> None:
        """Record that the connection must not be used again."""

    def note(self, statement: str) -> None:
        """Record a statement."""


NOWHERE = World()


class Savepoints(Dialect):
    """What a dialect does differently on savepoints; mixed into the class of the real one."""

    world: World
    inside_transaction = True

    def do_begin(self, dbapi_connection: Any) -> None:
        """Send SAVEPOINT."""
        turn = _turn(dbapi_connection)
        self.world.turns.wait_for(turn)
        run(dbapi_connection, f"SAVEPOINT {turn.name}")
        turn.begun = True

    def do_commit(self, dbapi_connection: Any) -> None:
        """Check the deferred constraints, and send RELEASE."""
        turn = _turn(dbapi_connection)
        if turn.begun and not turn.over:
            self.world.turns.wait_for(turn)
            self._check_deferred(dbapi_connection, turn)
            run(dbapi_connection, f"RELEASE SAVEPOINT {turn.name}")
            turn.begun = False

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Send ROLLBACK TO the savepoint."""
        turn = _turn(dbapi_connection)
        if turn.begun and not turn.over:
            self.world.turns.wait_for(turn)
            run(dbapi_connection, f"ROLLBACK TO SAVEPOINT {turn.name}")
            run(dbapi_connection, f"RELEASE SAVEPOINT {turn.name}")
            turn.begun = False

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        """Execute, unless MariaDB or MySQL would refuse it in the transaction that it is in outside tests."""
        if self._may_send(statement, context):
            super().do_execute(cursor, statement, parameters, context)

    def do_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        """Do what ``do_execute`` does."""
        if self._may_send(statement, context):
            super().do_executemany(cursor, statement, parameters, context)

    def do_execute_no_params(self, cursor: Any, statement: str, context: Any = None) -> None:
        """Do what ``do_execute`` does."""
        if self._may_send(statement, context):
            super().do_execute_no_params(cursor, statement, context)

    def _may_send(self, statement: str, context: Any) -> bool:
        """Return whether to send a statement; raise what MariaDB and MySQL raise for a write that only reads.

        No savepoint is read-only there, so the statement that makes a transaction read-only is only remembered.
        """
        if self.name not in MYSQL or context is None:
            return True
        turn = _turn(context.root_connection.connection)
        if statement == TRANSACTION[self.name]:
            turn.read_only = True
            return False
        known = judged(statement, self.name)
        if known.effect is Effect.COMMITS_FIRST:
            raise ConfigurationError(
                f"{known.word}: {self.name} commits before it, so rolled_back() could not undo anything; use {COPY}"
            )
        if turn.read_only and known.writes:
            raise self.loaded_dbapi.OperationalError(1792, "Cannot execute statement in a READ ONLY transaction")
        return True

    def do_close(self, dbapi_connection: Any) -> None:
        """Do nothing, because others use the connection too."""

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        """Do nothing: the transaction has begun, and no other transaction is concurrent."""

    def reset_isolation_level(self, dbapi_connection: Any) -> None:
        """Do nothing, because nothing was set."""

    def set_readonly(self, dbapi_connection: Any, value: bool) -> None:
        """Do nothing, because the transaction has begun."""

    def set_deferrable(self, dbapi_connection: Any, value: bool) -> None:
        """Do nothing, because the transaction has begun."""

    def _check_deferred(self, dbapi_connection: Any, turn: Turn) -> None:
        """Raise what COMMIT would raise for deferred constraints, and leave them deferred."""
        if self.name == "postgresql":
            run(dbapi_connection, f"SAVEPOINT {turn.name}_check")
            run(dbapi_connection, "SET CONSTRAINTS ALL IMMEDIATE")
            run(dbapi_connection, f"ROLLBACK TO SAVEPOINT {turn.name}_check")
        elif self.name == "sqlite" and run(dbapi_connection, DEFERRED_ON_SQLITE):
            enforced = run(dbapi_connection, "PRAGMA foreign_keys")
            if enforced and run(dbapi_connection, "PRAGMA foreign_key_check"):
                raise sqlite3.IntegrityError("FOREIGN KEY constraint failed")


_classes: dict[type[Dialect], type[Dialect]] = {}
_idle: WeakKeyDictionary[Engine, Engine] = WeakKeyDictionary()
"""Engines whose outer transaction has ended, by the real engine; they keep their compiled statements."""


def savepoint_engine(real: Engine, world: World) -> Engine:
    """Return an engine like ``real`` for ``world``."""
    engine = _idle.pop(real, None) or _make(real)
    dialect: Any = engine.dialect
    dialect.world = world
    return engine


def let_go(real: Engine, engine: Engine) -> None:
    """Keep ``engine`` for the next outer transaction."""
    dialect: Any = engine.dialect
    dialect.world = NOWHERE
    _idle[real] = engine


def _make(real: Engine) -> Engine:
    dialect = _on_savepoints(real.dialect)

    def take() -> Any:
        turn = dialect.world.turns.take()
        try:
            return dialect.world.connect()
        except BaseException:
            dialect.world.turns.give_back(turn)
            raise

    def take_note(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["asgi_sqla_turn"] = dialect.world.turns.innermost

    def give_back(_connection: Any, record: ConnectionPoolEntry) -> None:
        dialect.world.turns.give_back(record.info["asgi_sqla_turn"])

    def before_execute(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        dialect.world.turns.wait_for(_turn(connection.connection))
        dialect.world.note(statement)

    pool = NullPool(take, dialect=dialect)
    engine = Engine(pool, dialect, real.url)
    event.listen(pool, "connect", take_note)
    event.listen(pool, "close", give_back)
    event.listen(pool, "invalidate", lambda *_: dialect.world.lose())
    event.listen(engine, "before_cursor_execute", before_execute)
    return engine


def _on_savepoints(real: Dialect) -> Any:
    """Return a dialect with everything that ``real`` knows of its database, but without its events."""
    cls = type(real)
    if not issubclass(cls, Savepoints):
        own = {"supports_statement_cache": cls.supports_statement_cache}  # each class must state it
        cls = _classes.setdefault(cls, type(f"Savepoints{cls.__name__}", (Savepoints, cls), own))
    dialect: Any = cls.__new__(cls)
    dialect.__dict__.update(_known_by(real))
    return dialect


def learn(dialect: Dialect, real: Dialect) -> None:
    """Give ``dialect`` what ``real`` has learned at its first connection, such as the version of the server."""
    dialect.__dict__.update(_known_by(real))


def _known_by(real: Dialect) -> dict[str, Any]:
    own = ("dispatch", "world")
    # What an engine of ours has its dialect do in another way is done by savepoints instead.
    return {name: value for name, value in vars(real).items() if name not in own and name[:3] != "do_"}


def run(dbapi_connection: Any, statement: str) -> Any:
    """Run ``statement`` without SQLAlchemy's events; return the first column of the first row, or None."""
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
