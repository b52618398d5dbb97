"""One case for each driver: the backend and the kind of session that use it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import psycopg
import pytest

from support.databases import ASKED_FOR

EACH = {
    "sqlite3": ("sqlite", "sync"),
    "aiosqlite": ("sqlite", "async"),
    "asyncpg": ("asyncpg", "async"),
    "psycopg": ("psycopg", "sync"),
    "psycopg async": ("psycopg", "async"),
    "psycopg2": ("psycopg2", "sync"),
    "pymysql": ("pymysql", "sync"),
    "asyncmy": ("asyncmy", "async"),
    "aiomysql": ("aiomysql", "async"),
    "mysqlclient": ("mysqldb", "sync"),
}
"""Every driver that reports its transaction, and mysqlclient, which does not."""
SQLITE = ("sqlite3", "aiosqlite")
POSTGRESQL = ("asyncpg", "psycopg", "psycopg async", "psycopg2")
MARIADB = ("pymysql", "asyncmy", "aiomysql", "mysqlclient")
TELLING = tuple(name for name in EACH if name != "mysqlclient")
"""Those that say whether a transaction is open."""
PSYCOPG_TELLS: bool = tuple(int(part) for part in psycopg.__version__.split(".")[:3]) >= (3, 2, 4)
"""Whether psycopg passes on the words with which a server ends a session; without them a COMMIT is in doubt."""

_MODULES = {"aiomysql": "aiomysql", "asyncmy": "asyncmy", "mysqlclient": "MySQLdb", "pymysql": "pymysql"}
"""The drivers that the tests do not install everywhere."""


def case(driver: str, *more: Any) -> Any:
    """Return a parameter of a backend, a kind of session and ``more``; it is skipped if the driver is missing."""
    missing = driver in _MODULES and find_spec(_MODULES[driver]) is None
    marks = [pytest.mark.skip(reason=f"the driver {driver} is not installed")] if missing else []
    named = "-".join([driver, *(getattr(one, "__name__", str(one)) for one in more)]).replace(" ", "_")
    return pytest.param(*EACH[driver], *more, id=named, marks=marks)


def on_drivers(*drivers: str) -> pytest.MarkDecorator:
    """Run a test with each of ``drivers``, or only with those of the requested backends."""
    asked = [name for name in drivers if ASKED_FOR is None or EACH[name][0] in ASKED_FOR.split(",")]
    return pytest.mark.parametrize(("backend", "kind"), [case(name) for name in asked], indirect=["backend"])
