"""A temporary copy of a database: cloned from a template, or a copied file.

Holds: how each kind of database is copied and dropped.
Must not know: tests, units, pytest.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from threading import Thread
from typing import TypeAlias

from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from sqlalchemy.sql import text

from asgi_sqla.engine.arguments import Recipe
from asgi_sqla.engine.classification import sqlstate_of
from asgi_sqla.engine.engines import Engines
from asgi_sqla.errors import ConfigurationError, MissingDriverError

PATIENCE = 10.0
"""Seconds to wait until no connection uses the database that becomes the template."""

Drop: TypeAlias = Callable[[], object]

_process = secrets.token_hex(4)
_numbers = count(1)
_made: dict[URL, str] = {}
"""What this process makes once for a database and drops at its exit: PostgreSQL's template, MariaDB's clone."""


class Copy:
    """A copy of the database of ``real``, and its engines."""

    def __init__(self, real: Engines) -> None:
        url = real.url or _url_of_given(real)
        backend = url.get_backend_name()
        if backend not in _COPIERS:
            raise ConfigurationError(f'mode="copy" cannot copy a {backend} database; write mode="transaction"')
        copied, self._drop = _COPIERS[backend](url)
        self.engines: Engines = real.at(copied)

    def end(self) -> None:
        """Drop it, from a thread without a running event loop."""
        self.engines.dispose()
        self._drop()

    async def end_async(self) -> None:
        """Drop it, from an event loop."""
        await self.engines.dispose_async()
        await asyncio.to_thread(self._drop)


def _url_of_given(real: Engines) -> URL:
    return real.asynchronous().url if real.has_async() else real.sync().url


def _copy_sqlite(url: URL) -> tuple[URL, Drop]:
    """Copy a file, or an in-memory database, with SQLite's own backup, which includes the WAL."""
    folder = tempfile.TemporaryDirectory(prefix="asgi_sqla_")
    path = Path(folder.name) / "copy.db"
    uri = str(url.database).startswith("file:")
    name = f"{url.database}?vfs={url.query['vfs']}" if uri and "vfs" in url.query else str(url.database)
    with contextlib.closing(sqlite3.connect(name, uri=uri)) as source, contextlib.closing(sqlite3.connect(path)) as to:
        source.backup(to)
    return url.set(database=str(path), query={}), folder.cleanup


def _copy_postgresql(url: URL) -> tuple[URL, Drop]:
    """Clone the template, which the first call makes from the database."""
    if url not in _made:
        _made[url] = template = _new_name(url)
        _patiently(url, lambda connection: _create(connection, template, str(url.database)))
        atexit.register(_drop_at_exit, url, f"DROP DATABASE {template} WITH (FORCE)")
    name = _new_name(url)
    _patiently(url, lambda connection: _create(connection, name, _made[url]))
    return url.set(database=name), lambda: _run(url, _statement(f"DROP DATABASE {name} WITH (FORCE)"))


def _create(connection: Connection, name: str, template: str) -> None:
    quoted = connection.dialect.identifier_preparer.quote(template)
    connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {quoted}"))


def _patiently(url: URL, work: Callable[[Connection], None]) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return _run(url, work)
        except DBAPIError as exc:
            if exc.orig is None or sqlstate_of(exc.orig) != "55006":
                raise
            if time.monotonic() > until:
                exc.add_note('mode="copy" clones the database, which must have no other connections; close them first')
                raise
        time.sleep(0.05)


def _copy_mysql(url: URL) -> tuple[URL, Drop]:
    """Clone the database once, and fill the clone's tables from it each time."""
    if url not in _made:
        _made[url] = name = _new_name(url)
        _run(url, lambda connection: _clone_tables(connection, name))
        atexit.register(_drop_at_exit, url, f"DROP DATABASE {name}")
    name = _made[url]
    _run(url, lambda connection: _fill_tables(connection, name))
    return url.set(database=name), lambda: None


def _clone_tables(connection: Connection, name: str) -> None:
    source = connection.exec_driver_sql("SELECT database()").scalar_one()
    definitions = [
        connection.exec_driver_sql(f"SHOW CREATE TABLE {_tick(table)}").one()[1] for table in _tables(connection)
    ]
    connection.exec_driver_sql(f"CREATE DATABASE {name}")
    connection.exec_driver_sql("SET foreign_key_checks = 0")
    connection.exec_driver_sql(f"USE {name}")
    for definition in definitions:
        connection.exec_driver_sql(definition.replace("%", "%%"))
    connection.exec_driver_sql(f"USE {_tick(source)}")


def _fill_tables(connection: Connection, name: str) -> None:
    columns = text(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = database() "
        "AND table_name = :table AND extra NOT LIKE '%GENERATED%'"
    )
    connection.exec_driver_sql("SET foreign_key_checks = 0")
    for table in _tables(connection):
        named = ", ".join(map(_tick, connection.execute(columns, {"table": table}).scalars()))
        copied = f"{name}.{_tick(table)}"
        connection.exec_driver_sql(f"DELETE FROM {copied}")  # noqa: S608  # quoted
        connection.exec_driver_sql(f"INSERT INTO {copied} ({named}) SELECT {named} FROM {_tick(table)}")  # noqa: S608  # as above


def _tables(connection: Connection) -> list[str]:
    query = (
        "SELECT table_name FROM information_schema.tables WHERE table_schema = database() AND table_type = 'BASE TABLE'"
    )
    return list(connection.exec_driver_sql(query).scalars())


def _tick(name: str) -> str:
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"


def _new_name(url: URL) -> str:
    start = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in str(url.database).lower())
    return f"asgi_sqla_{start[:30]}_{_process}_{next(_numbers)}"


def _statement(statement: str) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    return work


def _drop_at_exit(url: URL, statement: str) -> None:
    with contextlib.suppress(DBAPIError, OSError):  # the server may already have stopped
        _run(url, _statement(statement))


def _run(url: URL, work: Callable[[Connection], None]) -> None:
    """Do ``work`` in autocommit, outside the database on PostgreSQL, with any installed driver."""
    beside = url
    if url.get_backend_name() == "postgresql":
        beside = url.set(database="template1" if url.database == "postgres" else "postgres")
    engines = Engines(beside, Recipe({"poolclass": NullPool, "isolation_level": "AUTOCOMMIT"}))
    try:
        engine = engines.sync()
    except MissingDriverError:
        _run_async(engines, work)
        return
    with engine.connect() as connection:
        work(connection)


def _run_async(engines: Engines, work: Callable[[Connection], None]) -> None:
    """Do ``work`` on a new event loop in a new thread, because a loop may be running in this one."""
    failures: list[BaseException] = []

    async def main() -> None:
        async with engines.asynchronous().connect() as connection:
            await connection.run_sync(work)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as exc:
            failures.append(exc)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


_COPIERS: dict[str, Callable[[URL], tuple[URL, Drop]]] = {
    "sqlite": _copy_sqlite,
    "postgresql": _copy_postgresql,
    "mysql": _copy_mysql,
    "mariadb": _copy_mysql,
}
