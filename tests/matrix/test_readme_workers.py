"""The blocks of the README's "Workers", in order, as they stand: nothing in them needs a broker to be up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.changed import python_path

README = Path(__file__).parent / "README.rst"
SECTION = re.compile(r"^Workers\n-+\n.*?(?=^\S[^\n]*\n---+\n|\Z)", re.MULTILINE | re.DOTALL)

BLOCK = re.compile(r"^\.\. code-block:: python\n\n((?:    [^\n]*\n|\n)+)", re.MULTILINE)


@pytest.mark.cell("README", "Workers", "runs")
def test_every_block_runs(tmp_path: Path) -> None:
    """One after the other in a module, for workers look up what they are given by its module's name."""
    section = SECTION.search(README.read_text())
    assert section is not None
    blocks = BLOCK.findall(section[0])
    assert len(blocks) >= 6
    (tmp_path / "jobs.py").write_text("\n".join(map(textwrap.dedent, blocks)))
    subprocess.run(
        [sys.executable, "-c", "import jobs"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": python_path(".")},
        check=True,
    )
