"""The lock that lets one process at a time read and change the schema of a database.

The connection that migrates holds it, so both end together, whatever happens to the process.

Holds: how each kind of database is locked.
Must not know: Alembic, or what is done under the lock.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError

from asgi_sqla.engine.showing import shown
from asgi_sqla.engine.sqlite import is_inside
from asgi_sqla.migrations.state import MigrationError

logger: logging.Logger = logging.getLogger("asgi_sqla")

KEY = 0x6173_6769_5F73_716C
"""Our number among PostgreSQL's advisory locks, which each database has separately."""


class MigrationLockError(MigrationError, TimeoutError):
    """Another process held the migration lock for longer than ``lock_timeout`` seconds."""


class Lock(Protocol):
    """The lock of one kind of database, on one connection."""

    def acquire(self) -> bool:
        """Try to lock, waiting a moment at most; return whether it succeeded."""
        ...

    def release(self) -> None:
        """Release the lock; the transaction has ended."""
        ...

    def check(self) -> None:
        """Check what was done, before it is committed."""
        ...


@contextmanager
def locked(connection: Connection, timeout: float) -> Iterator[None]:
    """Hold the lock; at the end commit, or roll back after an exception."""
    lock = _lock_of(connection)
    _acquire(connection, lock, timeout)
    try:
        yield
        lock.check()
        connection.commit()
    except BaseException:
        with suppress(DBAPIError):  # the connection itself may have failed
            connection.rollback()
        raise
    finally:
        _release(connection, lock)


def _lock_of(connection: Connection) -> Lock:
    name = connection.dialect.name
    kind = _InsideSQLite if name == "sqlite" and is_inside(connection.dialect) else _LOCKS.get(name, _None)
    found: Lock = kind(connection)
    return found


def _acquire(connection: Connection, lock: Lock, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    waiting = False
    while not lock.acquire():
        if not waiting:
            logger.info("waiting for the migration lock of %s", shown(connection.engine.url))
        waiting = True
        if time.monotonic() > deadline:
            raise MigrationLockError(
                f"another process has held the migration lock of {shown(connection.engine.url)} for more than "
                f"{timeout:g} seconds; wait until it ends, or raise lock_timeout="
            )


def _release(connection: Connection, lock: Lock) -> None:
    try:
        lock.release()
    except BaseException as exc:  # the lock ends with the connection, so the connection must end
        connection.invalidate(exc)
        if not isinstance(exc, DBAPIError):
            raise


class _OfSession:
    """A lock that belongs to the connection, and outlives its transactions."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def ask(self, query: str, **parameters: Any) -> Any:
        """Return one value, and leave no transaction open, because a snapshot would hide what others did."""
        value = self.connection.scalar(text(query), parameters)
        self.connection.commit()
        return value

    def check(self) -> None:
        """Do nothing: the database has checked each statement."""


class _PostgreSQL(_OfSession):
    """An advisory lock, requested repeatedly, because a waiting request would hold a snapshot.

    (CREATE INDEX CONCURRENTLY waits for snapshots, so two processes would wait for each other.)
    """

    def acquire(self) -> bool:
        if self.ask("SELECT pg_try_advisory_lock(:key)", key=KEY):
            return True
        self.ask("SELECT pg_sleep(0.1)")
        return False

    def release(self) -> None:
        self.ask("SELECT pg_advisory_unlock(:key)", key=KEY)


class _MariaDB(_OfSession):
    """``GET_LOCK``, which all databases of a server share, so its name contains the database's."""

    @property
    def name(self) -> str:
        name = str(self.connection.engine.url.database)
        return f"asgi_sqla_{hashlib.sha256(name.encode()).hexdigest()[:32]}"

    def acquire(self) -> bool:
        return bool(self.ask("SELECT GET_LOCK(:name, 1)", name=self.name))

    def release(self) -> None:
        self.ask("SELECT RELEASE_LOCK(:name)", name=self.name)


class _SQLite:
    """An exclusive transaction, with foreign keys off.

    SQLite changes a table by creating it anew. With foreign keys on, dropping the old table would delete the rows that
    refer to it. They can be turned off only outside a transaction.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._foreign_keys = False
        self._schema: object = None

    def acquire(self) -> bool:
        self._leave_transaction()
        self._foreign_keys = bool(self._ask("PRAGMA foreign_keys"))
        self._ask("PRAGMA foreign_keys=OFF")
        try:
            self._connection.exec_driver_sql("BEGIN EXCLUSIVE")
        except OperationalError as exc:
            if "locked" not in str(exc.orig):
                raise
            self._connection.rollback()
            self.release()
            return False
        self._schema = self._ask("PRAGMA schema_version")
        return True

    def check(self) -> None:
        """Raise if rows refer to missing rows after a change of the schema."""
        if not self._foreign_keys or self._ask("PRAGMA schema_version") == self._schema:
            return
        broken = self._connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if broken is not None:
            raise MigrationError(
                f"a row of {broken[0]} refers to a row of {broken[2]} that does not exist; nothing was changed"
            )

    def release(self) -> None:
        self._leave_transaction()
        self._ask(f"PRAGMA foreign_keys={'ON' if self._foreign_keys else 'OFF'}")
        self._connection.rollback()

    def _leave_transaction(self) -> None:
        """Put SQLAlchemy into a transaction, and the database into none."""
        if not self._connection.in_transaction():
            self._connection.begin()
        driver_connection = self._connection.connection.driver_connection
        if getattr(driver_connection, "in_transaction", False):
            self._connection.exec_driver_sql("ROLLBACK")

    def _ask(self, query: str) -> Any:
        result = self._connection.exec_driver_sql(query)
        return result.scalar() if result.returns_rows else None


class _InsideSQLite(_SQLite):
    """Nothing more than the transaction around it, as inside ``rolled_back()``: its connection is the only one."""

    def acquire(self) -> bool:
        self._foreign_keys = bool(self._ask("PRAGMA foreign_keys"))
        self._schema = self._ask("PRAGMA schema_version")
        return True

    def release(self) -> None:
        """Do nothing."""


class _None(_OfSession):
    """No lock, for a database for which we have none."""

    def acquire(self) -> bool:
        logger.warning(
            "no migration lock is known for %s; let only one process migrate at a time", self.connection.dialect.name
        )
        return True

    def release(self) -> None:
        """Do nothing."""


_LOCKS: dict[str, type[Any]] = {
    "postgresql": _PostgreSQL,
    "mysql": _MariaDB,
    "mariadb": _MariaDB,
    "sqlite": _SQLite,
}
