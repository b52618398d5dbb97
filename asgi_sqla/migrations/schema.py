"""The schema of one database, read and changed on a connection that holds the lock.

Holds: what each command does, and where a change is one transaction and where it cannot be.
Must not know: where the connection comes from, or whether anything is awaited.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Integer, MetaData, Table, exists, select
from sqlalchemy.engine import Connection

from asgi_sqla.migrations.state import MigrationError, State, Status

T = TypeVar("T")
logger: logging.Logger = logging.getLogger("asgi_sqla")

ENV = "from asgi_sqla.migrations import run_env"


class MigrateResult(Enum):
    """What ``migrate`` did."""

    UP_TO_DATE = "up to date"
    """Nothing: the database was up to date."""
    CREATED = "created"
    """It created the tables."""
    UPGRADED = "upgraded"
    """It ran the missing revisions."""
    STAMPED = "stamped"
    """It recorded the given revision, which is the newest."""


def configuration(location: Path) -> Config:
    """Return Alembic's configuration of the scripts in ``location``, with its ``alembic.ini`` if there is one."""
    if not (location / "env.py").is_file():
        raise MigrationError(f"there is no env.py in {location}; create it with: asgi-sqla init {location}")
    ini = location / "alembic.ini"
    config = Config(str(ini) if ini.is_file() else None, cmd_opts=Namespace(quiet=True))
    config.set_main_option("script_location", str(location).replace("%", "%%"))
    if config.get_main_option("path_separator") is None:
        config.set_main_option("path_separator", "os")
    return config


class Schema:
    """The operations on the schema, under the lock."""

    def __init__(
        self, connection: Connection, location: Path, metadata: MetaData | None, options: dict[str, Any]
    ) -> None:
        self._connection = connection
        self._location = location
        self._metadata = metadata
        self._config = configuration(location)
        self._config.attributes["connection"] = connection
        self._scripts = ScriptDirectory.from_config(self._config)
        self._state = State(connection, self._scripts, metadata, options)

    def status(self) -> Status:
        """Return the state of the database."""
        return self._quietly(self._state.status)

    def current(self) -> tuple[str, ...]:
        """Return the revisions of the database."""
        return self._quietly(self._state.heads)

    def create(self) -> None:
        """Create the tables of the metadata at the newest revision, or without metadata run every revision."""
        status = self.status()
        if status not in (Status.EMPTY, Status.INTERRUPTED):
            raise MigrationError(f"the tables cannot be created, because the database is not empty: {status.value}")
        if self._transactional:
            self._fill()
            return
        if status is Status.INTERRUPTED:
            self._clear()
        marker = Table(self._state.marker, MetaData(), Column("id", Integer), schema=self._state.schema)
        marker.create(self._connection, checkfirst=True)
        self._connection.commit()
        self._fill()
        marker.drop(self._connection)

    def upgrade(self, target: str) -> None:
        """Run the revisions up to ``target``."""
        self._alembic(command.upgrade, target)

    def downgrade(self, target: str) -> None:
        """Undo the revisions down to ``target``."""
        self._alembic(command.downgrade, target)

    def drop(self) -> None:
        """Drop the tables of the metadata, or without it undo every revision; then drop the version table."""
        if self._metadata is None:
            self.downgrade("base")
        else:
            self._metadata.drop_all(self._connection)
        for name in (self._state.marker, self._state.version_table):
            Table(name, MetaData(), schema=self._state.schema).drop(self._connection, checkfirst=True)

    def migrate(self, stamp: str | None) -> MigrateResult:
        """Bring the database to the newest revision, from every state in which that is possible."""
        status = self.status()
        if status is Status.UNVERSIONED and stamp is not None:
            self._alembic(command.stamp, stamp)
            status = self.status()
            if status is Status.UP_TO_DATE:
                return MigrateResult.STAMPED
        if status is Status.UP_TO_DATE:
            return MigrateResult.UP_TO_DATE
        if status in (Status.EMPTY, Status.INTERRUPTED):
            self.create()
            return MigrateResult.CREATED
        if status is not Status.UPGRADE_AVAILABLE:
            raise MigrationError(self._refusal(status))
        self.upgrade("heads")
        return MigrateResult.UPGRADED

    def revision(self, message: str, options: dict[str, Any]) -> list[Path]:
        """Write a new script, and return its path."""
        made = self._alembic(command.revision, message, **options)
        return [Path(script.path) for script in (made if isinstance(made, list) else [made]) if script is not None]

    def _refusal(self, status: Status) -> str:
        if status is Status.UNKNOWN_REVISION:
            return (
                f"the database is at {', '.join(self.current())}, which is not among the scripts in {self._location}: "
                "a newer version of the application migrated it; deploy that one again, or downgrade with it first"
            )
        tables = self._state.tables()
        return (
            f"the database has tables ({', '.join(tables[:3])}{', …' if tables[3:] else ''}) but no version; if they "
            'match a revision, name it: migrate(stamp="heads"), or asgi-sqla migrate --stamp heads'
        )

    @property
    def _transactional(self) -> bool:
        return self._connection.dialect.name in ("postgresql", "sqlite")

    def _in_one_transaction(self) -> AbstractContextManager[Any]:
        """Make what follows atomic, where the database can; on SQLite the lock does that."""
        one = self._transactional and not self._connection.in_transaction()
        return self._connection.begin() if one else nullcontext()

    def _fill(self) -> None:
        if self._metadata is None:
            self.upgrade("heads")
            return
        logger.info("creating the tables")
        with self._in_one_transaction():
            self._metadata.create_all(self._connection)
            if not self._transactional:
                self._connection.commit()
            self._alembic(command.stamp, "heads")

    def _clear(self) -> None:
        """Drop what an interrupted creation left. No table existed before it, so the tables are empty."""
        if self._metadata is None:
            return
        names = set(self._state.tables())
        for table in self._metadata.tables.values():
            if table.fullname in names and self._connection.scalar(select(exists().select_from(table))):
                raise MigrationError(
                    f"{table.fullname} has rows, although its creation was interrupted; look at it first"
                )
        self._metadata.drop_all(self._connection)

    def _quietly(self, read: Callable[[], T]) -> T:
        """Read, and leave no transaction open, because Alembic would not commit in it."""
        before = self._connection.in_transaction()
        value = read()
        if not before:
            self._connection.commit()
        return value

    def _alembic(self, do: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if ENV.rpartition(" ")[2] not in (self._location / "env.py").read_text():
            raise MigrationError(
                f"{self._location / 'env.py'} does not call run_env(), so it would use a connection without the lock; "
                f"write in it: {ENV}; run_env(migrations)"
            )
        return do(self._config, *arguments, **options)
