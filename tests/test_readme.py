"""The READMEs: every block of Python in them runs, in order, as a newcomer would run it; and the main one's form."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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
FOLDERS = ["asgi_sqla/engine", "asgi_sqla/models", "asgi_sqla/migrations", "asgi_sqla/testing"]
"""Beside what they describe. tests/matrix has one, too, whose blocks it runs: only it installs their packages."""
SECTIONS = [
    ("Install", "What commits", "Errors", "Sync and async", "After the commit", "Streams and sockets"),
    ("Scopes and workers", "Retries", "Reading only", "Several databases", "Your framework"),
    ("Beside other middleware and libraries", "Your tests", "Models", "Migrations", "Settings", "Command line"),
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
    (tmp_path / "README.rst").write_text((TOP / folder / "README.rst").read_text())
    document = Sybil(parsers=[PythonCodeBlockParser()], path=str(tmp_path)).parse(tmp_path / "README.rst")
    examples = list(document.examples())
    assert len(examples) > 2
    for example in examples:
        example.evaluate()


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


def test_every_message_is_quoted_as_it_is() -> None:
    """A message that changes fails this test until the README shows the new one."""
    _, _, told = README.read_text().partition("\nWhen something goes wrong\n")
    terms = re.findall(r"^``(\w+)``.*: (\".*)$", told.partition("\nWhat it does not do\n")[0], re.MULTILINE)
    ours = [term for term in terms if term[0] in vars(errors) or term[0] == "PendingRollbackError"]
    quoted = [part for _, quotes in ours for quote in re.findall(r'"(.*?)"', quotes) for part in quote.split("...")]
    said = " ".join(text for path in (TOP / "asgi_sqla").rglob("*.py") for text in texts(ast.parse(path.read_text())))
    assert len(ours) >= 9
    assert [part for part in quoted if part.strip() not in said] == []


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield every string of a module, an f-string with ``{}`` for what is filled in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_form() -> None:
    """Its length, its parts and their order, and a table of contents after the first screen."""
    lines = README.read_text().splitlines()
    found = [lines[number - 1] for number, line in enumerate(lines) if re.fullmatch("-{3,}", line)]
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= MAX_COLUMNS
    assert found == [name for part in SECTIONS for name in part]
    assert lines.index(".. contents::") < lines.index("Install")


@pytest.mark.parametrize("folder", [".", *FOLDERS, "benchmarks", "tests/matrix"])
def test_every_sentence_can_be_read_at_once(folder: str) -> None:
    """None of a paragraph has more words than one can hold, and no table is cut by the page of an index."""
    text = (TOP / folder / "README.rst").read_text()
    document = publish_doctree(text, settings_overrides={"report_level": 5, "file_insertion_enabled": False})
    long = [one for each in document.findall(paragraph) for one in sentences(each) if len(one.split()) > MAX_WORDS]
    wide = [line for line in text.splitlines() if re.fullmatch(r"=+( +=+)+", line) and len(line) > MAX_TABLE]
    assert (long, wide if folder == "." else []) == ([], [])


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


def test_the_first_program_is_whole() -> None:
    """It parses as a file of its own, and needs nothing but what the line under "Install" installs."""
    block = re.search(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", README.read_text(), re.MULTILINE)
    assert block is not None
    statements = ast.parse(re.sub("^    ", "", block[1], flags=re.MULTILINE)).body
    modules = {str(one.module).partition(".")[0] for one in statements if isinstance(one, ast.ImportFrom)}
    assert modules == {"asgi_sqla", "fastapi", "sqlalchemy"}
