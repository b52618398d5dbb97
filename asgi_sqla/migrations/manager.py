"""``Migrations``: the schema of one database and the scripts that change it, for sync and async code.

Holds: the commands and their async twins, and the engine that runs them.
Must not know: what the commands do.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy import MetaData
from sqlalchemy.engine import Connection, Engine

from asgi_sqla.database import Database
from asgi_sqla.engine.kinds import SECONDS, check_kinds
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError, WrongEventLoopError, needing
from asgi_sqla.migrations.lock import locked
from asgi_sqla.migrations.state import MigrateResult, Status

if TYPE_CHECKING:  # Alembic takes a third of a second, and a process may never run a command
    from types import ModuleType

    from asgi_sqla.migrations.schema import Schema

T = TypeVar("T")

_URL = re.compile(r"[\w+]{2,}:/")
"""Finds a URL in place of a directory, also after it was made a path; a drive has one letter."""
_alembic = threading.Lock()
"""Alembic keeps its state in a global, so a process runs one command at a time."""


def _forget_after_fork() -> None:
    global _alembic  # a thread that the child does not have may hold the parent's
    _alembic = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


class Migrations:
    """The migrations of one ``Database``: its schema, and the scripts that change it.

    Every command has an async twin: ``await migrations.async_migrate()``. The commands use the sync engine if its
    driver is installed, and the twins run it in a worker thread; otherwise they use the async engine.

    Every command but ``latest`` holds the migration lock, and reads the state inside it. It is an advisory lock on
    PostgreSQL, ``GET_LOCK`` on MariaDB and MySQL, and an exclusive transaction on SQLite; other databases have none,
    and a warning says so.

    - ``database``: the ``Database`` to migrate. It must not have ``transaction_pooler``, because the advisory lock
      belongs to a session of the server: write another ``Database``, with the URL of the server itself.
    - ``location``: the directory of the scripts, as ``asgi-sqla init`` writes it.
    - ``metadata``: the ``MetaData`` of the models, or their base class. Without it ``create`` runs every revision, and
      ``drop`` undoes them; default: none.
    - ``options``: a mapping of options for Alembic's ``context.configure()``, such as ``version_table`` and
      ``compare_type``; default: none.
    - ``lock_timeout``: seconds to wait for another process that holds the migration lock; default: 600.
    - ``config``: the path of an ``alembic.ini`` whose other settings count, such as ``version_locations`` and
      ``file_template``; default: the one in ``location``, or else the one in the current directory if it names
      ``location``.

    Raises ConfigurationError for a wrong argument, at once. A command raises MigrationLockError if it does not get the
    lock, what the driver raises if it cannot connect, and Alembic's ``CommandError`` for what Alembic refuses.
    """

    def __init__(
        self,
        database: Database,
        location: str | PathLike[str],
        *,
        metadata: MetaData | type[Any] | None = None,
        options: Mapping[str, Any] | None = None,
        lock_timeout: float = 600.0,
        config: str | PathLike[str] | None = None,
    ) -> None:
        if not isinstance(database, Database):
            raise ConfigurationError(
                f"database={hidden(database)} is not a Database; write Migrations(Database(url), location)"
            )
        _check_pooler(database)
        metadata = getattr(metadata, "metadata", metadata)
        if not isinstance(metadata, MetaData | None):
            raise ConfigurationError(f"metadata={hidden(metadata)} is not a MetaData; pass Base.metadata")
        if not isinstance(options, Mapping | None):
            raise ConfigurationError(f'options={hidden(options)} is not a mapping; write options={{"name": value}}')
        check_kinds("Migrations", {"lock_timeout": lock_timeout}, {"lock_timeout": SECONDS})
        self.database: Database = database
        self.location: Path = checked_location(location)
        self.metadata: MetaData | None = metadata
        self.options: dict[str, Any] = dict(options or {})
        self.lock_timeout: float = lock_timeout
        self.config: Path | None = None if config is None else _checked_config(config)

    def __repr__(self) -> str:
        where = str(self.location)
        return f"<Migrations of {self.database!r} in {where if repr(where) == hidden(where) else hidden(where)}>"

    def migrate(self, *, stamp: str | None = None) -> MigrateResult:
        """Bring the database to the newest revision, by creating or upgrading it; return what was done.

        - ``stamp``: the revision of tables without a version, or "heads"; it is recorded before the upgrade; default:
          none.

        Raises MigrationError if the database has tables but no version, or a revision that the scripts do not have.
        """
        return self._do(lambda schema: schema.migrate(stamp))

    async def async_migrate(self, *, stamp: str | None = None) -> MigrateResult:
        """Do what ``migrate`` does.

        - ``stamp``: the revision of tables without a version, or "heads"; it is recorded before the upgrade; default:
          none.
        """
        return await self._async_do(lambda schema: schema.migrate(stamp))

    def create(self) -> None:
        """Create the tables, at the newest revision.

        Raises MigrationError unless the database is empty.
        """
        self._do(lambda schema: schema.create())

    async def async_create(self) -> None:
        """Do what ``create`` does."""
        await self._async_do(lambda schema: schema.create())

    def upgrade(self, target: str = "heads") -> None:
        """Run the revisions up to ``target``.

        - ``target``: a revision, "heads", or a step such as "+1"; default: "heads".
        """
        self._do(lambda schema: schema.upgrade(target))

    async def async_upgrade(self, target: str = "heads") -> None:
        """Do what ``upgrade`` does.

        - ``target``: a revision, "heads", or a step such as "+1"; default: "heads".
        """
        await self._async_do(lambda schema: schema.upgrade(target))

    def downgrade(self, target: str) -> None:
        """Undo the revisions down to ``target``.

        - ``target``: a revision, "base", or a step such as "-1".
        """
        self._do(lambda schema: schema.downgrade(target))

    async def async_downgrade(self, target: str) -> None:
        """Do what ``downgrade`` does.

        - ``target``: a revision, "base", or a step such as "-1".
        """
        await self._async_do(lambda schema: schema.downgrade(target))

    def drop(self) -> None:
        """Drop the tables with their rows, and the version table."""
        self._do(lambda schema: schema.drop())

    async def async_drop(self) -> None:
        """Do what ``drop`` does."""
        await self._async_do(lambda schema: schema.drop())

    def status(self) -> Status:
        """Return the state of the database."""
        return self._do(lambda schema: schema.status())

    async def async_status(self) -> Status:
        """Do what ``status`` does."""
        return await self._async_do(lambda schema: schema.status())

    def current(self) -> tuple[str, ...]:
        """Return the revisions of the database: none, one, or one for each branch."""
        return self._do(lambda schema: schema.current())

    async def async_current(self) -> tuple[str, ...]:
        """Do what ``current`` does."""
        return await self._async_do(lambda schema: schema.current())

    def latest(self) -> tuple[str, ...]:
        """Return the newest revisions of the scripts: none, one, or one for each branch. It needs no database."""
        return tuple(_schema().latest(self.location, self.config))

    async def async_latest(self) -> tuple[str, ...]:
        """Do what ``latest`` does."""
        return await to_thread.run_sync(self.latest)

    def revision(self, message: str, *, autogenerate: bool = False, **options: Any) -> list[Path]:
        """Write a new revision script, and return its path.

        - ``message``: what the revision does; it is in the name of the file.
        - ``autogenerate``: True fills the script with the differences between metadata and database; default: False.
        - ``**options``: ``head``, ``splice``, ``branch_label``, ``rev_id`` or ``depends_on`` of Alembic's
          ``command.revision``.
        """
        options["autogenerate"] = autogenerate
        return self._do(lambda schema: schema.revision(message, options))

    async def async_revision(self, message: str, *, autogenerate: bool = False, **options: Any) -> list[Path]:
        """Do what ``revision`` does.

        - ``message``: what the revision does; it is in the name of the file.
        - ``autogenerate``: True fills the script with the differences between metadata and database; default: False.
        - ``**options``: ``head``, ``splice``, ``branch_label``, ``rev_id`` or ``depends_on`` of Alembic's
          ``command.revision``.
        """
        options["autogenerate"] = autogenerate
        return await self._async_do(lambda schema: schema.revision(message, options))

    def dialect_name(self) -> str:
        """Return SQLAlchemy's name for this kind of database."""
        engine = self._sync_engine()
        return engine.dialect.name if engine is not None else asyncio.run(self._async_dialect_name())

    async def _async_dialect_name(self) -> str:
        return self.database.async_engine.dialect.name

    def with_lock(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)``, on a new connection that holds the migration lock.

        - ``work``: a plain function of one ``Connection``.
        """
        engine = self._sync_engine()
        if engine is None:
            return self._run_async(work)
        with engine.connect() as connection:
            return self._hold(connection, work)

    async def async_with_lock(self, work: Callable[[Connection], T]) -> T:
        """Do what ``with_lock`` does.

        - ``work``: a plain function of one ``Connection``; it runs in a worker thread, or inside ``run_sync()``.
        """
        if self._sync_engine() is not None:
            return await to_thread.run_sync(self.with_lock, work, limiter=CapacityLimiter(1))
        async with self.database.async_engine.connect() as connection:
            return await connection.run_sync(self._hold, work)

    def _reader(self) -> Callable[[Connection], Status]:
        """Return a function that reads the status on a connection without the lock, for asgi_sqla.health."""
        found: Callable[[Connection], Status] = _schema().reader(
            self.location, self.config, self.metadata, self.options
        )
        return found

    def _hold(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        with locked(connection, self.lock_timeout):
            return work(connection)

    def _sync_engine(self) -> Engine | None:
        """Return the sync engine, or None if the database has only an async one."""
        _check_pooler(self.database)  # it may have been configured later
        try:
            return self.database.engine
        except ConfigurationError:
            if not self.database.configured:
                raise
            return None

    def _run_async(self, work: Callable[[Connection], T]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._on_a_loop_of_its_own(work))
        raise WrongEventLoopError(
            f"{self!r} has only an async driver, and an event loop is running: use the async twin, "
            "await migrations.async_migrate()"
        )

    async def _on_a_loop_of_its_own(self, work: Callable[[Connection], T]) -> T:
        try:
            return await self.async_with_lock(work)
        finally:  # an engine that was passed in would keep a connection of this loop
            await self.database.async_engine.dispose()

    def _on(self, work: Callable[[Schema], T]) -> Callable[[Connection], T]:
        def on_connection(connection: Connection) -> T:
            return work(_schema().Schema(connection, self.location, self.config, self.metadata, self.options))

        return on_connection

    def _do(self, work: Callable[[Schema], T]) -> T:
        with _alembic:
            return self.with_lock(self._on(work))

    async def _async_do(self, work: Callable[[Schema], T]) -> T:
        if self._sync_engine() is not None:
            return await to_thread.run_sync(self._do, work, limiter=CapacityLimiter(1))
        while not _alembic.acquire(blocking=False):  # noqa: ASYNC110  # other loops and threads use it too
            await asyncio.sleep(0.02)
        try:
            return await self.async_with_lock(self._on(work))
        finally:
            _alembic.release()


def _schema() -> ModuleType:
    """Return the room that uses Alembic."""
    with needing("migrations", "a migration command"):
        from asgi_sqla.migrations import schema
    return schema


def _check_pooler(database: Database) -> None:
    if database._configuration is not None and database._configuration.recipe.pooler:
        raise ConfigurationError(
            f"database={database!r} has transaction_pooler=True, but the migration lock needs a session of the server; "
            "write Migrations(Database(the URL of the server itself), location), or for settings "
            "DATABASE_URL=that URL and DATABASE_TRANSACTION_POOLER=false"
        )


def checked_location(location: Any) -> Path:
    """Return the path of a directory of migrations; raise ConfigurationError for anything else, such as a URL."""
    if not isinstance(location, str | PathLike) or _URL.match(str(location)):
        raise ConfigurationError(f'location={hidden(location)} is not a directory; write one such as "migrations"')
    return Path(location)


def _checked_config(config: Any) -> Path:
    if not isinstance(config, str | PathLike) or not Path(config).is_file():
        raise ConfigurationError(f'config={hidden(config)} is not a file; write the path of one such as "alembic.ini"')
    return Path(config)
