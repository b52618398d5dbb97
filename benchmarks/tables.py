"""The results as tables in reStructuredText, plain enough for any index to render.

Must not know: how anything was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.budgets import Budget
from benchmarks.contenders import CONTENDERS, Contender

WHO = (
    "Who measured: the authors of asgi_sqla, on their own machine, with the set-ups they took from each project's own "
    "documentation. Nobody else has checked them. Run them yourself, and tell us where we are unfair."
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a simple table."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = "  ".join("=" * width for width in widths)
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([rule, body[0], rule, *body[1:], rule])


def budgets(found: list[Budget]) -> str:
    """Return each budget beside what was measured."""
    rows = [(one.what, one.promised, one.measured, "yes" if one.met else "**no**") for one in found]
    return table(("What", "Budget", "Measured", "Met"), rows)


def used(found: dict[str, Any]) -> str:
    """Return ours over the hand-written, in process, on both databases."""
    rows = []
    for place in ("postgresql", "sqlite"):
        for (kind, statement, name), times in found[place].items():
            ratio = times.over(found[place][kind, statement, "hand-written"])
            rows.append((place, kind, statement, name, f"{ratio.minimum:.2f}", f"{ratio.median:.2f}"))
    return table(("Database", "Kind", "Statement", "What", "Minimum", "Median"), rows)


def baseline(contender: Contender) -> str:
    """Return the module that a contender is compared with: ours on the same framework, in the same kind."""
    return next(
        one.module
        for one in CONTENDERS
        if one.title == "asgi_sqla" and (one.framework, one.sync) == (contender.framework, contender.sync)
    )


def peers(found: dict[str, Any]) -> str:
    """Return every contender over ours, in process, with what else is to be said of it."""
    rows = []
    for one in CONTENDERS:
        ratios = [
            found["peers"][one.module, path].over(found["peers"][baseline(one), path]).minimum
            for path in ("/unused", "/read", "/write")
        ]
        kind = f"{one.framework}, {'def' if one.sync else 'async def'}"
        rows.append((one.title, kind, *(f"{ratio:.2f}" for ratio in ratios), _said(found, one)))
    return table(("Contender", "Framework", "Unused", "SELECT", "INSERT", "But"), rows)


def http(found: dict[str, Any]) -> str:
    """Return requests per second and latencies over HTTP, over ours."""
    rows = []
    for one in CONTENDERS:
        cells = [one.title, f"{one.framework}, {'def' if one.sync else 'async def'}"]
        for path in ("/unused", "/read", "/write"):
            load, ours = found["http"][one.module, path], found["http"][baseline(one), path]
            cells.append(f"{load.rate / ours.rate:.2f} ({load.p50 / 1000:.1f}, {load.p99 / 1000:.1f})")
        rows.append(cells)
    return table(("Contender", "Framework", "Unused", "SELECT", "INSERT"), rows)


def readers(found: dict[str, Any]) -> str:
    """Return how each contender serves new requests behind slow readers."""
    rows = []
    for one in CONTENDERS:
        wait = found["readers"][one.module]
        kind = f"{one.framework}, {'def' if one.sync else 'async def'}"
        patience = found["scale"]["patience"]
        waited = f"not within {patience:g} s" if wait.seconds is None else f"{wait.seconds * 1000:.0f} ms"
        rows.append((one.title, kind, str(wait.started), waited))
    return table(("Contender", "Framework", "Slow readers answered", "A new request was served after"), rows)


def growth(found: dict[str, Any]) -> str:
    """Return what grows with the number of databases, and with concurrency."""
    databases = found["databases"]
    rows = []
    for (what, count), times in databases.items():
        ratio = times.over(databases[what, 1])
        rows.append((what, str(count), f"{ratio.minimum:.2f}", f"{ratio.median:.2f}"))
    rows.sort(key=lambda row: (row[0], int(row[1])))
    concurrent = found["concurrency"]
    ratios = [
        (str(at_once), f"{concurrent['asgi_sqla', at_once] / concurrent['hand-written', at_once]:.2f}")
        for name, at_once in concurrent
        if name == "asgi_sqla"
    ]
    return "\n\n".join(
        (
            table(("Request", "Databases", "Minimum", "Median"), rows),
            table(("Units at once", "Units per second, over the hand-written"), ratios),
        )
    )


def versions(found: dict[str, Any]) -> str:
    """Return the versions of each contender."""
    rows = []
    for one in CONTENDERS:
        seen = found["versions"][one.module]
        rows.append((one.module, ", ".join(f"{name} {number}" for name, number in seen.items())))
    return table(("Contender", "Versions"), rows)


def _said(found: dict[str, Any], contender: Contender) -> str:
    said = list(found["promises"][contender.module])
    if found["readers"][contender.module].seconds is None:
        said.append("holds a connection while a body drains")
    return "; ".join(said) or "-"


def conditions(machine: dict[str, Any]) -> str:
    """Return on what, with what and when it was measured."""
    library = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, {machine['system']}, Python "
        f"{machine['python']}, {library}; the load average was {machine['load']} at the start. PostgreSQL over TCP on "
        "the loopback, with fsync off. Every figure is a ratio within one run, contenders taking turns in each round."
    )


IN_PROCESS = (
    "The time of a request over the same with a hand-written session on a plain engine; above 1 is slower. "
    "*Shielded* is the hand-written one with its COMMIT in a task of its own, so that a client that leaves does not "
    "cut it; asgi_sqla always does that. On SQLite asgi_sqla begins a real transaction, and the driver by itself none "
    "before a SELECT."
)
PEERS = (
    "The time of a request over asgi_sqla's on the same framework, each contender in a process of its own, set up for "
    "automatic commits as its documentation says; the minimum of many rounds, above 1 is slower. What stands under "
    "*But* was found by trying it."
)
HTTP = (
    "Requests per second over asgi_sqla's, below 1 is slower; in parentheses the 50th and the 99th percentile in "
    "milliseconds. uvicorn, one worker, {connections} connections from a second process."
)
READERS = (
    "{readers} clients each ask for a body of a megabyte that follows a SELECT, and do not read it. Then another "
    "client asks for something else. The pool has 5 connections."
)
GROWTH = (
    "The time of a request on a middleware of several databases over the same with one; then units per second, each an "
    "INSERT, in as many tasks at once, over hand-written ones."
)


def document(found: dict[str, Any], judged: list[Budget]) -> str:
    """Return everything."""
    scale = found["scale"]
    parts = [
        "Benchmarks\n==========",
        conditions(found["machine"]),
        WHO,
        _section("Budgets", budgets(judged)),
        _section("Beside doing without us", IN_PROCESS, used(found)),
        _section("Beside the others", PEERS, peers(found)),
        _section("Over HTTP", HTTP.format(**scale), http(found)),
        _section("Slow readers", READERS.format(**scale), readers(found)),
        _section("Growth", GROWTH, growth(found)),
        _section("Versions", versions(found)),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, *parts: str) -> str:
    return "\n\n".join((f"{title}\n{'-' * len(title)}", *parts))
