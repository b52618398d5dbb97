"""The repository's instructions name what exists, and its files have the form that they say."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import asgi_sqla

ROOT = Path(__file__).parent.parent
HOUSE = Path(asgi_sqla.__file__).parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.rst").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOP = {
    *(".editorconfig", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.rst", "CONTRIBUTING.rst", "LICENSE"),
    *("README.rst", "noxfile.py", "pyproject.toml", ".ci", "asgi_sqla", "benchmarks", "tests"),
}
"""What may lie at the top."""
MAX_WORDS = 35
"""In a sentence."""


def sessions() -> set[str]:
    """Return the name of every session of nox."""
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return {one.name for one in functions if any("nox.session" in ast.unparse(each) for each in one.decorator_list)}


def section(title: str) -> str:
    """Return the text below a heading of CONTRIBUTING.rst."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\S[^\n]*\n---+\n|\Z)", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def files() -> Iterator[Path]:
    """Yield every file that is written by hand."""
    folders = (ROOT / name for name in ("asgi_sqla", "benchmarks", "tests"))
    written = (path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts)
    for path in (*ROOT.iterdir(), *written):
        if path.suffix in {".ini", ".py", ".rst", ".toml", ".yaml"} or path.name == ".editorconfig":
            yield path


def test_nothing_else_is_committed() -> None:
    """A file that a tool has left at the top must not be published."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is not a checkout, or git is not installed")
    tracked = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name.partition("/")[0] for name in tracked.split("\0") if name} == TOP


def test_every_session_of_nox_is_described() -> None:
    """CONTRIBUTING.rst has a line for each session, and for no other."""
    described = re.findall(r"^- ``(\w+)``: ", section("Run tests"), re.MULTILINE)
    assert sorted(described) == sorted(sessions())


def test_the_hooks_run_sessions_of_ci() -> None:
    """Everything that a commit or a push refuses is refused by CI too."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"^ +entry: nox .*--session (\w+)$", hooks, re.MULTILINE) == ["lint", "types"]
    assert {"lint", "types"} <= sessions()


def test_what_the_instructions_name_is_there() -> None:
    """The files, the rooms and the environment variables exist."""
    paths = re.findall(r"\b(?:tests|unit)/[\w/]+(?:\.py|/)", CONTRIBUTING)
    assert [path for path in paths if not ((ROOT / path).exists() or (HOUSE / path).exists())] == []
    rooms = re.findall(r"``([a-z]+(?:\.[a-z]+)?)``", section("How a request travels through the rooms"))
    assert len(rooms) > 10
    assert [room for room in rooms if not (HOUSE / f"{room.replace('.', '/')}.py").is_file()] == []
    support = "".join(path.read_text() for path in (ROOT / "tests" / "support").glob("*.py"))
    assert [name for name in re.findall(r"ASGI_SQLA_\w+", CONTRIBUTING) if name not in support] == []


def test_every_sentence_of_the_instructions_is_short() -> None:
    """The limit is that of the README."""
    prose = re.sub(r"^\.\. code-block::.*?(?=^\S)", "", CONTRIBUTING, flags=re.MULTILINE | re.DOTALL)
    sentences = re.split(r"[.:?]\s|\n\n|^- |^\d+\. ", prose, flags=re.MULTILINE)
    assert [one for one in sentences if len(one.split()) > MAX_WORDS] == []


def test_the_changelog_begins_with_the_version() -> None:
    """This holds before and after the release."""
    heading = re.search(r"^(\S+) \(.+\)\n---", (ROOT / "CHANGELOG.rst").read_text(), re.MULTILINE)
    assert heading is not None
    assert heading[1] == PROJECT["project"]["version"]


def test_editors_are_told_what_the_files_do() -> None:
    """The files have one kind of line end, a final newline, no tabs, and the width that ruff allows."""
    told = configparser.ConfigParser()
    told.read_string("[root]\n" + (ROOT / ".editorconfig").read_text())
    assert told["*.{py,toml}"]["max_line_length"] == str(PROJECT["tool"]["ruff"]["line-length"])
    odd = re.compile(rb"\r|\t|[ ]\n|(?<!\n)\Z|\n\n\Z")
    assert [path for path in files() if (written := path.read_bytes()) and odd.search(written)] == []


@pytest.mark.skipif("site-packages" not in HOUSE.parts, reason="the package was not installed from its wheel")
def test_the_wheel_carries_nothing_to_read_in_the_source() -> None:
    """The README of a folder is for readers of the sdist or the repository."""
    assert list(HOUSE.rglob("*.rst")) == []
    assert (HOUSE / "py.typed").is_file()


README = " ".join((ROOT / "README.rst").read_text().split())
PYTHONS = [one.rpartition(" ")[2] for one in PROJECT["project"]["classifiers"] if one[-3:].startswith(".1")]


def needed(*requirements: str) -> dict[str, str]:
    """Return the oldest version that each requirement allows, by the name of the package."""
    found = (re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", one) for one in requirements)
    return {one[1]: one[2] for one in found if one}


def test_the_readme_names_the_versions_that_are_allowed() -> None:
    """CI runs the oldest of them, and every Python of the classifiers."""
    oldest = needed(*PROJECT["project"]["dependencies"])
    pythons = re.findall(r"CPython (3\.\d+), (3\.\d+) and (3\.\d+) on Linux", README)
    assert pythons == [tuple(PYTHONS)]
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"
    assert f"Python {PYTHONS[0]} or newer is needed." in README
    assert f"SQLAlchemy {oldest['sqlalchemy']} to " in README
    assert f"anyio from {oldest['anyio']} and asgiref from {oldest['asgiref']}." in README


def test_the_readme_says_what_the_extras_bring() -> None:
    """Those of a database bring drivers of both kinds."""
    extras = PROJECT["project"]["optional-dependencies"]
    told = README.partition("The extras install the drivers of both kinds: ")[2].partition(" Any other")[0]
    assert set(re.findall(r"``(\w+)``", told)) == {"sqlite", "postgresql", "mysql", "oracle", "mssql"}
    drivers = {"sqlite": ["aiosqlite"], "postgresql": ["asyncpg", "psycopg"], "mysql": ["asyncmy", "PyMySQL"]}
    for extra, names in drivers.items():
        assert {name.lower() for name in names} <= needed(*extras[extra]).keys()
        assert f"``{extra}`` ({' and '.join(names)}" in told
    rest = README.partition("The extras ``migrations``")[2].partition(".")[0]
    assert {"migrations", *re.findall(r"``(\w+)``", rest)} == extras.keys() - {*drivers, "oracle", "mssql", "demo"}
    assert [*needed(*extras["telemetry"])] == ["opentelemetry-api"]
