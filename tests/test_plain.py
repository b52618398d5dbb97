"""With ``ASGI_SQLA_TEST_PLAIN`` set, each ``Database`` has ``pipelining=False``, of whatever process it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.changed import PLAINLY, python_path
from support.databases import PLAIN

from asgi_sqla import Database

URL = "postgresql+asyncpg://nobody@nowhere/nothing"  # an engine connects to nothing before it is used

PROGRAM = f"""
import asyncio, inspect, json
from asgi_sqla import Database
from asgi_sqla.engine import options
async def main():
    return [type(Database({URL!r}).async_engine.dialect.loaded_dbapi).__module__ for _ in range(2)]
print(json.dumps([asyncio.run(main()), "def checked(" in inspect.getsource(options)]))
"""

OURS, PLAINS = "asgi_sqla.engine.asyncpg", "sqlalchemy.dialects.postgresql.asyncpg"


def started(**environment: str) -> Any:
    """Start a Python, and return whose adapters two engines of its have, and whether it knows the room's source."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    env = {**os.environ, **environment}
    return json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


async def test_this_process_is() -> None:
    """``tests/conftest.py`` has seen to it."""
    adapter: Any = Database(URL).async_engine.dialect
    assert type(adapter.loaded_dbapi).__module__ == (PLAINS if PLAIN else OURS)


def test_a_process_that_a_test_starts_is() -> None:
    """It inherits the search path."""
    assert started() == [2 * [PLAINS if PLAIN else OURS], True]


def test_a_search_path_of_its_own_keeps_it(tmp_path: Path) -> None:
    """Nobody who starts a process with folders of its own has to know of this one."""
    assert started(PYTHONPATH=python_path(tmp_path)) == [2 * [PLAINS if PLAIN else OURS], True]


def test_the_folder_makes_it_plain() -> None:
    """This does not depend on the variable, so that it is tested in every run."""
    assert started(PYTHONPATH=str(PLAINLY)) == [2 * [PLAINS], True]


def test_the_search_path_names_each_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of xdist extend what the process that started them has extended."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), "", str(PLAINLY)]))
    found = python_path(tmp_path).split(os.pathsep)
    assert sorted(found) == sorted([str(tmp_path), str(PLAINLY)])
    monkeypatch.delenv("PYTHONPATH")
    assert python_path() == (str(PLAINLY) if PLAIN else "")
