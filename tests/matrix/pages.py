"""Runs the blocks of a page in ``tests/neighbours``, as a newcomer would: in order, in one namespace."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from sybil import Sybil
from sybil.parsers.rest import PythonCodeBlockParser

PAGES = Path(__file__).parents[1] / "neighbours"


def run_page(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run every block of a page in the empty ``folder``; return how many there were."""
    monkeypatch.chdir(folder)
    (folder / name).write_text((PAGES / name).read_text())
    module = ModuleType("page")  # strawberry looks it up, for the names in annotations
    monkeypatch.setitem(sys.modules, module.__name__, module)
    document = Sybil(parsers=[PythonCodeBlockParser()], path=str(folder)).parse(folder / name)
    document.namespace = vars(module)
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)
