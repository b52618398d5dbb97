"""The READMEs: every block of Python in them runs, in order, as a newcomer would run it; and the main one's form."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from docutils.nodes import Node, paragraph, section, system_message, title
from sybil import Sybil
from sybil.parsers.rest import PythonCodeBlockParser

import asgi_sqla
from asgi_sqla import errors

TOP = Path(__file__).parent.parent
README = TOP / "README.rst"
_NAMES = ("asgi", "engine", "health", "health/live.rst", "models", "migrations", "observe", "telemetry", "testing")
FOLDERS = [f"asgi_sqla/{name}" for name in _NAMES]
"""Beside what they describe. tests/matrix and tests/neighbours run their own: only they have their packages."""
SECTIONS = [
    ("Install", "What commits", "Errors", "Sync and async", "After the commit", "Streams and sockets"),
    ("Scopes and workers", "Retries", "Reading only", "Several databases", "Your framework", "Beside other middleware"),
    ("With other libraries", "Your tests", "Models", "Migrations", "Settings", "Command line"),
    ("Coming from", "When something goes wrong", "What it does not do", "Reference", "Performance"),
    ("Compatibility", "Contributing"),
]
MAX_LINES, MAX_COLUMNS, MAX_TABLE, MAX_WORDS = 900, 120, 90, 35
"""Lines of the main README, columns of any line and of a table, words of a sentence."""


@pytest.mark.filterwarnings("ignore:Using .httpx. with")  # Starlette's test client prefers a newer one
@pytest.mark.filterwarnings("ignore:duplicate base class")  # each README's first block is a module of its own
@pytest.mark.usefixtures("global_db")
@pytest.mark.parametrize("folder", [".", *FOLDERS])
def test_every_block_runs(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace and an empty folder, as they follow each other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.rst").write_text(page_of(folder).read_text())
    document = Sybil(parsers=[PythonCodeBlockParser()], path=str(tmp_path)).parse(tmp_path / "README.rst")
    examples = list(document.examples())
    assert len(examples) > 1
    for example in examples:
        example.evaluate()


def page_of(folder: str) -> Path:
    """Return the page of a folder, or the one that is named."""
    return TOP / folder if folder.endswith(".rst") else TOP / folder / "README.rst"


@pytest.mark.parametrize("name", asgi_sqla.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    """A name that is a promise is described, an error or warning where it says what to write."""
    _, _, told = README.read_text().partition("\nWhen something goes wrong\n")
    assert re.search(rf"``{name}\b", told)


@pytest.mark.parametrize("name", [name for name, value in vars(errors).items() if isinstance(value, type)])
def test_every_error_says_what_to_write(name: str) -> None:
    """It stands where a reader looks who has just met it."""
    _, _, told = README.read_text().partition("\nWhen something goes wrong\n")
    assert f"``{name}``" in told.partition("\nWhat it does not do\n")[0]


def test_the_form() -> None:
    """Its length, its parts and their order, and a table of contents after the first screen."""
    lines = README.read_text().splitlines()
    found = [lines[number - 1] for number, line in enumerate(lines) if re.fullmatch("-{3,}", line)]
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= MAX_COLUMNS
    assert found == [name for part in SECTIONS for name in part]
    assert lines.index(".. contents::") < lines.index("Install")


@pytest.mark.parametrize("folder", [".", *FOLDERS, "benchmarks", "tests/matrix", "tests/neighbours"])
def test_every_sentence_can_be_read_at_once(folder: str) -> None:
    """None of a paragraph has more words than one can hold, and no table is cut by the page of an index."""
    text = page_of(folder).read_text()
    document = publish_doctree(text, settings_overrides={"report_level": 5, "file_insertion_enabled": False})
    long = [one for each in document.findall(paragraph) for one in sentences(each) if len(one.split()) > MAX_WORDS]
    wide = [line for line in text.splitlines() if re.fullmatch(r"=+( +=+)+", line) and len(line) > MAX_TABLE]
    assert (long, wide if folder == "." else []) == ([], [])


@pytest.mark.parametrize("page", sorted(path.name for path in (TOP / "tests/neighbours").glob("[a-z]*.rst")))
def test_every_sentence_of_a_page_beside_a_readme_can_be_read_at_once(page: str) -> None:
    """The matrix runs its blocks; its lines are as short as those of a README."""
    text = (TOP / "tests/neighbours" / page).read_text()
    document = publish_doctree(text, settings_overrides={"report_level": 2, "halt_level": 2})
    long = [one for each in document.findall(paragraph) for one in sentences(each) if len(one.split()) > MAX_WORDS]
    assert (long, [line for line in text.splitlines() if len(line) > MAX_COLUMNS]) == ([], [])


def sentences(each: Node) -> list[str]:
    """Return the sentences of a paragraph."""
    return re.split(r"(?<=[.!?])\s+", each.astext())


def test_every_reference_leads_somewhere() -> None:
    """docutils, by which the index renders the page, has nothing to say of it."""
    document = publish_doctree(README.read_text(), settings_overrides={"report_level": 5, "raw_enabled": False})
    problems = [each.astext() for each in document.findall() if isinstance(each, system_message)]
    headings = [each.next_node(title) for each in document.findall(section)]
    assert problems == []
    assert len(headings) >= sum(map(len, SECTIONS))


def test_what_is_said_to_be_tested_is_tested() -> None:
    """The matrix has each framework, server and worker that is named, and the neighbours each library."""
    text, matrix = " ".join(README.read_text().split()), TOP / "tests" / "matrix"
    applications = {path.stem for path in (matrix / "applications").glob("*.py")}
    workers = {path.stem for path in (matrix / "jobs").glob("on_*.py")}
    servers = (matrix / "sites.py").read_text()
    libraries = (TOP / "tests" / "neighbours" / "README.rst").read_text().casefold()

    frameworks = named(r"Use it with (.+?), if you need", text) | named(
        r"\(``get_asgi_application\(\)``\), (.+?), your", text
    )
    assert frameworks <= applications
    assert {f"on_{name}" for name in named(r"(taskiq, [\w, ]+) are tested\.", text)} == workers - {"on_asyncio"}
    assert {name for name in named(r"(uvicorn, .+?) keep every promise", text) if f'("{name}' not in servers} <= {
        "uvicorn"
    }
    neighbours = named(r"has a tested block for (SQLModel.+?)\. MCP", text)
    assert [name for name in neighbours if f"\n{name}\n" not in libraries] == []
    assert (len(frameworks), len(neighbours)) == (8, 16)


def named(pattern: str, text: str) -> set[str]:
    """Return the names in an enumeration, in small letters, without what is said of them in parentheses."""
    found = re.search(pattern, text)
    assert found is not None, pattern
    return {
        name.strip().casefold() for name in re.split(r",| and | or ", re.sub(r" \(.+?\)", "", found[1])) if name.strip()
    }


def test_the_first_program_is_whole() -> None:
    """It parses as a file of its own, and needs nothing but what the line under "Install" installs."""
    block = re.search(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", README.read_text(), re.MULTILINE)
    assert block is not None
    statements = ast.parse(re.sub("^    ", "", block[1], flags=re.MULTILINE)).body
    modules = {str(one.module).partition(".")[0] for one in statements if isinstance(one, ast.ImportFrom)}
    assert modules == {"asgi_sqla", "fastapi", "sqlalchemy"}
