"""The README: its table names every section, and every block is tested."""

from __future__ import annotations

import re
from pathlib import Path

from neighbours.shops import README, blocks

HERE = Path(__file__).parent


def test_the_table_names_every_library() -> None:
    """Each has a section with a block, and each block has a test that loads it."""
    named = re.findall(r"^`([^`]+)`_ ", README.read_text(), re.MULTILINE)
    loaded = {
        title
        for path in HERE.glob("test_*.py")
        for title in re.findall(r'\.(?:load|main)\("([^"]+)"', path.read_text())
    }
    assert ["With other libraries", *named] == list(blocks())
    assert loaded == set(named)
