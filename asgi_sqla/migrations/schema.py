"""The schema of one database, read and changed on a connection that holds the lock.

Holds: what each command does, and where a change is one transaction and where it cannot be.
Must not know: where the connection comes from, or whether anything is awaited.
"""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from traceback import walk_tb
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Column, Integer, MetaData, Table, exists, select
from sqlalchemy.engine import Connection

from asgi_sqla.migrations.state import MigrateResult, MigrationError, State, Status

T = TypeVar("T")
logger: logging.Logger = logging.getLogger("asgi_sqla")

ENV = "from asgi_sqla.migrations import run_env"
_INSTALLED = (str(Path(os.__file__).parent), str(Path(__file__).parent.parent))
"""Where the standard library is, and this package."""


def configuration(location: Path, config: Path | None) -> Config:
    """Return Alembic's configuration of the scripts in ``location``, with the settings of its ``alembic.ini``."""
    if not (location / "env.py").is_file():
        raise MigrationError(
            f"there is no env.py in {location}; write: asgi-sqla --location {location} --target module:name init"
        )
    ini = config or next(_inis(location), None)
    made = Config(None if ini is None else str(ini), cmd_opts=Namespace(quiet=True))
    made.set_main_option("script_location", str(location).replace("%", "%%"))
    if made.get_main_option("path_separator") is None and made.get_main_option("version_path_separator") is None:
        made.set_main_option("path_separator", "os")
    return made


def _inis(location: Path) -> Iterator[Path]:
    """Yield the files that say how the scripts in ``location`` are to be read: its own, and the project's."""
    if (location / "alembic.ini").is_file():
        yield location / "alembic.ini"
    root = Path("alembic.ini")
    if root.is_file():
        named = Config(str(root)).get_main_option("script_location")
        if named is not None and Path(named).resolve() == location.resolve():
            yield root


def latest(location: Path, config: Path | None) -> list[str]:
    """Return the newest revisions of the scripts."""
    return sorted(_scripts(configuration(location, config)).get_heads())


def reader(
    location: Path, config: Path | None, metadata: MetaData | None, options: dict[str, Any]
) -> Callable[[Connection], Status]:
    """Return a function that reads the state on a connection without the lock; the scripts are loaded now."""
    scripts = _scripts(configuration(location, config))
    return lambda connection: State(connection, scripts, metadata, options).status()


def _scripts(config: Config) -> ScriptDirectory:
    """Return the scripts; raise MigrationError for one that cannot be imported."""
    scripts = ScriptDirectory.from_config(config)
    try:
        scripts.get_heads()  # imports them all
    except (CommandError, RevisionError):
        raise
    except Exception as exc:
        raise MigrationError(f"a script cannot be imported: {one_line(exc)}") from exc
    return scripts


def one_line(failure: BaseException) -> str:
    """Return the class of ``failure``, the first lines that it says, and where in the user's code it was raised."""
    lines = [str(failure.msg)] if isinstance(failure, SyntaxError) else str(failure).splitlines()
    said = "; ".join([line.strip() for line in lines if line.strip()][:3])
    where = _raised_at(failure)
    told = f"{type(failure).__name__}: {said}" if said else type(failure).__name__
    return told if where is None else f"{told} ({where})"


def _raised_at(failure: BaseException) -> str | None:
    """Return the file and line of the user's code that raised ``failure``: the innermost of no installed package."""
    if isinstance(failure, SyntaxError) and failure.filename is not None:
        return f"{failure.filename}, line {failure.lineno}"
    for frame, line in reversed(list(walk_tb(failure.__traceback__))):
        name = frame.f_code.co_filename
        if not name.startswith(("<", *_INSTALLED)) and "site-packages" not in name:
            return f"{name}, line {line}"
    return None


class Schema:
    """The operations on the schema, under the lock."""

    def __init__(
        self,
        connection: Connection,
        location: Path,
        config: Path | None,
        metadata: MetaData | None,
        options: dict[str, Any],
    ) -> None:
        self._connection = connection
        self._location = location
        self._metadata = metadata
        self._config = configuration(location, config)
        self._config.attributes["connection"] = connection
        self._scripts = _scripts(self._config)
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
            if stamp == "base":  # which records nothing: every revision is to run
                self.upgrade("heads")
                return MigrateResult.UPGRADED
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
            'match a revision, name it: migrate(stamp="heads"), or asgi-sqla migrate --stamp heads, which does not run '
            'that revision and those before it. If they are older than the first revision, write stamp="base", or '
            "--stamp base, which runs them all; one that creates a table that exists fails"
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
        if not self._metadata.tables:
            logger.warning("the metadata has no tables: import the modules of the models before Migrations is used")
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
