"""In which state a database is, seen beside the migration scripts.

Lives here: reading it, on a connection that is given.
Must not know: how it is changed.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import MetaData, inspect
from sqlalchemy.engine import Connection

from asgi_sqla.errors import AsgiSqlaError

OPTIONS_OF_VERSION_TABLE = ("version_table", "version_table_schema")


class MigrationError(AsgiSqlaError, RuntimeError):
    """The database is in a state in which that cannot be done; the message says what to do."""


class Status(Enum):
    """In which state a database is. Not to reach it is none of these: that is an error."""

    UP_TO_DATE = "up to date"
    """It has every revision there is."""
    UPGRADE_AVAILABLE = "upgrade available"
    """It lacks revisions."""
    EMPTY = "empty"
    """It has no version, and none of the tables."""
    INTERRUPTED = "creation interrupted"
    """Its creation was cut off where the database cannot undo that (MariaDB); ``sync`` and ``create`` complete it."""
    UNVERSIONED = "tables but no version"
    """It has tables that no migration made; ``sync`` leaves it alone unless told the revision it is at."""
    UNKNOWN_REVISION = "unknown revision"
    """It is at a revision that the scripts do not know: a newer version of them was here."""


class State:
    """The state of one database, read as it is asked for."""

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
        """The table that exists while the others are being created, where that is no transaction."""

    def heads(self) -> tuple[str, ...]:
        """Return the revisions that the database is at."""
        return MigrationContext.configure(self._connection, opts=self._options).get_current_heads()

    def status(self) -> Status:
        """Return which of the states it is."""
        heads = self.heads()
        if heads:
            return self._compared(heads)
        if self.exists(self.marker):
            return Status.INTERRUPTED
        if not self.tables():
            return Status.EMPTY
        if not self._scripts.get_heads() and self.exists(self.version_table):
            return Status.UP_TO_DATE  # created when there was no revision yet
        return Status.UNVERSIONED

    def exists(self, table: str) -> bool:
        """Return whether there is a table of that name beside the version table."""
        return inspect(self._connection).has_table(table, schema=self.schema)

    def tables(self) -> list[str]:
        """Return the tables there are: of the metadata, or without one any but the version table."""
        inspector = inspect(self._connection)
        if self._metadata is None:
            return sorted(set(inspector.get_table_names(schema=self.schema)) - {self.version_table, self.marker})
        tables = self._metadata.tables.values()
        names = {schema: set(inspector.get_table_names(schema=schema)) for schema in {t.schema for t in tables}}
        return sorted(table.fullname for table in tables if table.name in names[table.schema])

    def _compared(self, heads: tuple[str, ...]) -> Status:
        try:
            reached = {script.revision for script in self._scripts.get_all_current(heads)}
        except CommandError:
            return Status.UNKNOWN_REVISION
        return Status.UP_TO_DATE if reached.issuperset(self._scripts.get_heads()) else Status.UPGRADE_AVAILABLE
