"""Prints the matrix: tables whose cells are tests, and footnotes for cells that do not apply.

A test names its cell with ``@pytest.mark.cell(table, row, column)``. The three are format strings over the test's
parameters, so ``@pytest.mark.cell("Servers", "{behaviour}", "{server.name}")`` on a parametrised test fills many cells.
Several tests may share a cell: it fails if one of them fails, and otherwise says how many have passed.

If a promise cannot be kept or means nothing, the test calls ``not_applicable(reason)``: the cell says so, and the
reason becomes a footnote. Any other skip is a part that is missing on this machine. It is printed, and it fails if the
environment variable ``CI`` is set.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Generator, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple, NoReturn

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling  # type: ignore[import-untyped]

MARK = "cell(table, row, column): where the outcome stands in the printed matrix"
NOT_APPLICABLE = "not applicable: "
SEVERITY = ("n/a", "passed", "skipped", "FAILED")
"""Of several outcomes in one cell, the last in this order is shown."""


def not_applicable(reason: str) -> NoReturn:
    """Say that this cell means nothing, and why, in one sentence for the footnote."""
    pytest.skip(NOT_APPLICABLE + reason)


class Cell(NamedTuple):
    """The place of a test."""

    table: str
    row: str
    column: str


class Outcome(NamedTuple):
    """The result of a test, and its reason."""

    word: str
    reason: str | None = None


def cell_of(item: pytest.Item) -> Cell | None:
    """Return the cell of ``item``, its format strings filled in."""
    mark = item.get_closest_marker("cell")
    if mark is None:
        return None
    parameters = getattr(item, "callspec").params if hasattr(item, "callspec") else {}  # noqa: B009  # of functions only
    table, row, column = (str(part).format(**parameters) for part in mark.args)
    return Cell(table, row, column)


def outcome_of(report: pytest.TestReport) -> Outcome | None:
    """Return what ``report`` says of its cell, or None if it says nothing yet."""
    if report.failed:
        return Outcome("FAILED")
    if report.skipped:
        assert isinstance(report.longrepr, tuple)
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith(NOT_APPLICABLE):
            return Outcome("n/a", reason.removeprefix(NOT_APPLICABLE))
        return Outcome("skipped", reason)
    return Outcome("passed") if report.when == "call" else None


class Matrix:
    """Collects the outcomes of a run, and lays them out."""

    def __init__(self) -> None:
        self.cells: dict[Cell, Outcome] = {}
        self._passed: Counter[Cell] = Counter()
        self._places: dict[Cell, int] = {}

    def add(self, cell: Cell, outcome: Outcome, place: int = 0) -> None:
        """Put ``outcome`` into ``cell``, unless a worse one is in it; ``place`` is that of its test."""
        self._passed[cell] += outcome.word == "passed"
        there = self.cells.get(cell)
        if there is None or SEVERITY.index(outcome.word) > SEVERITY.index(there.word):
            self.cells[cell] = outcome
        self._places[cell] = min(place, self._places.get(cell, place))

    def lines(self) -> Iterator[str]:
        """Yield the tables, in the order of their first test, and then the footnotes."""
        notes: dict[str, int] = {}
        self.cells = {cell: self.cells[cell] for cell in sorted(self.cells, key=self._places.__getitem__)}
        for table in dict.fromkeys(cell.table for cell in self.cells):
            yield from self._table(table, notes)
        for reason, number in notes.items():
            yield f"[{number}] {reason}"

    def _table(self, table: str, notes: dict[str, int]) -> Iterator[str]:
        of_table = [cell for cell in self.cells if cell.table == table]
        columns = list(dict.fromkeys(cell.column for cell in of_table))
        rows = dict.fromkeys(cell.row for cell in of_table)
        texts = [[row, *(self._text(Cell(table, row, column), notes) for column in columns)] for row in rows]
        heads = [list(line) for line in zip_longest([table], *map(str.split, columns), fillvalue="")]
        widths = [max(map(len, column)) for column in zip(*heads, *texts, strict=True)]
        rule = ["-" * width for width in widths]
        yield from ("  ".join(map(str.ljust, line, widths)).rstrip() for line in (*heads, rule, *texts))
        yield ""

    def _text(self, cell: Cell, notes: dict[str, int]) -> str:
        outcome = self.cells.get(cell)
        if outcome is None:
            return ""
        if outcome.word == "passed" and self._passed[cell] > 1:
            return f"{self._passed[cell]} passed"
        if outcome.reason is None:
            return outcome.word
        return f"{outcome.word} [{notes.setdefault(outcome.reason, len(notes) + 1)}]"


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist is not typed
    """Keeps together the tests that share the part of their id in angle brackets; pytest 9.2 loses xdist's own groups.

    The largest groups start first; every other test runs alone on a free worker.
    """

    def _split_scope(self, nodeid: str) -> str:
        shared = re.search("<.*>", nodeid)
        return shared[0] if shared else nodeid


def print_matrix(config: pytest.Config) -> None:
    """Have the matrix printed at the end of the run; once, whichever folders of tests are run."""
    if not config.pluginmanager.has_plugin("matrix"):
        config.addinivalue_line("markers", MARK)
        config.pluginmanager.register(MatrixPlugin(), "matrix")


class MatrixPlugin:
    """The hooks of the matrix; with xdist, the workers mark reports and the controller prints."""

    def __init__(self) -> None:
        self.matrix = Matrix()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Let every report of a test carry its cell."""
        for place, item in enumerate(items):
            cell = cell_of(item)
            if cell is not None:
                item.user_properties.append(("cell", (place, *cell)))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadScopeScheduling:
        """Let the tests of one site run on one worker."""
        return Scheduling(config, log)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Fail a skipped test where nothing may be missing."""
        report = yield
        if "CI" in os.environ and report.skipped and (outcome := outcome_of(report)) and outcome.word == "skipped":
            report.outcome = "failed"
            report.longrepr = f"skipped where CI is set: {outcome.reason}"
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record one outcome."""
        cell: Any = dict(report.user_properties).get("cell")
        outcome = outcome_of(report)
        if cell is not None and outcome is not None:
            self.matrix.add(Cell(*cell[1:]), outcome, cell[0])

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the matrix."""
        if self.matrix.cells:
            terminalreporter.section("matrix")
            for line in self.matrix.lines():
                terminalreporter.write_line(line)
