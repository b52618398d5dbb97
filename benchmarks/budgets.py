"""The budgets of the design, each beside what was measured.

Holds: what was promised, and whether it was kept.
Must not know: how anything is measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from benchmarks.http import FROZEN, PLAIN
from benchmarks.inprocess import HAND, LONE, ONE_THREAD, OURS, READING, READS, WRITES, Key
from benchmarks.rounds import Times

EQUAL = 1.02
"""A ratio up to which two are equally good: the hand-written one differs as much from itself between two runs."""
LINEAR = 1.25
"""A ratio up to which the last of many took as long as the first."""
LEFT = 50
"""Objects that may be left after hundreds of event loops or messages: one of each would be more."""
NEAR = {"asyncpg": 0.95, "psycopg async": 0.96, "psycopg sync": 1.0}
FAR = {"asyncpg": 0.77, "psycopg async": 0.79, "psycopg sync": 0.82}
FAR_LONE = 0.55
FILE = {
    ("aiosqlite", READS): 0.78,
    ("aiosqlite", WRITES): 0.92,
    ("sqlite3", READS): 1.02,
    ("sqlite3", WRITES): 1.05,
}
MEMORY = {("aiosqlite", READS): 0.65, ("aiosqlite", WRITES): 0.80}
ROUND_TRIPS = {
    "unused": ("unused", OURS, 0),
    READS: (READS, OURS, 2),
    WRITES: (WRITES, OURS, 2),
    f"a lone ``{LONE}``": (LONE, OURS, 1),
    "SELECT, read-only": (READS, READING, 1),
}
SERVED = {False: 1.05, True: 1.0}
"""Requests per second over ``Depends`` with ``yield``, with ``async def`` and with ``def``."""
COLLECTIONS = 1.3


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
        *_postgresql(found),
        *_sqlite(found),
        *_round_trips(found["round_trips"]),
        *_served(found["http"]),
        *_import(found["import"]),
        *_readers(found["readers"], found["scale"]),
        *_growth(found),
        _memory(found["memory"]),
    ]


def _unused(unused: dict[str, Times]) -> list[Budget]:
    bare, wrapping, ours = (unused[name] for name in ("bare", "wrapping send", OURS))
    added, floor = ours.less(bare), wrapping.less(bare)
    # On a machine that is disturbed a difference of two can be nothing, or less.
    ratio = Times(added.minimum / max(floor.minimum, 0.01), added.median / max(floor.median, 0.01))
    return [
        Budget(
            "a request that uses no database, over the bare application",
            "adds at most 0.80 µs",
            f"{added.minimum:.2f} µs (median {added.median:.2f})",
            added.minimum <= 0.8,
        ),
        Budget(
            "the same, over what a middleware adds that only wraps ``send``",
            "at most 1.8 times",
            f"{ratio.minimum:.2f} (median {ratio.median:.2f})",
            ratio.minimum <= 1.8,
        ),
    ]


def _postgresql(found: dict[str, Any]) -> list[Budget]:
    near, far = found["postgresql"], found["far"]
    budgets = []
    for driver, limit in NEAR.items():
        for statement in (READS, WRITES):
            ratio = near[driver, statement, OURS].over(near[driver, statement, HAND])
            what = f"{statement}, PostgreSQL on the loopback, {driver}, over the hand-written one"
            budgets.append(_ratio(what, ratio, limit, medians=True))
    ratio = near["psycopg sync", READS, READING].over(near["psycopg sync", READS, ONE_THREAD])
    budgets.append(_ratio("a sync read-only SELECT, over the hand-written one in one thread call", ratio, 1.0))
    for driver, limit in FAR.items():
        for statement in (READS, WRITES):
            ratio = far[driver, statement, OURS].over(far[driver, statement, HAND])
            what = f"{statement} through the network, {driver}, over the hand-written one"
            budgets.append(_ratio(what, ratio, limit))
    for driver in FAR:
        ratio = far[driver, LONE, OURS].over(far[driver, LONE, HAND])
        budgets.append(_ratio(f"a lone ``{LONE}`` through the network, {driver}, the same", ratio, FAR_LONE))
    return budgets


def _sqlite(found: dict[str, Any]) -> list[Budget]:
    budgets = []
    for place, limits in (("sqlite", FILE), ("memory_sqlite", MEMORY)):
        where = "a SQLite file" if place == "sqlite" else "SQLite in memory"
        for (driver, statement), limit in limits.items():
            ratio = found[place][driver, statement, OURS].over(found[place][driver, statement, HAND])
            budgets.append(_ratio(f"{statement}, {where}, {driver}, over the hand-written one", ratio, limit))
    return budgets


def _round_trips(counts: dict[Key, int]) -> list[Budget]:
    budgets = []
    for what, (statement, name, promised) in ROUND_TRIPS.items():
        seen = {count for key, count in counts.items() if key[1:] == (statement, name)}
        measured = " or ".join(map(str, sorted(seen)))
        budgets.append(Budget(f"round trips, {what}", str(promised), measured, seen == {promised}, timed=False))
    return budgets


def _served(loads: dict[Any, Any]) -> list[Budget]:
    budgets = []
    for sync, limit in SERVED.items():
        kind, suffix = ("def", "_sync") if sync else ("async def", "")
        for path, statement in (("/read", READS), ("/write", WRITES)):
            pairs = {
                state: [loads["asyncio", f"{name}{suffix}", path, state] for name in ("ours", "depends")]
                for state in (PLAIN, FROZEN)
            }
            own, theirs = pairs[PLAIN]
            what, rate, best = f"{statement} over HTTP, ``{kind}``", own.rate / theirs.rate, own.best / theirs.best
            budgets.append(
                Budget(
                    f"{what}, requests per second over ``Depends`` with ``yield``",
                    f"at least {limit:.2f}",
                    f"{rate:.2f} (best rounds {best:.2f})",
                    rate >= limit,
                )
            )
            budgets += [_latest(f"{what}, {state}", *pair) for state, pair in pairs.items()]
    return [*budgets, *_collections(loads)]


def _latest(what: str, own: Any, theirs: Any) -> Budget:
    measured = f"{own.p99 / 1000:.1f} ms, theirs {theirs.p99 / 1000:.1f}"
    return Budget(f"99th percentile of {what}", "no worse than ``Depends``", measured, own.p99 <= EQUAL * theirs.p99)


def _collections(loads: dict[Any, Any]) -> Iterable[Budget]:
    others = {"depends": "``Depends``", "function_scope": '``Depends`` with ``scope="function"``'}
    for name, kind, other in (
        ("ours", "async def", "depends"),
        ("ours", "async def", "function_scope"),
        ("ours_sync", "def", "depends_sync"),
    ):
        own, theirs = (loads["asyncio", one, "/read", PLAIN].collections for one in (name, other))
        yield Budget(
            f"collections in 1,000 of these SELECTs, ``{kind}``, over {others[other.removesuffix('_sync')]}",
            f"at most {COLLECTIONS}",
            f"{own / theirs:.2f} ({own:.0f}, theirs {theirs:.0f})" if theirs else f"{own:.0f}, theirs none",
            own <= COLLECTIONS * theirs,
        )


def _import(found: Any) -> list[Budget]:
    own = found.asgi_sqla
    return [
        Budget(
            "``import asgi_sqla`` after SQLAlchemy and anyio",
            "under 10 ms",
            f"{own.minimum / 1000:.1f} ms (median {own.median / 1000:.1f}; those take {found.needed / 1000:.0f} ms)",
            own.minimum < 10_000,
        ),
        Budget(
            "frameworks, drivers and alembic it imports",
            "none",
            ", ".join(found.extra) or "none",
            not found.extra,
            False,
        ),
    ]


def _readers(waits: dict[str, Any], scale: dict[str, Any]) -> list[Budget]:
    ours = [wait for name, wait in waits.items() if name.startswith("ours")]
    served = all(wait.seconds is not None and wait.started == scale["readers"] for wait in ours)
    slowest = max((wait.seconds for wait in ours), default=0) if served else None
    measured = f"after at most {slowest * 1000:.0f} ms" if slowest is not None else "not served"
    what = f"a new request behind {scale['readers']} slow readers, with a pool of 5"
    return [
        Budget(what, f"is served within {scale['patience']:g} s", measured, served, timed=False),
        Budget("the same", "is served at once: within 1 s", measured, slowest is not None and slowest < 1),
    ]


def _growth(found: dict[str, Any]) -> list[Budget]:
    counts = found["scale"]["at_once"]
    many, few = counts[-1], next(count for count in counts if count >= 16)
    budgets = []
    for state, key in ((PLAIN, "concurrency"), (FROZEN, "frozen concurrency")):
        own, theirs = (found[key][name, many] / found[key][name, few] for name in (OURS, HAND))
        budgets.append(
            Budget(
                f"one of {many:,} units begun at once, over one of {few}, {state}",
                f"linear: at most {LINEAR}",
                f"{own:.2f} (hand-written {theirs:.2f})",
                own <= LINEAR,
            )
        )
    for name, what in (("messages", "messages on one socket"), ("loops", "event loops, one after the other")):
        run = found[name]
        ratio = run.microseconds[-1] / run.microseconds[0]
        budgets.append(
            Budget(
                f"{found['scale'][name]:,} {what}: the last tenth over the first",
                f"linear: at most {LINEAR}",
                f"{ratio:.2f}",
                ratio <= LINEAR,
            )
        )
        objects = run.objects[-1] - run.objects[1]
        budgets.append(
            Budget(
                "left by them after the first tenth",
                f"under {LEFT} objects, no connections",
                f"{objects} objects, {run.connections} connections",
                objects < LEFT and run.connections == 0,
                timed=False,
            )
        )
    return budgets


def _memory(runs: list[Any]) -> Budget:
    last = runs[-1]
    return Budget(
        f"memory after {last.requests} more requests",
        "flat",
        f"{last.objects / 1024:+.1f} KiB of Python objects, {last.resident / 1024:+.0f} KiB resident",
        last.objects < 16 * 1024,
        timed=False,
    )


def _ratio(what: str, ratio: Times, limit: float, *, medians: bool = False) -> Budget:
    """Judge a ratio by the minimum, which other work disturbs least, and where promised by the median too."""
    met = ratio.minimum <= limit and (not medians or ratio.median <= limit)
    promised = f"at most {limit:.2f}{', medians too' if medians else ''}"
    return Budget(what, promised, f"{ratio.minimum:.2f} (medians {ratio.median:.2f})", met)
