"""Databases and drivers: the core suite, beside this folder, fills a table of its own.

``ASGI_SQLA_TEST_BACKENDS`` says on which databases the suite runs. The matrix runs those tests that take a database.
The other tests know no driver, and the default session runs them.

Of each test and driver a third of the combinations runs, among them each value of each parameter. A test of the library
rather than of a driver runs with some of the drivers. The default session runs all of it with drivers of its own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.databases import MARIADB_DRIVERS
from support.services import mariadb_url, missing
from support.shares import Case, parameters, share

from matrix.report import not_applicable

CORE = Path(__file__).parents[1]
ELSEWHERE = (
    (
        "test_fastapi",
        "test_plugin",
        "test_properties",
        "test_fuzz",
        "test_fuzz_found",
        "test_cancellation",
        "test_threads",
    )
    + ("test_interrupted", "test_late_start", "test_retry_fences", "test_handshake", "test_failed_flush")
    + ("test_discarded", "test_outcome", "test_dark", "test_streams", "test_kept_alive", "test_drivers", "test_seams")
)
"""Long tests of other subjects, or with their own drivers; the default session runs them."""
LIBRARY = (
    *("begin_hooks", "callback_fates", "callbacks", "engines", "http", "observe", "parts", "parts_fastapi", "ready"),
    *("scope", "telemetry", "websocket"),
)
"""Tests of what the library does with any driver."""
PART = 3
"""Of so many combinations of a test and a driver one runs."""
PREFERRED = "mysqlclient" if importlib.util.find_spec("MySQLdb") else "pymysql"
"""What serves sync sessions where the URL names the driver of the async ones."""
NO_MYSQLCLIENT = "mysqlclient is built when it is installed, which needs the headers of the client library."


class Driver(NamedTuple):
    """A pair of drivers, one for each kind of session, and the module of the tested one."""

    name: str
    module: str
    no_module: str | None = None
    """Why the module may be missing."""


DRIVERS = {
    "sqlite": Driver("SQLite: sqlite3, aiosqlite", "aiosqlite"),
    "asyncpg": Driver("PostgreSQL: psycopg, asyncpg", "asyncpg"),
    "psycopg": Driver("PostgreSQL: psycopg, psycopg", "psycopg"),
    "psycopg2": Driver("PostgreSQL: psycopg2, asyncpg", "psycopg2"),
    "pymysql": Driver("MariaDB: pymysql, asyncmy", "pymysql"),
    "mysqldb": Driver("MariaDB: mysqlclient, asyncmy", "MySQLdb", NO_MYSQLCLIENT),
    "aiomysql": Driver(f"MariaDB: {PREFERRED}, aiomysql", "aiomysql"),
}
"""By what the tests call them."""


class DriversPlugin:
    """Chooses tests of the core suite, and gives each its cell."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep the matrix itself, and tests that take a database."""
        core = [item for item in items if item.path.parent == CORE]
        here = [item for item in core if backend_of(item) in DRIVERS and item.path.stem not in ELSEWHERE]
        taken = share([case_of(item) for item in here], 1, PART)
        here = [item for item in here if item.nodeid in taken]
        for item in here:
            suite = item.path.stem.removeprefix("test_")
            item.add_marker(pytest.mark.cell("Drivers", suite, DRIVERS[str(backend_of(item))].name))
        elsewhere = {*core} - {*here}
        items[:] = [item for item in items if item not in elsewhere]
        config.hook.pytest_deselected(items=list(elsewhere))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip a test of the core suite whose driver or server is missing; in CI, fail it."""
        if item.path.parent == CORE:
            check_parts(str(backend_of(item)))


def backend_of(item: Any) -> str | None:
    """Return the name of the database that a test takes."""
    return parameters(item).get("backend")


def case_of(item: pytest.Item) -> Case:
    """Return a test and its driver, or a test of the library, as one that meets each value of each parameter."""
    ours = item.path.stem.removeprefix("test_") in LIBRARY
    met = [f"{name}={value!r}" for name, value in parameters(item).items() if not (ours and name == "backend")]
    return Case(f"{item.nodeid.partition('[')[0]} {'' if ours else backend_of(item)}", item.nodeid, met)


def check_parts(backend: str) -> None:
    """Skip missing parts; in CI, fail."""
    driver = DRIVERS[backend]
    if importlib.util.find_spec(driver.module) is None:
        if driver.no_module is not None:
            not_applicable(driver.no_module)
        missing(f"{driver.module} is not installed; the nox session matrix has it")
    if backend in MARIADB_DRIVERS and mariadb_url() is None:
        missing("no MariaDB: set ASGI_SQLA_TEST_MARIADB_URL, or start one on 127.0.0.1:3306")
