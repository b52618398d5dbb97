"""The report itself: a small run in a separate process, and what it prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import pytest
from matrix.report import not_applicable

@pytest.mark.parametrize("row", ["write", "read"])
@pytest.mark.parametrize("column", ["one", "two", "three"])
@pytest.mark.cell("Table", "{row}", "{column}")
def test_cells(row, column):
    if column == "two":
        not_applicable("two is no one")
    assert (row, column) != ("read", "three")

@pytest.mark.cell("Other", "alone", "one")
def test_alone():
    pytest.skip("nothing here")
"""


def run_matrix(folder: Path, *arguments: str, **environment: str) -> list[str]:
    """Run the module above under the plug-in, and return the lines it printed."""
    (folder / "test_module.py").write_text(MODULE)
    (folder / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "CI"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "--rootdir", str(folder)]
    done = subprocess.run(
        [*command, *arguments, str(folder)],
        env={**inherited, **environment, "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("arguments", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_the_matrix_is_printed(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Every cell has its word and every reason one footnote, on one process and on several."""
    lines = run_matrix(tmp_path, *arguments)

    table = [
        "Table  one     two      three",
        "-----  ------  -------  ------",
        "write  passed  n/a [1]  passed",
        "read   passed  n/a [1]  FAILED",
    ]
    assert [line for line in lines if line in table] == table
    assert "alone  skipped [2]" in lines
    assert "[1] two is no one" in lines
    assert "[2] nothing here" in lines


def test_a_skip_fails_where_ci_is_set(tmp_path: Path) -> None:
    """A missing part is a failure in CI, and a cell that does not apply is not."""
    lines = run_matrix(tmp_path, CI="1")

    assert "alone  FAILED" in lines
    assert "write  passed  n/a [1]  passed" in lines
