"""Observers that a ``Database`` gets after it was made, from the annexes that are given one.

Holds: what a database must do for its first observer.
Must not know: what an observer does.
"""

from __future__ import annotations

from asgi_sqla.database import Database
from asgi_sqla.session.observed import events_for, observers_of
from asgi_sqla.unit.report import Observer


def add_observer(database: Database, observer: Observer) -> None:
    """Have ``database`` observed by ``observer`` too, however it is configured, now or later.

    A session that a running unit has already got is not measured if the database had no observer before.
    """
    first = not observers_of(database)
    database._added = (*database._added, observer)
    if first and database.configured:
        database._guarded = {}  # the classes of its sessions, which measure nothing
        for engines in (database._engines, *database._reading.values()):
            for identifier, function in events_for(database):
                engines.watch(identifier, function)
