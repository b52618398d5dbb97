"""The README: every block of Python in it runs, in order, as a newcomer would run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.rest import PythonCodeBlockParser

import asgi_sqla

README = Path(__file__).parent.parent / "README.rst"
ELSEWHERE = re.compile(r"^(With your framework|In your worker)\n-+\n.*?(?=^\S[^\n]*\n---+\n)", re.MULTILINE | re.DOTALL)
"""The sections whose packages only the matrix installs, and whose blocks it runs."""


@pytest.mark.filterwarnings("ignore:Using .httpx. with")  # Starlette's test client prefers a newer one
@pytest.mark.usefixtures("global_db")
def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace and an empty folder, as they follow each other."""
    monkeypatch.chdir(tmp_path)
    text = README.read_text()
    (tmp_path / "README.rst").write_text(ELSEWHERE.sub("", text))
    document = Sybil(parsers=[PythonCodeBlockParser()], path=str(tmp_path)).parse(tmp_path / "README.rst")
    examples = list(document.examples())
    assert len(ELSEWHERE.findall(text)) == 2
    assert len(examples) > 20
    for example in examples:
        example.evaluate()


@pytest.mark.parametrize("name", asgi_sqla.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    """A name that is a promise is described."""
    reference = README.read_text().partition("\nReference\n")[2]
    assert re.search(rf"``{name}\b", reference)
