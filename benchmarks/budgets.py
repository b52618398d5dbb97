"""The budgets of the design, each beside what was measured.

Holds: what was promised, and whether it was kept.
Must not know: how anything is measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.rounds import Times

EQUAL = 1.02
"""A ratio up to which two are equally fast: the hand-written one differs as much from itself between two runs."""


class Budget(NamedTuple):
    """One promise and what came of it."""

    what: str
    promised: str
    measured: str
    met: bool
    timed: bool = True
    """Whether a clock says so; what does not hang on one holds on any machine."""


def judge(found: dict[str, Any]) -> list[Budget]:
    """Return every budget."""
    return [
        *_unused(found["unused"]),
        *_used(found["postgresql"]),
        *_round_trips(found["round_trips"]),
        *_import(found["import"]),
        _readers(found["readers"], found["scale"]["readers"]),
        _memory(found["memory"]),
    ]


def _unused(unused: dict[str, Times]) -> list[Budget]:
    bare, wrapping, ours = (unused[name] for name in ("bare", "wrapping send", "asgi_sqla"))
    added, floor = ours.less(bare), wrapping.less(bare)
    ratio = Times(added.minimum / floor.minimum, added.median / floor.median)
    return [
        Budget(
            "a request that uses no database, over the bare application",
            "adds at most 1 µs",
            f"{added.minimum:.2f} µs (median {added.median:.2f})",
            added.minimum <= 1,
        ),
        Budget(
            "the same, over what a middleware adds that only wraps ``send``",
            "at most 2.5 times",
            f"{ratio.minimum:.2f} (median {ratio.median:.2f})",
            ratio.minimum <= 2.5,
        ),
    ]


def _used(used: dict[tuple[str, str, str], Times]) -> list[Budget]:
    budgets = []
    for kind in ("async", "sync"):
        for statement in ("SELECT", "INSERT"):
            ratio = used[kind, statement, "asgi_sqla"].over(used[kind, statement, "hand-written"])
            what = f"one {statement} on PostgreSQL, {kind}, over the hand-written one"
            budgets.append(Budget(what, "no slower", _both(ratio), ratio.minimum <= EQUAL))
    ratio = used["async", "SELECT", "asgi_sqla, read-only"].over(used["async", "SELECT", "hand-written"])
    what = "the SELECT, read-only, async, over the hand-written one"
    return [*budgets, Budget(what, "at most 0.75", _both(ratio), ratio.minimum <= 0.75)]


def _round_trips(counts: dict[str, int]) -> list[Budget]:
    promised = {"unused": 0, "SELECT": 2, "INSERT": 2, "SELECT, read-only": 1}
    return [
        Budget(f"round trips, {what}", str(count), str(counts[what]), counts[what] == count, timed=False)
        for what, count in promised.items()
    ]


def _import(found: Any) -> list[Budget]:
    return [
        Budget(
            "``import asgi_sqla`` after SQLAlchemy and anyio",
            "under 10 ms",
            f"{found.asgi_sqla / 1000:.1f} ms (those take {found.needed / 1000:.0f} ms)",
            found.asgi_sqla < 10_000,
        ),
        Budget(
            "frameworks, drivers and alembic it imports",
            "none",
            ", ".join(found.extra) or "none",
            not found.extra,
            False,
        ),
    ]


def _readers(waits: dict[str, Any], readers: int) -> Budget:
    ours = [wait for name, wait in waits.items() if name.startswith("ours")]
    served = all(wait.seconds is not None and wait.started == readers for wait in ours)
    slowest = max(wait.seconds for wait in ours) if served else None
    return Budget(
        f"a new request behind {readers} slow readers, with a pool of 5",
        "is served at once",
        f"after at most {slowest * 1000:.0f} ms" if slowest is not None else "not served",
        served and slowest is not None and slowest < 1,
        timed=False,
    )


def _memory(runs: list[Any]) -> Budget:
    last = runs[-1]
    return Budget(
        f"memory after {last.requests} more requests",
        "flat",
        f"{last.objects / 1024:+.1f} KiB of Python objects, {last.resident / 1024:+.0f} KiB resident",
        last.objects < 16 * 1024,
        timed=False,
    )


def _both(ratio: Times) -> str:
    return f"{ratio.minimum:.2f} (medians {ratio.median:.2f})"
