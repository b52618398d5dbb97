"""Sessions that are measured: the guards of a ``Database`` with observers, which alone imports this room.

Holds: the guard that carries a record, and when it tells the record of a wait, a renewal and an end.
Must not know: what a record is for.
"""

from __future__ import annotations

from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.orm import SessionTransaction

from asgi_sqla.engine.instant import instant
from asgi_sqla.session.guard import GuardedSession
from asgi_sqla.session.recording import Record

if TYPE_CHECKING:
    from asgi_sqla.session.outcome import Recording


class RecordedSession(GuardedSession):
    """A guarded session that keeps a record."""

    guard_record: Recording | None
    _record: Record
    """The same as ``guard_record``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard_record = self._record = Record(self.guard_outcome)

    def get_bind(self, *args: Any, **kwargs: Any) -> Any:
        """Return the engine, as SQLAlchemy asks for it just before it takes a connection."""
        if self._guard_inside is not None:
            record = self._record
            if record.waits_since is not None:
                record.left(self.guard_left)
            record.waits_since = monotonic()
            if record.first is None:
                record.first = record.waits_since
        return super().get_bind(*args, **kwargs)

    def guard_renew(self) -> None:
        """Begin a record for the next unit too."""
        super().guard_renew()
        self.guard_record = self._record = Record(self.guard_outcome)


@cache
def recorded(guard: type[GuardedSession]) -> type[GuardedSession]:
    """Return the subclass of ``guard`` that keeps a record."""
    return type(f"Recorded{guard.__name__}", (RecordedSession, guard), {})


def _released(session: Any, transaction: SessionTransaction) -> None:
    if transaction._parent is None:
        session.guard_record.released()


event.listen(RecordedSession, "after_transaction_end", instant(_released))
