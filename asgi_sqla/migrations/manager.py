"""``Migrations``: the schema of one database and the scripts that change it, in both kinds.

Lives here: the commands and their awaitable twins, and which engine serves them.
Must not know: what the commands do.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from alembic.script import ScriptDirectory
from anyio import CapacityLimiter, to_thread
from sqlalchemy import MetaData
from sqlalchemy.engine import Connection, Engine

from asgi_sqla.database import Database
from asgi_sqla.engine.kinds import SECONDS, check_kinds
from asgi_sqla.engine.urls import hidden
from asgi_sqla.errors import ConfigurationError, WrongEventLoopError
from asgi_sqla.migrations.lock import locked
from asgi_sqla.migrations.schema import Schema, SyncResult, configuration
from asgi_sqla.migrations.state import Status

T = TypeVar("T")

_URL = re.compile(r"[\w+]{2,}:/")
"""Finds a URL where a directory belongs, also once it was made a path; a drive has one letter."""
_alembic = threading.Lock()
"""Alembic keeps what it is doing in a global, so a process does one thing at a time with it."""


class Migrations:
    """The migrations of one ``Database``: the scripts in ``location``, a directory made by ``asgi-sqla init``.

    ``metadata`` is that of the models (or their base class); without one ``create`` runs every
    revision, and ``drop`` undoes them. ``options`` go to Alembic's ``context.configure()``, such as
    ``version_table`` and ``compare_type``. ``lock_timeout`` is how many seconds to wait for another
    process that has the migration lock.

    Every command has an awaitable twin: ``await migrations.async_sync()``. All use the sync engine
    where its driver is installed, the twins in a worker thread, and otherwise the async one. All but
    ``latest`` hold the migration lock, and read what they go by inside it: an advisory lock on
    PostgreSQL (connect to it directly, not through a proxy that pools transactions), ``GET_LOCK`` on
    MariaDB and MySQL, an exclusive transaction on SQLite; other databases are warned of, for they
    have none. Not to reach the database raises what the driver raises; what Alembic refuses raises its
    ``CommandError``.
    """

    def __init__(
        self,
        database: Database,
        location: str | PathLike[str],
        *,
        metadata: MetaData | type[Any] | None = None,
        options: Mapping[str, Any] | None = None,
        lock_timeout: float = 600.0,
    ) -> None:
        if not isinstance(database, Database):
            raise ConfigurationError(
                f"database={hidden(database)} is no Database; write Migrations(Database(url), location)"
            )
        metadata = getattr(metadata, "metadata", metadata)
        if not isinstance(metadata, MetaData | None):
            raise ConfigurationError(f"metadata={hidden(metadata)} is no MetaData; pass Base.metadata")
        if not isinstance(options, Mapping | None):
            raise ConfigurationError(f'options={hidden(options)} is not a mapping; write options={{"name": value}}')
        check_kinds("Migrations", {"lock_timeout": lock_timeout}, {"lock_timeout": SECONDS})
        self.database: Database = database
        self.location: Path = checked_location(location)
        self.metadata: MetaData | None = metadata
        self.options: dict[str, Any] = dict(options or {})
        self.lock_timeout: float = lock_timeout

    def __repr__(self) -> str:
        where = str(self.location)
        return f"<Migrations of {self.database!r} in {where if repr(where) == hidden(where) else hidden(where)}>"

    def sync(self, *, stamp: str | None = None) -> SyncResult:
        """Bring the database to the newest revision, creating or upgrading it; return what was done.

        A database that has tables but no version is left alone, and so is one at a revision that the
        scripts do not know: MigrationError. ``stamp`` is the revision (or "heads") that tables without
        a version are at: then it is written down, and the upgrade goes on from there.
        """
        return self._do(lambda schema: schema.sync(stamp))

    async def async_sync(self, *, stamp: str | None = None) -> SyncResult:
        """Do what ``sync`` does."""
        return await self._async_do(lambda schema: schema.sync(stamp))

    def create(self) -> None:
        """Create the tables, at the newest revision; MigrationError unless the database is empty."""
        self._do(Schema.create)

    async def async_create(self) -> None:
        """Do what ``create`` does."""
        await self._async_do(Schema.create)

    def upgrade(self, target: str = "heads") -> None:
        """Run the revisions up to ``target``, written as for Alembic: a revision, "heads", "+1"."""
        self._do(lambda schema: schema.upgrade(target))

    async def async_upgrade(self, target: str = "heads") -> None:
        """Do what ``upgrade`` does."""
        await self._async_do(lambda schema: schema.upgrade(target))

    def downgrade(self, target: str) -> None:
        """Undo the revisions down to ``target``: a revision, "base", "-1"."""
        self._do(lambda schema: schema.downgrade(target))

    async def async_downgrade(self, target: str) -> None:
        """Do what ``downgrade`` does."""
        await self._async_do(lambda schema: schema.downgrade(target))

    def drop(self) -> None:
        """Drop the tables, with all that is in them, and the version table."""
        self._do(Schema.drop)

    async def async_drop(self) -> None:
        """Do what ``drop`` does."""
        await self._async_do(Schema.drop)

    def status(self) -> Status:
        """Return in which state the database is."""
        return self._do(Schema.status)

    async def async_status(self) -> Status:
        """Do what ``status`` does."""
        return await self._async_do(Schema.status)

    def current(self) -> tuple[str, ...]:
        """Return the revisions the database is at: none, one, or one for each branch."""
        return self._do(Schema.current)

    async def async_current(self) -> tuple[str, ...]:
        """Do what ``current`` does."""
        return await self._async_do(Schema.current)

    def latest(self) -> tuple[str, ...]:
        """Return the newest revisions among the scripts: none, one, or one for each branch."""
        return tuple(sorted(ScriptDirectory.from_config(configuration(self.location)).get_heads()))

    async def async_latest(self) -> tuple[str, ...]:
        """Do what ``latest`` does."""
        return await to_thread.run_sync(self.latest)

    def revision(self, message: str, *, autogenerate: bool = False, **options: Any) -> list[Path]:
        """Write a new revision script and return its path; ``autogenerate`` fills it from the metadata.

        ``options`` are those of Alembic's ``command.revision``: ``head``, ``splice``, ``branch_label``,
        ``rev_id``, ``depends_on``.
        """
        options["autogenerate"] = autogenerate
        return self._do(lambda schema: schema.revision(message, options))

    async def async_revision(self, message: str, *, autogenerate: bool = False, **options: Any) -> list[Path]:
        """Do what ``revision`` does."""
        options["autogenerate"] = autogenerate
        return await self._async_do(lambda schema: schema.revision(message, options))

    def dialect_name(self) -> str:
        """Return what SQLAlchemy calls this kind of database."""
        engine = self._sync_engine()
        return engine.dialect.name if engine is not None else asyncio.run(self._async_dialect_name())

    async def _async_dialect_name(self) -> str:
        return self.database.async_engine.dialect.name

    def with_lock(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)``, on a connection of its own that holds the migration lock."""
        engine = self._sync_engine()
        if engine is None:
            return self._run_async(work)
        with engine.connect() as connection:
            return self._hold(connection, work)

    async def async_with_lock(self, work: Callable[[Connection], T]) -> T:
        """Do what ``with_lock`` does; ``work`` runs in a worker thread, or inside ``run_sync()``."""
        if self._sync_engine() is not None:
            return await to_thread.run_sync(self.with_lock, work, limiter=CapacityLimiter(1))
        async with self.database.async_engine.connect() as connection:
            return await connection.run_sync(self._hold, work)

    def _hold(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        with locked(connection, self.lock_timeout):
            return work(connection)

    def _sync_engine(self) -> Engine | None:
        """Return the sync engine, or None if the database has only the other kind."""
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
            f"{self!r} has only an async driver, and an event loop is running: use the awaitable twin, "
            "await migrations.async_sync()"
        )

    async def _on_a_loop_of_its_own(self, work: Callable[[Connection], T]) -> T:
        try:
            return await self.async_with_lock(work)
        finally:  # an engine handed in would keep a connection of this loop for others
            await self.database.async_engine.dispose()

    def _on(self, work: Callable[[Schema], T]) -> Callable[[Connection], T]:
        def on_connection(connection: Connection) -> T:
            return work(Schema(connection, self.location, self.metadata, self.options))

        return on_connection

    def _do(self, work: Callable[[Schema], T]) -> T:
        with _alembic:
            return self.with_lock(self._on(work))

    async def _async_do(self, work: Callable[[Schema], T]) -> T:
        if self._sync_engine() is not None:
            return await to_thread.run_sync(self._do, work, limiter=CapacityLimiter(1))
        while not _alembic.acquire(blocking=False):  # noqa: ASYNC110  # other loops and threads have it too
            await asyncio.sleep(0.02)
        try:
            return await self.async_with_lock(self._on(work))
        finally:
            _alembic.release()


def checked_location(location: Any) -> Path:
    """Return the path of a directory of migrations, or raise ConfigurationError for what is none, such as a URL."""
    if not isinstance(location, str | PathLike) or _URL.match(str(location)):
        raise ConfigurationError(f'location={hidden(location)} is no directory; write one such as "migrations"')
    return Path(location)
