"""Runs ``suite.py`` with every test client and on every database, and checks the tables before and after."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from support.empty import KINDS, empty_database
from support.services import missing

HERE = Path(__file__).parent
CLIENTS = {"fastapi": "fastapi", "httpx": "fastapi", "litestar": "litestar", "quart": "quart"}
WITNESS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}

IDENTITY = {"sqlite": "INTEGER", "postgresql": "SERIAL", "mariadb": "INTEGER AUTO_INCREMENT"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.cell("Test clients", "{client}", "{kind}")
def test_the_suite_passes_and_leaves_the_tables_as_they_were(client: str, kind: str, tmp_path: Path) -> None:
    """It runs in random order, with four workers, and with warnings as errors."""
    for module in (CLIENTS[client], "pytest_randomly", "httpx"):
        if find_spec(module) is None:
            missing(f"{module} is not installed")
    with empty_database(kind, tmp_path) as url:
        witness = create_engine(url.replace(kind, WITNESS[kind], 1), poolclass=NullPool)
        with witness.begin() as connection:
            connection.execute(text(f"CREATE TABLE orders (id {IDENTITY[kind]} PRIMARY KEY, name VARCHAR(40) UNIQUE)"))
            connection.execute(text("INSERT INTO orders (name) VALUES ('before')"))
        ran = run_suite(client, url)
        with witness.connect() as connection:
            names = list(connection.execute(text("SELECT name FROM orders")).scalars())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (re.findall(r"(\d+) (\w+) in", ran.stdout), names) == ([("22", "passed")], ["before"])


def run_suite(client: str, url: str) -> subprocess.CompletedProcess[str]:
    """Run it in a separate pytest."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "ASGI_SQLA"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(HERE / "suite.ini"), str(HERE / "suite.py")],
        env={**inherited, "ASGI_SQLA_TEST_CLIENT": client, "ASGI_SQLA_TEST_URL": url},
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE,
    )
