"""How the database itself is told how long a statement may take, and how that is undone.

PostgreSQL has ``statement_timeout``. SET LOCAL ends with the transaction, so no pooler hands it to a stranger. It
travels with the statement if BEGIN can; elsewhere it takes a round trip. MariaDB and MySQL have a variable of the
session, and SQLite a progress handler and a busy timeout: these are undone before the connection is returned.

COMMIT never runs under such a limit. PostgreSQL would interrupt its wait for a synchronous standby, and report success.

Holds: the limit of each database, on one connection.
Must not know: units, sessions, or when a statement is sent.
"""

from __future__ import annotations

import math
import re
from time import monotonic
from typing import Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolResetState, SingletonThreadPool, StaticPool

from asgi_sqla.engine import pipelining
from asgi_sqla.engine.deadlines import Deadline
from asgi_sqla.engine.drivers import MYSQL

SLACK = 0.05
"""Seconds by which the limit in force may exceed what is left: telling the database anew can take a round trip."""
STEPS = 1000
"""How many instructions SQLite executes between two looks at the clock."""
LONGEST = 2_000_000.0
"""Seconds: PostgreSQL and MySQL keep milliseconds in 32 bits."""

_KEY = "asgi_sqla_limit"
"""The key in ``Connection.info``, which lasts as long as the driver's connection."""
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "min": 60_000.0, "h": 3_600_000.0, "d": 86_400_000.0, "": 1.0}
"""Milliseconds in each unit that PostgreSQL shows."""
_SINGLE = re.compile(r"\s*(?:SELECT|INSERT|UPDATE|DELETE|WITH|VALUES)\b[^;]*;?\s*", re.IGNORECASE)
"""A statement that is surely not several."""

_heard_pools: WeakSet[Pool] = WeakSet()
_heard_engines: WeakSet[Engine] = WeakSet()


class Limit:
    """The limit of one connection."""

    setting: str = ""
    """What the database calls it, for those who look for an application that sets its own."""

    def __init__(self) -> None:
        self.in_force: bool = False

    @property
    def lasts(self) -> bool:
        """Whether it is in force for more than one statement."""
        return True

    def suits(self, _connection: Connection, _statement: str, /) -> bool:
        """Return whether the database can be told of a statement as the connection is; in autocommit it may not."""
        return True

    def tell(self, connection: Connection, seconds: float) -> None:
        """Tell the database that the next statements may take ``seconds`` each."""
        raise NotImplementedError

    def forget(self) -> None:
        """Send nothing that was not sent yet."""

    def lift(self, adapted: Any, /) -> None:
        """Undo it, as COMMIT comes next or the connection returns."""

    def undo(self, adapted: Any, /) -> None:
        """Undo it, as the connection returns to its pool; its transaction may still be open, or have failed."""
        self.lift(adapted)


class _PostgreSQL(Limit):
    """In a transaction only; each change takes a round trip."""

    setting = "statement_timeout"

    def __init__(self) -> None:
        super().__init__()
        self._own: float | None = None
        """The milliseconds of the server session, for which it is asked once; 0 is no limit."""

    def suits(self, connection: Connection, _statement: str, /) -> bool:
        adapted: Any = connection.connection.dbapi_connection
        return not connection.dialect.detect_autocommit_setting(adapted)

    def tell(self, connection: Connection, seconds: float) -> None:
        if self._own is None:
            shown = str(_ask(connection.connection, "SHOW statement_timeout"))
            number, unit = re.fullmatch(r"(\d+)\s*(\w*)", shown).groups()  # type: ignore[union-attr]  # so it is shown
            self._own = int(number) * _UNITS[unit]
        milliseconds = max(1, math.ceil(min(seconds, LONGEST) * 1000))
        if not self._own or milliseconds < self._own:
            self._send(connection.connection, milliseconds)
            self.in_force = True

    def _send(self, adapted: Any, milliseconds: int, /) -> None:
        _run(adapted, _local(milliseconds))

    def lift(self, adapted: Any, /) -> None:
        if self.in_force:
            self.in_force = False
            _run(adapted, _local(self._own))

    def undo(self, _adapted: Any, /) -> None:
        self.in_force = False  # it ends with the transaction


class _Travelling(_PostgreSQL):
    """It travels with the next statement, and its undoing with COMMIT."""

    def __init__(self, ahead: pipelining.Ahead) -> None:
        super().__init__()
        self._ahead = ahead

    @property
    def lasts(self) -> bool:
        return not self._ahead.autocommit

    def suits(self, _connection: Connection, statement: str, /) -> bool:
        return self.lasts or _SINGLE.fullmatch(statement) is not None

    def _send(self, _adapted: Any, milliseconds: int, /) -> None:
        # Outside a transaction block SET LOCAL would be a warning in the server's log, and a SELECT with a row would
        # be taken for a result. This one has no row, and what it sets ends with the statement that it travels with.
        if self._ahead.autocommit:
            alone = f"SELECT 1 WHERE set_config('statement_timeout', '{milliseconds}', true) IS NULL"
            self._ahead.set_ahead(alone, None)
        else:
            self._ahead.set_ahead(_local(milliseconds), _local(self._own))

    def forget(self) -> None:
        self._ahead.set_ahead(None, None if not self.in_force else _local(self._own))

    def lift(self, adapted: Any, /) -> None:
        """Do nothing: it travels with COMMIT."""

    def undo(self, _adapted: Any, /) -> None:
        self.in_force = False
        self._ahead.set_ahead(None, None)


class _MySQL(Limit):
    """A variable of the session, which takes a round trip to set and another to undo."""

    def __init__(self, *, mariadb: bool) -> None:
        super().__init__()
        # MySQL's own, in milliseconds, is for SELECT only.
        self.setting = "max_statement_time" if mariadb else "max_execution_time"
        self._scale = 1 if mariadb else 1000
        self._own: float | None = None

    def tell(self, connection: Connection, seconds: float) -> None:
        adapted = connection.connection
        if self._own is None:
            self._own = float(_ask(adapted, f"SELECT @@SESSION.{self.setting}"))
        limit = max(0.001, min(seconds, LONGEST)) * self._scale
        if not self._own or limit < self._own:
            self.in_force = True  # before it is sent, as a cancellation may come then
            self._set(adapted, limit)

    def lift(self, adapted: Any, /) -> None:
        if self.in_force and self._own is not None:
            self._set(adapted, self._own)
            self.in_force = False

    def _set(self, adapted: Any, value: float) -> None:
        _run(adapted, f"SET SESSION {self.setting} = {value:.{3 if self._scale == 1 else 0}f}")


class _SQLite(Limit):
    """A progress handler, for statements that compute, and a busy timeout, for those that wait for a lock."""

    setting = "busy_timeout"

    def __init__(self, *, asynchronous: bool) -> None:
        super().__init__()
        self._asynchronous = asynchronous
        self._own: int | None = None

    def tell(self, connection: Connection, seconds: float) -> None:
        adapted = connection.connection
        if self._own is None:
            self._own = int(_ask(adapted, "PRAGMA busy_timeout"))
        at = monotonic() + seconds
        self.in_force = True
        self._handle(adapted.dbapi_connection, lambda: monotonic() >= at)
        _run(adapted, f"PRAGMA busy_timeout = {min(self._own, max(1, math.ceil(min(seconds, LONGEST) * 1000)))}")

    def lift(self, adapted: Any, /) -> None:
        if self.in_force:
            self._handle(adapted, None)
            _run(adapted, f"PRAGMA busy_timeout = {self._own}")
            self.in_force = False

    def _handle(self, adapted: Any, handler: Any) -> None:
        if self._asynchronous and not hasattr(adapted, "set_progress_handler"):  # SQLAlchemy's own adapter
            adapted.run_async(lambda driver: driver.set_progress_handler(handler, STEPS))
        else:
            adapted.set_progress_handler(handler, STEPS)


def limit_of(connection: Connection) -> Limit | None:
    """Return the limit of ``connection``; None if its database has none that can be undone."""
    found: Limit | None = connection.info.get(_KEY)
    if found is None and (made := _make(connection)) is not None:
        found = connection.info[_KEY] = made
    return found


def begin_within(connection: Connection, statement: str, deadline: Deadline) -> None:
    """Begin a transaction of SQLite with ``statement``, which may wait for a lock."""
    limit = limit_of(connection)
    if limit is not None and deadline.left > 0:
        limit.tell(connection, deadline.left)
    try:
        connection.exec_driver_sql(statement)
    except DBAPIError as exc:
        if deadline.left <= SLACK:
            raise deadline.exceeded(f"{statement} waited for a lock") from exc
        raise


def _make(connection: Connection) -> Limit | None:
    dialect: Any = connection.dialect
    if getattr(dialect, "inside_transaction", False):
        return None  # in tests, one transaction has every unit's, and would keep the limit of one for the next
    name, pool = dialect.name, connection.engine.pool
    if name == "sqlite" and isinstance(pool, StaticPool | SingletonThreadPool):
        return None  # other sessions may use the same connection at this moment
    made: Limit
    if name == "postgresql":
        ahead = pipelining.ahead_of(connection)
        made = _PostgreSQL() if ahead is None else _Travelling(ahead)
    elif name in MYSQL:
        made = _MySQL(mariadb=bool(dialect.is_mariadb))
    elif name == "sqlite":
        made = _SQLite(asynchronous=dialect.is_async)
    else:
        return None
    if pool not in _heard_pools:
        _heard_pools.add(pool)
        event.listen(pool, "reset", _undo)
    if not isinstance(made, _Travelling) and connection.engine not in _heard_engines:
        _heard_engines.add(connection.engine)
        event.listen(connection.engine, "commit", _lift)
    return made


def _lift(connection: Connection) -> None:
    limit: Limit | None = connection.info.get(_KEY)
    if limit is not None and limit.in_force:
        limit.lift(connection.connection.dbapi_connection)


def _undo(adapted: Any, record: ConnectionPoolEntry, state: PoolResetState) -> None:
    # If it raises, the pool closes the connection.
    limit: Limit | None = record.info.get(_KEY)
    if limit is not None and not state.terminate_only and record.dbapi_connection is not None:
        limit.undo(adapted)


def _local(milliseconds: float | None) -> str:
    return f"SET LOCAL statement_timeout TO {milliseconds or 0:.0f}"


def _run(adapted: Any, statement: str) -> None:
    cursor = adapted.cursor()
    cursor.execute(statement)
    cursor.close()


def _ask(adapted: Any, statement: str) -> Any:
    cursor = adapted.cursor()
    cursor.execute(statement)
    answer = cursor.fetchone()[0]
    cursor.close()
    return answer
