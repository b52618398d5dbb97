"""Random programs keep every promise, and the witness notices a broken one."""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest
from fuzz.arena import play_all
from fuzz.ledger import Fate, Write
from fuzz.programs import Program, draw
from fuzz.witness import Findings, judge_rows
from sqlalchemy import Connection
from support.databases import Backend
from support.marks import KINDS

pytestmark = pytest.mark.filterwarnings(
    # SQLAlchemy's own, of what programs do past it on purpose; as an error it would be one more random event.
    "ignore::sqlalchemy.exc.SAWarning"
)

SEED = os.environ.get("ASGI_SQLA_FUZZ_SEED")
"""The one program to play again."""
SEEDS = range(int(SEED), int(SEED) + 1) if SEED else range(80)
BUDGET = 15.0
"""Seconds after which no further program is begun, for a machine that is busy with something else."""


class Judge:
    """Collects the findings, and stops at the first one or when the time is over."""

    def __init__(self) -> None:
        self.until = time.monotonic() + BUDGET
        self.found = ""

    def __call__(self, program: Program, findings: Findings) -> bool:
        self.found = f"{program}\n{findings}" if findings else ""
        return not findings and time.monotonic() < self.until


@pytest.mark.parametrize("kind", KINDS)
async def test_random_programs_keep_every_promise(backend: Backend, kind: str) -> None:
    """There is no lie, no double write, no connection checked out, and none idle in a transaction."""
    judge = Judge()
    await play_all(backend, kind, SEEDS, judge)
    assert judge.found == ""


@pytest.mark.parametrize("kind", KINDS)
async def test_the_witness_sees_a_commit_that_keeps_nothing(backend: Backend, kind: str) -> None:
    """A database that rolls back instead of committing makes every writing program a lie."""

    def undo(connection: Connection) -> None:
        cursor = connection.connection.cursor()
        cursor.execute("ROLLBACK")
        cursor.close()

    judge = Judge()
    await play_all(backend, kind, range(30), judge, undo)
    assert "is missing" in judge.found


@pytest.mark.parametrize(
    ("fate", "attempt", "kept", "told", "lies", "twice"),
    [
        (Fate.PROMISED, 2, 1, False, 0, 0),
        (Fate.PROMISED, 2, 0, False, 1, 0),
        (Fate.PROMISED, 2, 2, False, 0, 1),
        (Fate.PROMISED, 1, 1, False, 0, 1),
        (Fate.KEPT, 2, 0, True, 1, 0),
        (Fate.REFUSED, 2, 0, False, 0, 0),
        (Fate.REFUSED, 2, 1, False, 1, 0),
        (Fate.REFUSED, 2, 1, True, 0, 0),
        (Fate.DROPPED, 2, 1, True, 1, 0),
        (Fate.UNKNOWN, 2, 1, False, 0, 0),
    ],
)
def test_a_row_is_judged_by_what_the_client_was_told(
    fate: Fate, attempt: int, kept: int, told: bool, lies: int, twice: int
) -> None:
    """Promised rows exist once, refused ones only if the log says so, and only the last attempt keeps rows."""
    write = Write("row", attempt, fate=fate)
    found = judge_rows(Counter({("row", attempt): kept}), [write], 2, told)
    assert (len(found.lies), len(found.twice)) == (lies, twice)


def test_a_seed_draws_the_same_program_each_time() -> None:
    """A finding can be repeated, although the effect of a cancellation depends on the machine."""
    assert [str(draw("sqlite", "async", seed)) for seed in range(50)] == [
        str(draw("sqlite", "async", seed)) for seed in range(50)
    ]
