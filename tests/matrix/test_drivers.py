"""Databases and drivers: the core suite, once for each driver, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import pytest
from support.databases import MARIADB_DRIVERS
from support.services import mariadb_url, missing

from matrix.report import not_applicable

TESTS = Path(__file__).parents[1]
ELSEWHERE = ("test_fastapi", "test_properties")
"""Long, and about something else than drivers; the default session runs them on three."""
SUITES = {
    path.stem.removeprefix("test_"): path
    for path in sorted(TESTS.glob("test_*.py"))
    if re.search(r"\bbackend: Backend\b", path.read_text()) and path.stem not in ELSEWHERE
}
"""The modules that have tests which take each database in turn."""


class Driver(NamedTuple):
    """What the tests call one pair of drivers, and the module of the one it is about."""

    backend: str
    module: str
    no_module: str | None = None
    """Why the module may be missing."""


MYSQLCLIENT = "mysqlclient is built when it is installed, which needs the headers of the client library."
DRIVERS = {
    "SQLite: sqlite3, aiosqlite": Driver("sqlite", "aiosqlite"),
    "PostgreSQL: psycopg, asyncpg": Driver("asyncpg", "asyncpg"),
    "PostgreSQL: psycopg for both": Driver("psycopg", "psycopg"),
    "PostgreSQL: psycopg2, asyncpg": Driver("psycopg2", "psycopg2"),
    "MariaDB: pymysql, asyncmy": Driver("pymysql", "asyncmy"),
    "MariaDB: mysqlclient, asyncmy": Driver("mysqldb", "MySQLdb", MYSQLCLIENT),
    "MariaDB: mysqlclient or pymysql, aiomysql": Driver("aiomysql", "aiomysql"),
}


class Outcomes(NamedTuple):
    """How the tests of one suite ended."""

    passed: int
    skipped: int
    failed: list[str]


@pytest.fixture(scope="session")
def outcomes_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Driver], dict[str, Outcomes]]:
    """Return what runs the suites on a driver, once."""
    done: dict[Driver, dict[str, Outcomes]] = {}

    def run(driver: Driver) -> dict[str, Outcomes]:
        if driver not in done:
            done[driver] = run_suites(driver, tmp_path_factory.mktemp("driver") / "report.xml")
        return done[driver]

    return run


def run_suites(driver: Driver, report: Path) -> dict[str, Outcomes]:
    """Run every suite on ``driver``; return how its tests ended."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "-k", driver.backend, f"--junitxml={report}", *map(str, SUITES.values())],
        env={**environment, "ASGI_SQLA_TEST_BACKENDS": driver.backend},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if not report.exists():
        pytest.fail(f"no report; pytest printed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}", pytrace=False)
    cases = list(ET.parse(report).iter("testcase"))
    return {suite: outcomes([case for case in cases if f"test_{suite}" in case_path(case)]) for suite in SUITES}


def case_path(case: ET.Element) -> list[str]:
    """Return the parts of the module's name that a test is in."""
    return case.get("classname", "").split(".")


def outcomes(cases: list[ET.Element]) -> Outcomes:
    """Return how ``cases`` ended."""
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return Outcomes(len(cases) - len(bad) - len(skipped), len(skipped), [told(case) for case in bad])


def told(case: ET.Element) -> str:
    """Return the name of a failed test, and the end of what it says."""
    why = case.find("failure") if case.find("failure") is not None else case.find("error")
    assert why is not None
    return f"{case.get('name')}:\n{(why.text or '')[-2000:]}"


def check_parts(driver: Driver) -> None:
    """Skip what is not there; in CI, fail."""
    if importlib.util.find_spec(driver.module) is None:
        if driver.no_module is not None:
            not_applicable(driver.no_module)
        missing(f"{driver.module} is not installed; the nox session matrix has it")
    if driver.backend in MARIADB_DRIVERS and mariadb_url() is None:
        missing("no MariaDB: set ASGI_SQLA_TEST_MARIADB_URL, or start one on 127.0.0.1:3306")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("driver", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in DRIVERS])
@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.cell("Drivers", "{driver}", "{suite}")
def test_the_core_suite_passes_on_every_driver(
    driver: str,
    suite: str,
    outcomes_of: Callable[[Driver], dict[str, Outcomes]],
    record_property: Callable[[str, object], None],
) -> None:
    """Every test of the suite that takes a database passes on this one."""
    check_parts(DRIVERS[driver])

    result = outcomes_of(DRIVERS[driver])[suite]

    assert result.failed == []
    assert result.passed > 0
    skipped = f", {result.skipped} n/a" if result.skipped else ""
    record_property("figure", f"{result.passed} passed{skipped}")
