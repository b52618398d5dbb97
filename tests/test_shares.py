"""The runs that share the tests: together they leave nothing out, and each meets what it must."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shares import Case, share

CASES = st.lists(
    st.builds(
        Case,
        st.sampled_from(["one", "two"]),
        st.text(max_size=3),
        st.lists(st.sampled_from("abc"), max_size=2),
        st.booleans(),
    ),
    max_size=20,
    unique_by=lambda case: case.name,
)


@settings(deadline=None, max_examples=50)
@given(CASES, st.integers(1, 4))
def test_together_they_run_everything(cases: list[Case], runs: int) -> None:
    """Each combination is in a run; one run of one takes all."""
    assert set().union(*(share(cases, run + 1, runs) for run in range(runs))) == {case.name for case in cases}


@settings(deadline=None, max_examples=50)
@given(CASES, st.integers(1, 4), st.data())
def test_what_all_have_is_run_whatever_else_one_has(cases: list[Case], runs: int, data: st.DataObject) -> None:
    """With an older dependency a test may have fewer cases; none of those that are left is lost."""
    older = [case for case in cases if data.draw(st.booleans())]
    parts = [share(older if run == 0 else cases, run + 1, runs) for run in range(runs)]
    assert {case.name for case in older} <= set().union(*parts) <= {case.name for case in cases}


@settings(deadline=None, max_examples=50)
@given(CASES, st.integers(1, 4))
def test_each_runs_every_test(cases: list[Case], runs: int) -> None:
    """It does so with everything that the test must meet in each run."""
    cases = [case._replace(everywhere=True) for case in cases]
    everything = {(case.test, one) for case in cases for one in (None, *case.meets)}
    for run in range(1, runs + 1):
        mine = [case for case in cases if case.name in share(cases, run, runs)]
        assert {(case.test, one) for case in mine for one in (None, *case.meets)} == everything


@settings(deadline=None, max_examples=50)
@given(CASES, st.integers(1, 4))
def test_what_need_not_be_everywhere_is_in_one_run(cases: list[Case], runs: int) -> None:
    """No second run takes it."""
    cases = [case._replace(everywhere=False, meets=()) for case in cases]
    parts = [share(cases, run + 1, runs) for run in range(runs)]
    assert sum(map(len, parts)) == len(cases)


@pytest.mark.parametrize("runs", [2, 3])
def test_they_share_the_work(runs: int) -> None:
    """Of a test with five ways to reach a database and forty endings, no run has a fifth more than its part."""
    ways = ("sqlite-sync", "sqlite-async", "asyncpg-async", "asyncpg-sync", "psycopg-async")
    cases = [Case("ends", f"ends[{ending}-{way}]", [way]) for way, ending in product(ways, range(40))]
    parts = [share(cases, run + 1, runs) for run in range(runs)]
    assert max(map(len, parts)) <= len(cases) / runs * 1.2
    assert sum(map(len, parts)) == len(cases)
