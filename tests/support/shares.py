"""The share of the tests that one of several runs takes, where together they run everything.

A test with many parameters says the same of its subject in each run. So each combination of their values is in one run
at least. A test that must be in every run is in each, with all that it must meet there: every driver, say.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import pytest

SHARE = os.environ.get("ASGI_SQLA_TEST_SHARE", "").split()
"""Which run of how many this is for the core, and for the annexes, as in "1/2 2/3"; if it is not set, all tests run."""
ANNEXES = (
    *("cli", "demo", "docstrings", "fastapi", "fuzz", "house", "layout", "migrations", "models", "moving_over"),
    *("plugin", "properties", "readme", "ready", "settings", "typed"),
)
"""The tests of the annexes, many of which start processes, and those of the core that only repeat what others test."""
FILES = [f"test_{name}.py" for name in ANNEXES]


class Case(NamedTuple):
    """One combination of a test, the name of both, and what each run of the test must meet."""

    test: str
    name: str
    meets: Collection[Hashable] = ()
    everywhere: bool = True
    """Whether each run takes a combination of the test."""


def share(cases: Sequence[Case], run: int, runs: int) -> set[str]:
    """Return the names of those ``cases`` that belong to the run numbered ``run``, from 1, of ``runs``.

    A case takes its turn by its name alone, so none that all runs have is lost where one has more or fewer of them.
    """
    of_test: dict[str, list[tuple[int, Case]]] = {}
    for case in cases:
        turn = (crc32(case.name.encode()) + run) % runs
        of_test.setdefault(case.test, []).append((turn, case))
    taken: set[str] = set()
    for turns in of_test.values():
        met: set[Hashable] = set()
        for place, (turn, case) in enumerate(sorted(turns, key=lambda one: one[0])):  # its own come first
            if turn == 0 or (case.everywhere and place == 0) or not met.issuperset(case.meets):
                taken.add(case.name)
                met.update(case.meets)
    return taken


def parameters(item: Any) -> dict[str, Any]:
    """Return the parameters of a test."""
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else dict(callspec.params)


def case_of(item: pytest.Item) -> Case:
    """Return a test of the core as one that is in every run, and a test of the annexes as one that is in one."""
    return Case(item.nodeid.partition("[")[0], item.nodeid, everywhere=item.path.name not in FILES)


def take_share(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what other runs take, if this is one of several."""
    if not SHARE:
        return
    mine: set[str] = set()
    for number, part in enumerate(SHARE):
        run, _, runs = part.partition("/")
        cases = [case_of(item) for item in items if (item.path.name in FILES) == bool(number)]
        mine |= share(cases, int(run), int(runs))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in mine])
    items[:] = [item for item in items if item.nodeid in mine]
