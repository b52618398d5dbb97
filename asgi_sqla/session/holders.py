"""Who holds a connection: the units with an open transaction, for how long, and since when they ask nothing of it.

Holds: one line for each connection of a session.
Must not know: why it is asked.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, NamedTuple

from sqlalchemy.pool import Pool

from asgi_sqla.engine.pools import holders_of
from asgi_sqla.session.listeners import connections_in_use


class Holder(NamedTuple):
    """One connection that a unit of work holds."""

    unit: str
    """The name of the unit, such as ``POST /orders``."""
    attempt: int
    """Which attempt at its request or function the unit is."""
    seconds: float
    """How long it has held the connection."""
    idle: float
    """For how many seconds it has asked nothing of its session; 0 while it waits for an answer."""

    def __str__(self) -> str:
        idle = f", idle for {self.idle:.1f} s" if self.idle else ""
        attempt = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"{self.unit} ({self.seconds:.1f} s{idle}{attempt})"


def holders(*pools: Pool) -> list[Holder]:
    """Return who holds connections of ``pools``, the longest first."""
    now, found = monotonic(), []
    for watched in connections_in_use():
        connection, session = watched.connection, watched.session
        unit: Any = session.guard_unit
        if not connection.closed and not connection.invalidated and connection.engine.pool in pools:
            idle = 0.0 if session.guard_lock.locked() else now - max(watched.since, session.guard_left)
            found.append(Holder(unit.name, unit.attempt, now - watched.since, idle))
    return sorted(found, key=lambda one: -one.seconds)


holders_of.append(holders)
