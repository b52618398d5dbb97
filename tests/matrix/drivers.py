"""Databases and drivers: the core suite, beside this folder, fills a table of its own.

``ASGI_SQLA_TEST_BACKENDS`` says on which databases the suite runs. The matrix runs those tests that take a database.
The other tests know no driver, and the default session runs them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.databases import MARIADB_DRIVERS
from support.services import mariadb_url, missing

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
        elsewhere = [item for item in core if backend_of(item) not in DRIVERS or item.path.stem in ELSEWHERE]
        for item in core:
            if item not in elsewhere:
                suite = item.path.stem.removeprefix("test_")
                item.add_marker(pytest.mark.cell("Drivers", suite, DRIVERS[str(backend_of(item))].name))
        items[:] = [item for item in items if item not in elsewhere]
        config.hook.pytest_deselected(items=elsewhere)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip a test of the core suite whose driver or server is missing; in CI, fail it."""
        if item.path.parent == CORE:
            check_parts(str(backend_of(item)))


def backend_of(item: Any) -> str | None:
    """Return the name of the database that a test takes."""
    return item.callspec.params.get("backend") if hasattr(item, "callspec") else None


def check_parts(backend: str) -> None:
    """Skip missing parts; in CI, fail."""
    driver = DRIVERS[backend]
    if importlib.util.find_spec(driver.module) is None:
        if driver.no_module is not None:
            not_applicable(driver.no_module)
        missing(f"{driver.module} is not installed; the nox session matrix has it")
    if backend in MARIADB_DRIVERS and mariadb_url() is None:
        missing("no MariaDB: set ASGI_SQLA_TEST_MARIADB_URL, or start one on 127.0.0.1:3306")
