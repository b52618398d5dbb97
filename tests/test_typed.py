"""A user's application, SQLModel included, checks with mypy and pyright in their strict modes.

The files in ``tests/typed`` use every public name. Their wrong uses are held by ``# type: ignore[code]``, which both
checkers report once they no longer object.
"""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import asgi_sqla
from asgi_sqla import Database, health, migrations, models, telemetry, testing

TYPED = Path(__file__).parent / "typed"


def run(module: str, *arguments: str) -> None:
    """Run a tool on the user's files, where only the installed package can be found, and expect no complaint."""
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed; the nox session types installs it")
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=TYPED, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, done.stdout + done.stderr)


@pytest.mark.timeout(300)
def test_mypy_agrees_in_strict_mode(tmp_path: Path) -> None:
    """It does so without any configuration of ours."""
    run("mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", ".")


@pytest.mark.timeout(300)
def test_pyright_agrees_in_strict_mode() -> None:
    """It reads the configuration beside the files."""
    run("pyright", "--project", ".", "--pythonpath", sys.executable)


def test_the_files_can_be_imported() -> None:
    """What type checkers agree with, Python accepts as well."""
    program = "import shop, with_sqlmodel, wrong"
    env = {**os.environ, "PYTHONPATH": str(TYPED)}
    ran = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_every_public_name_is_used() -> None:
    """A new name is used by the application before it is published."""
    public = {name for module in (asgi_sqla, health, migrations, models, telemetry, testing) for name in module.__all__}
    used = {
        alias.name
        for path in TYPED.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asgi_sqla")
        for alias in node.names
    }
    assert public - used == set()


def test_frameworks_that_inject_by_type_find_sqlalchemys() -> None:
    """They read it at run time from what a function returns, where a type variable would tell them nothing."""
    database = Database("sqlite://")
    found = [inspect.get_annotations(one, eval_str=True) for one in (database.get_session, database.get_async_session)]
    assert found == [{"return": Session}, {"return": AsyncSession}]
