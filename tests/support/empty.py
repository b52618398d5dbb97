"""Databases without tables, for the tests of models and migrations that create their own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from support.databases import mariadb_connections, mariadb_kill, postgresql_url
from support.services import mariadb_url, missing

KINDS = ["sqlite", "postgresql", "mariadb"]

_numbers = itertools.count(1)


@contextmanager
def empty_database(kind: str, folder: Path) -> Iterator[str]:
    """Create a database of that kind, and yield its URL, without a driver if the server needs none."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / f'empty{next(_numbers)}.db'}"
        return
    url = _server(kind)
    name = f"asgi_sqla_empty_{os.getpid()}_{next(_numbers)}"
    admin = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield url.set(drivername=kind, database=name).render_as_string(hide_password=False)
    finally:
        _drop(admin.url.set(database=name), kind)


def _server(kind: str) -> URL:
    if kind == "postgresql":
        return make_url(postgresql_url()).set(drivername="postgresql+psycopg")
    url = mariadb_url()
    if url is None:
        missing("no MariaDB: set ASGI_SQLA_TEST_MARIADB_URL, or start one on 127.0.0.1:3306")
    return url.set(drivername="mariadb+pymysql")


def _drop(url: URL, kind: str) -> None:
    """Drop the database, even if it is in use."""
    force = ""
    if kind == "mariadb":
        witness = create_engine(url, poolclass=NullPool)
        for each in mariadb_connections(witness):
            mariadb_kill(witness, each)
    else:
        force = " WITH (FORCE)"
    admin = create_engine(_server(kind), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {url.database}{force}"))
