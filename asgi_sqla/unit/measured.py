"""What was measured of one session, as observers read it.

Holds: how the report of a session is made of its record and its engine.
Must not know: how a session is measured, or the unit it belongs to. Only units with observers import it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Engine

from asgi_sqla.engine.showing import shown
from asgi_sqla.session import lines
from asgi_sqla.session.recording import NEVER_IDLE
from asgi_sqla.unit.report import DatabaseReport, EndReport, StatementReport

MOST_REPEATED = 20
"""How many repeated statements a report has."""


def records_of(unit: Any) -> list[Any]:
    """Return what was recorded of each session of a unit, up to now."""
    records = []
    for one in unit._sessions.all:
        record = one.session.guard_record
        if record is not None:
            record.left(one.session.guard_left)
            records.append(record)
    return records


def _repeated(record: Any) -> Iterable[tuple[str, Any]]:
    """Return the texts that were sent more than once, the most frequent first."""
    texts = list(record.texts().items())
    if record.statements == len(texts):
        return ()
    return sorted((one for one in texts if one[1].count > 1), key=lambda one: -one[1].count)[:MOST_REPEATED]


def report_of(session: Any) -> DatabaseReport:
    """Return what was recorded of a session."""
    record, engine = session.guard_record, session.bind
    record.left(session.guard_left)
    repeated = _repeated(record)
    slowest, of = record.slowest, _engines.get(engine)
    if of is None:
        of = _engines[engine] = _EngineFacts(engine)
    return DatabaseReport(
        database=of.url,
        dialect=of.dialect,
        driver=of.driver,
        sync=of.sync,
        role="write" if session.guard_writes else "read" if session.guard_autocommit else "snapshot",
        statements=record.statements,
        seconds=record.seconds,
        rows=record.rows,
        slowest=None if slowest is None else StatementReport(slowest[1], 1, slowest[0], lines.shown(slowest[2])),
        repeated=tuple(
            [StatementReport(text, one.count, one.seconds, lines.shown(one.line)) for text, one in repeated]
        ),
        waiting=record.waiting,
        held=record.held_until_now(),
        idle=record.idle,
        longest_idle=None if record.longest_idle is NEVER_IDLE else record.longest_idle,
        ending=record.ending,
        ends=tuple([EndReport(*one) for one in record.ends_until_now()]),
        new_connection=record.new_connection,
        system="mariadb" if getattr(engine.dialect, "is_mariadb", False) else of.dialect,  # it is known when connected
    )


class _EngineFacts:
    """What reports say of an engine; kept, as the URL takes longer than all the rest of a report."""

    __slots__ = ("dialect", "driver", "sync", "url")

    def __init__(self, engine: Engine) -> None:
        self.url = shown(engine.url)
        self.dialect = engine.dialect.name
        self.driver = engine.dialect.driver
        self.sync = not engine.dialect.is_async


_engines: WeakKeyDictionary[Engine, _EngineFacts] = WeakKeyDictionary()
