"""The results as tables in reStructuredText, plain enough for any index to render.

Must not know: how anything was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.budgets import Budget
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.http import FROZEN, PLAIN
from benchmarks.inprocess import HAND, OURS
from benchmarks.network import ONE_WAY
from benchmarks.rounds import Times

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


PLACES = {
    "postgresql": "PostgreSQL",
    "far": "PostgreSQL through the network",
    "sqlite": "a SQLite file",
    "memory_sqlite": "SQLite in memory",
}
"""What is found under which name, and what the tables call it."""


def used(found: dict[str, Any]) -> str:
    """Return ours over the hand-written, in process, on every database."""
    rows = []
    for place, title in PLACES.items():
        for (driver, statement, name), times in found[place].items():
            ratio = times.over(found[place][driver, statement, HAND])
            trips = found["round_trips"].get((driver, statement, name))
            counted = "-" if trips is None else str(trips)
            rows.append((title, driver, statement, name, counted, f"{ratio.minimum:.2f}", f"{ratio.median:.2f}"))
    return table(("Database", "Driver", "Statement", "What", "Round trips", "Minimum", "Median"), rows)


def baseline(contender: Contender) -> str:
    """Return the module that a contender is compared with: ours on the same framework, in the same kind."""
    return next(
        one.module
        for one in CONTENDERS
        if one.title == "asgi_sqla" and (one.framework, one.sync) == (contender.framework, contender.sync)
    )


def peers(found: dict[str, Any]) -> str:
    """Return every contender over ours, in process, near and far, with what else is to be said of it."""
    rows = []
    for one in CONTENDERS:
        ratios = [_over_ours(found["peers"], one, path) for path in ("/unused", "/read", "/write")]
        ratios += [_over_ours(found["far_peers"], one, path) for path in ("/read", "/write")]
        rows.append((one.title, one.kind, *ratios, _trips(found, one), _said(found, one)))
    head = ("Contender", "Framework", "Unused", "SELECT", "INSERT", "far SELECT", "far INSERT", "Round trips", "But")
    return table(head, rows)


def _over_ours(taken: dict[tuple[str, str], Times], one: Contender, path: str) -> str:
    if (one.module, path) not in taken:
        return "-"
    return f"{taken[one.module, path].over(taken[baseline(one), path]).minimum:.2f}"


def _trips(found: dict[str, Any], one: Contender) -> str:
    counts = found["peers_round_trips"]
    paths = ("/unused", "/read", "/write")
    return ", ".join(f"{counts[one.module, path]:g}" for path in paths if (one.module, path) in counts) or "-"


def http(found: dict[str, Any], loop: str) -> str:
    """Return requests per second and latencies over HTTP, over ours, and what the collector does meanwhile."""
    loads = {key[1:]: load for key, load in found["http"].items() if key[0] == loop}
    paths = [path for path in ("/unused", "/read", "/write") if any(key[1] == path for key in loads)]
    rows = []
    for one in CONTENDERS:
        if (one.module, "/read", PLAIN) not in loads:
            continue
        cells = [one.title, one.kind]
        for path in paths:
            load, ours = loads[one.module, path, PLAIN], loads[baseline(one), path, PLAIN]
            cells.append(f"{load.rate / ours.rate:.2f} ({load.p50 / 1000:.1f}, {load.p99 / 1000:.1f})")
        cells.append(f"{loads[one.module, '/read', PLAIN].collections:.0f}")
        for path in ("/read", "/write"):
            load = loads[one.module, path, FROZEN]
            cells.append(f"{load.rate / loads[one.module, path, PLAIN].rate:.2f} ({load.p99 / 1000:.1f})")
        rows.append(cells)
    titles = {"/unused": "Unused", "/read": "SELECT", "/write": "INSERT"}
    head = ("Contender", "Framework", *(titles[path] for path in paths), "Collections")
    return table((*head, "SELECT, frozen", "INSERT, frozen"), rows)


def readers(found: dict[str, Any]) -> str:
    """Return how each contender serves new requests behind slow readers."""
    rows = []
    for one in CONTENDERS:
        if one.module not in found["readers"]:
            continue
        wait = found["readers"][one.module]
        patience = found["scale"]["patience"]
        waited = f"not within {patience:g} s" if wait.seconds is None else f"{wait.seconds * 1000:.0f} ms"
        rows.append((one.title, one.kind, str(wait.started), waited))
    return table(("Contender", "Framework", "Slow readers answered", "A new request was served after"), rows)


def growth(found: dict[str, Any]) -> str:
    """Return what grows with databases, units at once, messages and event loops."""
    databases = found["databases"]
    rows = []
    for (what, count), times in databases.items():
        ratio = times.over(databases[what, 1])
        rows.append((what, str(count), f"{ratio.minimum:.2f}", f"{ratio.median:.2f}"))
    first = next(iter(found["scale"]["at_once"]))
    units = [
        (
            f"{at_once:,}",
            state,
            f"{taken[OURS, at_once] / taken[OURS, first]:.2f}",
            f"{taken[HAND, at_once] / taken[HAND, first]:.2f}",
            f"{taken[OURS, at_once] / taken[HAND, at_once]:.2f}",
        )
        for state, taken in ((PLAIN, found["concurrency"]), (FROZEN, found["frozen concurrency"]))
        for at_once in found["scale"]["at_once"]
    ]
    runs = []
    for name in ("messages", "loops"):
        run = found[name]
        pieces = [f"{one / run.microseconds[0]:.2f}" for one in run.microseconds]
        left = f"{run.objects[-1] - run.objects[1]}"
        runs.append((f"{found['scale'][name]:,} {name}", " ".join(pieces), left, str(run.connections)))
    return "\n\n".join(
        (
            table(("Request", "Databases", "Minimum", "Median"), sorted(rows)),
            table(
                ("Units at once", "The collector", "asgi_sqla", "hand-written", "asgi_sqla over hand-written"), units
            ),
            table(("What", "Each tenth over the first", "Objects left", "Connections left"), runs),
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
    if contender.module in found["readers"] and found["readers"][contender.module].seconds is None:
        said.append("holds a connection while a body drains")
    return "; ".join(said) or "-"


def conditions(found: dict[str, Any]) -> str:
    """Return on what, with what and when it was measured."""
    machine, bare = found["machine"], found["network"]
    library = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, {machine['system']}, Python "
        f"{machine['python']}, {library}; the load average was {machine['load']} at the start. PostgreSQL over TCP on "
        "the loopback, with fsync off. Every figure is a ratio within one run, contenders taking turns in each round."
        f"\n\nThe network is a proxy in a process of its own, which adds {ONE_WAY / 1000:g} ms each way. A bare "
        f"``SELECT 1`` of libpq takes {bare.through.minimum / 1000:.2f} ms through it (median "
        f"{bare.through.median / 1000:.2f}), and {bare.direct.minimum / 1000:.2f} ms without (median "
        f"{bare.direct.median / 1000:.2f}). Round trips are counted there: how often a driver waits for the server in "
        "one request."
    )


IN_PROCESS = (
    "The time of a request over the same with a hand-written session on a plain engine; above 1 is slower. ``add()`` "
    "leaves its INSERT to the COMMIT. *Shielded* is the hand-written one with its COMMIT in a task of its own, so that "
    "a client that leaves does not cut it; asgi_sqla always does that. On SQLite asgi_sqla begins a real transaction, "
    "and the driver by itself none before a SELECT."
)
PEERS = (
    "The time of a request over asgi_sqla's on the same framework, each contender in a process of its own, set up for "
    "automatic commits as its documentation says; the minimum of many rounds, above 1 is slower. *Far* is through the "
    "network. Round trips are those of an unused request, a SELECT and an INSERT. What stands under *But* was found by "
    "trying it."
)
HTTP = (
    "Requests per second over asgi_sqla's, below 1 is slower; in parentheses the 50th and the 99th percentile in "
    "milliseconds. uvicorn, one worker, {connections} connections from a second process, and as many in each pool. "
    "*Collections* is how often the collector ran in 1,000 SELECTs. *Frozen* is the contender's own rate once it has "
    "called ``gc.freeze()`` over "
    "its rate without, with its 99th percentile. First asyncio's event loop, then uvloop's."
)
READERS = (
    "{readers} clients each ask for a body of a megabyte that follows a SELECT, and do not read it. Then another "
    "client asks for something else. The pool has 5 connections."
)
GROWTH = (
    "The time of a request on a middleware of several databases over the same with one. Far is through the network: "
    "transactions that only read end at the same time, those that wrote one after the other, in order of first use. "
    "Then the time of a unit, an INSERT, when so many are begun at once on a pool of 16, over that of one alone. Then "
    "the messages of one socket, and event loops one after the other, each with a SELECT."
)


def document(found: dict[str, Any], judged: list[Budget]) -> str:
    """Return everything."""
    scale = found["scale"]
    parts = [
        "Benchmarks\n==========",
        conditions(found),
        WHO,
        _section("Budgets", budgets(judged)),
        _section("Beside doing without us", IN_PROCESS, used(found)),
        _section("Beside the others", PEERS, peers(found)),
        _section("Over HTTP", HTTP.format(**scale), http(found, "asyncio"), http(found, "uvloop")),
        _section("Slow readers", READERS.format(**scale), readers(found)),
        _section("Growth", GROWTH, growth(found)),
        _section("Versions", versions(found)),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, *parts: str) -> str:
    return "\n\n".join((f"{title}\n{'-' * len(title)}", *parts))
