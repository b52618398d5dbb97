"""The project of ``tests/layout``: a copy of it, used as its README says."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.changed import PLAINLY
from support.databases import PLAIN
from support.servers import PATIENCE, wait_until

LAYOUT = Path(__file__).parent / "layout"
README = (LAYOUT / "README.rst").read_text()
COMMANDS = re.findall(r"^    \$ (.+)$", README, re.MULTILINE)
LEFTOVERS = shutil.ignore_patterns("__pycache__", "*.db*")
AGAIN = "write tests/layout/project/migrations again, with the commands of its README, and format them"
TEA = {"person_id": 1, "item": "tea"}

IMPORT_EACH_FIRST = """
import importlib, os, sys
import fastapi, asgi_sqla.migrations, asgi_sqla.models, asgi_sqla.settings  # once, for all the children
failed = []
for module in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(module)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(module)
sys.exit(", ".join(failed) or 0)
"""


def tree() -> list[str]:
    """Return the files in the tree of the README, in its order."""
    files: list[str] = []
    above: list[str] = []
    for indent, name in re.findall(r"^    ( *)([\w.]+/?)$", README, re.MULTILINE):
        above[len(indent) // 4 :] = [name]
        files += [] if name.endswith("/") else ["".join(above)]
    return files


def dotted(path: str) -> str:
    """Return the name by which a module is imported."""
    return path.removeprefix("project/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {dotted(path): LAYOUT / path for path in tree() if path.startswith("project/shop/")}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of the project."""
    return shutil.copytree(LAYOUT / "project", tmp_path / "project", ignore=LEFTOVERS)


def shell(**variables: str) -> dict[str, str]:
    """Return a user's environment: without settings of pytest, nox or CI, and with our commands on the path."""
    theirs = ("ASGI_SQLA_", "DATABASE_", "MAIL_", "PYTEST_", "PYTHONPATH", "PYTHONSAFEPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if PLAIN:
        kept["PYTHONPATH"] = str(PLAINLY)
    return {**kept, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **variables}


def run(project: Path, command: str, *more: str) -> str:
    """Run a command of the README in the project, with the variable that the README exports; return its output."""
    assert command in COMMANDS
    done = subprocess.run(
        [*shlex.split(command), *more],
        cwd=project,
        env=shell(ASGI_SQLA_TARGET="shop.db:migrations"),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def served(project: Path) -> Iterator[httpx.Client]:
    """Serve the project as the README says, on a free port, and give a client of it."""
    command = "uvicorn shop.main:app"
    assert command in COMMANDS
    log = project / "log"
    with (
        log.open("w") as out,
        subprocess.Popen(
            [*shlex.split(command), "--port", "0"], cwd=project, env=shell(), stdout=out, stderr=out
        ) as server,
    ):
        try:
            assert wait_until(lambda: "running on" in log.read_text() or server.poll() is not None, 50)
            (url,) = re.findall(r"running on (http://\S+)", log.read_text())
            with httpx.Client(base_url=url, timeout=PATIENCE) as client:
                yield client
        finally:
            server.terminate()


def test_the_readme_names_every_file() -> None:
    """Its tree is that of the folder, and it can be read in a few minutes."""
    there = [path for path in (LAYOUT / "project").rglob("*") if path.is_file() and path.suffix != ".pyc"]

    assert sorted(tree()) == sorted(path.relative_to(LAYOUT).as_posix() for path in there)
    assert len(README.splitlines()) <= 80


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    """In the tree of the README no import goes down, so there is no circle; imports inside functions count."""
    names = list(MODULES)
    above = names[: names.index(module)]

    assert imported(module) <= set(above)


def imported(module: str) -> set[str]:
    """Return the modules of the shop that ``module`` names in an import."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{each.name}" for each in node.names)}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return found & set(MODULES)


def test_each_module_may_be_imported_first(project: Path) -> None:
    """Each is imported in an interpreter that has imported none of the others."""
    command = [sys.executable, "-c", IMPORT_EACH_FIRST, *MODULES]
    done = subprocess.run(command, cwd=project, env=shell(), capture_output=True, text=True, timeout=50)

    assert done.returncode == 0, done.stderr


def test_the_command_line_creates_the_database(project: Path) -> None:
    """The second time there is nothing to do."""
    said = [run(project, "asgi-sqla migrate") for _ in range(2)]

    assert said == ["Database created.\n", "Database up to date.\n"]


def test_the_migrations_are_what_the_commands_write(project: Path) -> None:
    """The revision is the same except for its number and its date, after a formatter."""
    before = (project / "migrations").rename(project / "before")
    run(project, "asgi-sqla init")
    run(project, 'asgi-sqla revision --autogenerate -m "Create people and orders."')

    for name in ("alembic.ini", "env.py", "script.py.mako"):
        assert (before / name).read_text() == (project / "migrations" / name).read_text(), AGAIN
    assert essence(before) == essence(project / "migrations"), AGAIN


def essence(migrations: Path) -> str:
    """Return the syntax tree of the only revision, without its number and its date."""
    (revision,) = (migrations / "versions").glob("*.py")
    source = revision.read_text().replace(revision.name.partition("_")[0], "number")
    return ast.dump(ast.parse(re.sub(r"(?m)^Create Date: .*$| +$", "", source)))


def test_it_serves_and_the_worker_ships(project: Path) -> None:
    """An order is committed when its client sees 201, and a worker in another process finds it."""
    with served(project) as client:
        person = client.post("/people", json={"email": "ann@example.org"})
        order = client.post("/orders", json=TEA)
        assert (person.json(), order.status_code) == ({"id": 1, "email": "ann@example.org"}, 201)
        assert client.get("/orders").json() == [order.json()] == [{**TEA, "id": 1, "shipped": False}]

        assert run(project, "python -m shop.worker") == "shipped: 1\n"
        assert client.get("/orders").json() == [{**TEA, "id": 1, "shipped": True}]

    assert (project / "log").read_text().count("mail from shop@example.org to ann@example.org") == 1


def test_its_errors_have_answers(project: Path) -> None:
    """Errors of sync and of async handlers are answered, and nothing of the refused work is kept."""
    with served(project) as client:
        twice = [client.post("/people", json={"email": "ann@example.org"}).status_code for _ in range(2)]
        nobody = client.get("/people/7")
        refused = client.post("/orders", json={**TEA, "person_id": 7})

        assert (twice, refused.status_code) == ([201, 409], 404)
        assert (nobody.status_code, nobody.json()) == (404, {"detail": "not found"})
        assert client.get("/orders").json() == []


def test_its_own_tests_pass(project: Path) -> None:
    """They use their own database, and do not create the one in ``.env``."""
    run(project, "python -m pytest", "-p", "no:cacheprovider")

    assert not (project / "data.db").exists()
