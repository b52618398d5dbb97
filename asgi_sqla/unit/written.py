"""What a unit of work has written to databases with replicas, for the mark that later reads are given.

Holds: the mark of a unit, and when the WAL positions in it are asked for.
Must not know: how a mark travels, or how a database asks for a position.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, cast

import anyio

from asgi_sqla.unit.context import inherited
from asgi_sqla.unit.sessions import NONE, Sessions

if TYPE_CHECKING:
    from asgi_sqla.unit.context import Unit
    from asgi_sqla.unit.marks import Mark

LASTS = 60.0
"""Seconds for which a mark sends reads to the primary, if neither ``stick=`` nor a WAL position says more."""
ASKING_LIMIT = 1.0
"""Seconds to wait for a WAL position after a COMMIT; then ``LASTS`` counts instead."""
UNKNOWN = -1
"""A WAL position that could not be read."""

logger: logging.Logger = logging.getLogger("asgi_sqla")


if TYPE_CHECKING:

    class Lag(Protocol):
        """How marks are made."""

        @property
        def seconds(self) -> float:
            """Seconds for which replicas may lag."""
            ...

        @property
        def by_position(self) -> bool:
            """Whether marks carry WAL positions."""
            ...


if TYPE_CHECKING:

    class Replicated(Protocol):
        """A database, as far as marks need it."""

        @property
        def _mark_key(self) -> str | None:
            """Its key in marks; None if nothing reads from a replica."""
            ...

        async def _position(self) -> int | None:
            """Return the WAL position of the primary; None if the database has none."""


if TYPE_CHECKING:

    class Reader(Protocol):
        """The arguments of a scope, as far as marks need them."""

        @property
        def read_only(self) -> bool:
            """Whether it only reads."""
            ...

        @property
        def after(self) -> Mark | None:
            """The mark that it was given."""
            ...


_NOTHING: Mapping[Replicated, int | None] = MappingProxyType({})


class Written:
    """The part of a unit of work that knows what was written."""

    # Defaults on the class, as in the unit itself.
    _given_mark: Mark | None = None
    _sessions: Sessions = NONE
    _used: bool = False
    _written: Mapping[Replicated, int | None] = _NOTHING
    """The databases in which a write was committed, each with its WAL position, or None if nobody has asked for it."""
    _kept: Mark | None = None
    """Its mark after its end, when it refers to no database."""
    _outer: Unit | None = None
    """The unit around that of a ``session_scope()``, which is told what was written."""

    @property
    def _after(self) -> Mark | None:
        """What its reads must see."""
        return self._given_mark

    @property
    def _stick(self) -> Lag | None:
        """How its mark is made; None for ``LASTS``."""
        return None

    @property
    def mark(self) -> str | None:
        """What a later read must see: all that this unit has committed, and what it had to see itself.

        Pass it as ``after=`` to ``session_scope()``, at once or through a queue. It is None if nothing was committed
        to a database with replicas. In a callback, take it from the unit that the callback was registered in.
        """
        mark = self._mark()
        return None if mark is None else str(mark)

    def _mark(self) -> Mark | None:
        own, after = self._own_mark(), self._after
        return own if after is None else after if own is None else after.followed_by(own)

    def _own_mark(self) -> Mark | None:
        self._note_writes()
        mark = self._kept
        stick = self._stick
        seconds = LASTS if stick is None or stick.by_position else stick.seconds
        for database, position in self._written.items():
            if (key := database._mark_key) is not None:
                from asgi_sqla.unit.marks import Entry, Mark, lasting  # only with replicas

                known = position is not None and position != UNKNOWN
                added = Mark({key: Entry(position=position) if known else lasting(seconds)})
                mark = added if mark is None else mark.followed_by(added)
        return mark

    def _note_writes(self) -> None:
        """Record what was committed since the last call."""
        for one in self._sessions.all:
            outcome, database = one.session.guard_outcome, cast("Replicated", one.database)
            if outcome.kept and one.session.guard_writes:
                outcome.kept = False
                if database._mark_key is not None:
                    self._written = {**self._written, database: None}

    def _tell_writes(self, outer: Written) -> None:
        """Count what was written in this unit as written in the ``outer`` one, too."""
        if self._sessions.writes:
            self._note_writes()
        if self._written:
            outer._written = {**outer._written, **dict.fromkeys(self._written)}
            outer._used = outer._used or outer._stick is not None  # or its response would start without a mark

    def _keep_mark(self) -> None:
        """Keep its mark, and no database or unit, at its end."""
        self._outer = None
        if self._sessions.writes:
            self._note_writes()
        if self._written:
            self._kept, self._written = self._own_mark(), _NOTHING

    async def _ask_positions(self) -> None:
        """Ask for the WAL position of each database that was written since the last call, if marks carry it."""
        if self._stick is None or not self._stick.by_position:
            return
        self._note_writes()
        for database, known in self._written.items():
            if known is None:
                position = await _position_of(database)
                self._written = {**self._written, database: position}


def mark_of(scope: Reader) -> Mark | None:
    """Return what a scope must see: what it was told, or what the unit around it reads after, if that one sticks."""
    if scope.after is not None or not scope.read_only:
        return scope.after
    outer: object = inherited()
    if not isinstance(outer, Written):
        return None
    return outer._after if outer._stick is None else outer._mark()


async def _position_of(database: Replicated) -> int:
    """Return the position, or ``UNKNOWN``: a failure must not make an error of a COMMIT that is done."""
    try:
        with anyio.fail_after(ASKING_LIMIT):
            position = await database._position()
    except Exception as exc:
        logger.warning(
            "%r did not tell its WAL position after a COMMIT, so its client reads from the primary for %g seconds: %r",
            database,
            LASTS,
            exc,
        )
        return UNKNOWN
    return UNKNOWN if position is None else position
