"""The HTML of ``live()``: one document without a script, and nothing loaded from elsewhere.

Every text is escaped, and the policy of the document lets nothing but its one style sheet have an effect.

Holds: what stands where, and how numbers are written.
Must not know: where its values come from, or anything of ASGI.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

from asgi_sqla.engine.pools import PoolStatus
from asgi_sqla.observe import DatabaseReport, Report, StatementReport
from asgi_sqla.session.holders import Holder

STYLE = Path(__file__).with_name("live.css").read_text()
"""The style sheet of the document."""
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-"
    f"{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
).encode()
"""The Content-Security-Policy: should a text ever get past the escaping, no browser runs it."""
RELOADS = 2
"""Seconds of the link that makes the page reload itself."""

_COLOURS = {"committed": "good", "rolled back": "warn", "failed": "bad", "in doubt": "bad", "nothing": "dim"}
_UNITS = ("Began", "Unit", "Outcome", "Status", "Total", "Sent", "SQL", "Waited", "Idle", "Ending")
_HOLDERS = ("Unit", "Attempt", "Held", "Idle")
_POOLS = ("Pool", "Size", "Most", "Out", "Idle", "Waiting")


class State(NamedTuple):
    """Everything that the page shows."""

    now: float
    """Seconds since 1970."""
    databases: list[tuple[str, list[PoolStatus], list[Holder]]]
    """The name of each, its pools, and who holds its connections."""
    reports: list[Report]
    """The newest first."""


def render(state: State, reload: int | None) -> bytes:
    """Return the document, which reloads itself every ``reload`` seconds."""
    again = f'<meta http-equiv="refresh" content="{reload}">' if reload else ""
    link = '<a href="?">Stop reloading</a>' if reload else f'<a href="?reload={RELOADS}">Reload every {RELOADS} s</a>'
    body = "".join(_body(state))
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        f"<title>asgi_sqla</title><style>{STYLE}</style></head><body>"
        f"<header><h1>asgi_sqla</h1><p>{_clock(state.now)} UTC, times in milliseconds · {link}</p></header>"
        f"{body}</body></html>"
    )
    return text.encode(errors="backslashreplace")  # a path may hold half a surrogate


def _body(state: State) -> Iterator[str]:
    for name, pools, held in state.databases:
        yield f"<section><h2><code>{escape(name)}</code></h2>"
        yield _table("pools", _POOLS, map(_pool, pools)) if pools else "<p>No pool of connections yet.</p>"
        if held:
            yield "<h3>Units that hold a connection</h3>" + _table("held", _HOLDERS, map(_holder, held))
        else:
            yield "<p>No unit holds a connection.</p>"
        yield "</section>"
    yield f"<section><h2>Units that have ended</h2><p>{_said(state.reports)}</p>"
    if state.reports:
        yield _table("units", _UNITS, map(_unit, state.reports))
    yield "</section>"


def _said(reports: list[Report]) -> str:
    if not reports:
        return "None yet: a unit is listed once it has used a database."
    return f"The last {len(reports)}, the newest first."


def _table(kind: str, heads: tuple[str, ...], rows: Iterable[str]) -> str:
    cells = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return f'<table class="{kind}"><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _row(*cells: object) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _pool(one: PoolStatus) -> str:
    replica = "" if one.role == "write" else f" <code>{escape(one.database)}</code>"
    most = "∞" if one.max is None else one.max
    return _row(f"{one.role}, {one.kind}{replica}", one.size, most, one.out, one.idle, _loud(one.waiting))


def _holder(one: Holder) -> str:
    return _row(f"<b>{escape(one.unit)}</b>", one.attempt, _milliseconds(one.seconds), _milliseconds(one.idle))


def _unit(one: Report) -> str:
    sums = [sum(getattr(each, field) for each in one.databases) for field in ("seconds", "waiting", "idle", "ending")]
    sql, waiting, idle, ending = map(_milliseconds, sums)
    began = f'<time datetime="{_clock(one.started, date=True)}Z">{_clock(one.started)}</time>'
    kind = "" if one.kind == "request" else f" <small>{one.kind}</small>"
    attempt = f" <small>attempt {one.attempt}</small>" if one.attempt > 1 else ""
    outcome = f'<span class="{_COLOURS[one.outcome]}">{one.outcome}</span>'
    sent = sum(each.statements for each in one.databases)
    row = _row(
        began, f"<b>{escape(one.name)}</b>{kind}{attempt}", outcome, one.status or "",
        _milliseconds(one.seconds), sent, sql, waiting, idle, ending,
    )  # fmt: skip
    return f"{row}{_more(one)}"


def _more(one: Report) -> str:
    """Return the row below a unit: what stands out in it, and the rest of its report on a click."""
    parts = [*_reasons(one), *(part for each in one.databases for part in _details(each))]
    if not parts:
        return ""
    first = next(filter(None, (_reason(one), *map(_repeated, one.databases), *map(_slowest, one.databases))), "Details")
    listed = "".join(f"<li>{part}</li>" for part in parts)
    summary = f"<summary>{first}</summary>"
    return f'<tr class="more"><td></td><td colspan="9"><details>{summary}<ul>{listed}</ul></details></td></tr>'


def _reason(one: Report) -> str:
    return f"<span>{escape(one.reason)}</span>" if one.reason else ""


def _reasons(one: Report) -> Iterator[str]:
    if one.reason:
        yield f"{one.outcome.capitalize()}: {escape(one.reason)}"
    for each in one.attempts:
        why = f": {escape(each.reason)}" if each.reason else ""
        yield f"Attempt {each.attempt}: {each.outcome} after {_milliseconds(each.seconds)} ms{why}"


def _details(one: DatabaseReport) -> Iterator[str]:
    kind = "Session" if one.sync else "AsyncSession"
    new = ", a new connection" if one.new_connection else ""
    rows = "" if one.rows is None else f", {_many(one.rows, 'row')}"
    yield (
        f"{kind} of <code>{escape(one.database)}</code> by {escape(one.driver)}{new}: "
        f"{_many(one.statements, 'statement')}{rows}; held for {_milliseconds(one.held)} ms"
    )
    for each in one.repeated:
        yield f"{each.count} &times; {_statement(each)}"
    if one.slowest is not None:
        yield f"The slowest: {_statement(one.slowest)}"
    if one.longest_idle is not None:
        seconds, before, after = one.longest_idle
        yield (
            f"Idle for {_milliseconds(seconds)} ms between <code>{escape(before)}</code> and "
            f"<code>{escape(after)}</code>"
        )


def _repeated(one: DatabaseReport) -> str:
    return f"{one.repeated[0].count} &times; {_statement(one.repeated[0])}" if one.repeated else ""


def _slowest(one: DatabaseReport) -> str:
    return _statement(one.slowest) if one.slowest is not None else ""


def _statement(one: StatementReport) -> str:
    line = f", {escape(one.line)}" if one.line else ""
    return f"<code>{escape(one.text)}</code> ({_milliseconds(one.seconds)} ms{line})"


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _loud(number: int) -> str:
    return f'<span class="bad">{number}</span>' if number else "0"


def _milliseconds(seconds: float) -> str:
    """Return ``seconds`` as milliseconds, with as many digits as tell something."""
    value = seconds * 1000
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _clock(seconds: float, *, date: bool = False) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S" if date else "%H:%M:%S", time.gmtime(seconds))
