"""The state of a database, compared with the migration scripts.

Holds: how it is read, on a given connection.
Must not know: how it is changed.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData, inspect
from sqlalchemy.engine import Connection

from asgi_sqla.errors import AsgiSqlaError

if TYPE_CHECKING:  # Alembic takes a third of a second, and a process may never run a command
    from alembic.script import ScriptDirectory

OPTIONS_OF_VERSION_TABLE = ("version_table", "version_table_schema")


class MigrationError(AsgiSqlaError, RuntimeError):
    """The state of the database does not allow the command; the message says what to do."""


class Status(Enum):
    """The state of a database. An unreachable database has no Status: that is an error."""

    UP_TO_DATE = "up to date"
    """It has every revision."""
    UPGRADE_AVAILABLE = "upgrade available"
    """It lacks revisions."""
    EMPTY = "empty"
    """It has no version and no table."""
    INTERRUPTED = "creation interrupted"
    """Its creation was interrupted, which MariaDB cannot undo; ``migrate`` and ``create`` complete it."""
    UNVERSIONED = "tables but no version"
    """It has tables that no migration made; ``migrate`` changes it only if it is told their revision."""
    UNKNOWN_REVISION = "unknown revision"
    """It has a revision that the scripts do not have: a newer version of the application migrated it."""


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


class State:
    """The state of one database, read on demand."""

    def __init__(
        self, connection: Connection, scripts: ScriptDirectory, metadata: MetaData | None, options: dict[str, Any]
    ) -> None:
        self._connection = connection
        self._scripts = scripts
        self._metadata = metadata
        self._options = {key: options[key] for key in OPTIONS_OF_VERSION_TABLE if key in options}
        self.version_table: str = options.get("version_table", "alembic_version")
        self.schema: str | None = options.get("version_table_schema")
        self.marker: str = f"{self.version_table}_creating"
        """The table that exists while the others are created, if that is not one transaction."""

    def heads(self) -> tuple[str, ...]:
        """Return the revisions of the database."""
        from alembic.runtime.migration import MigrationContext

        return MigrationContext.configure(self._connection, opts=self._options).get_current_heads()

    def status(self) -> Status:
        """Return the state."""
        heads = self.heads()
        if heads:
            return self._compared(heads)
        if self.exists(self.marker):
            return Status.INTERRUPTED
        if not self.tables():
            return Status.EMPTY
        if not self._scripts.get_heads() and self.exists(self.version_table):
            return Status.UP_TO_DATE  # created before the first revision
        return Status.UNVERSIONED

    def exists(self, table: str) -> bool:
        """Return whether a table of this name exists in the schema of the version table."""
        return inspect(self._connection).has_table(table, schema=self.schema)

    def tables(self) -> list[str]:
        """Return the existing tables: those of the metadata, or without it all but the version table."""
        inspector = inspect(self._connection)
        if self._metadata is None:
            return sorted(set(inspector.get_table_names(schema=self.schema)) - {self.version_table, self.marker})
        tables = self._metadata.tables.values()
        names = {schema: set(inspector.get_table_names(schema=schema)) for schema in {t.schema for t in tables}}
        return sorted(table.fullname for table in tables if table.name in names[table.schema])

    def _compared(self, heads: tuple[str, ...]) -> Status:
        from alembic.util import CommandError

        try:
            reached = {script.revision for script in self._scripts.get_all_current(heads)}
        except CommandError:
            return Status.UNKNOWN_REVISION
        return Status.UP_TO_DATE if reached.issuperset(self._scripts.get_heads()) else Status.UPGRADE_AVAILABLE
