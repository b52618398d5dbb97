"""The sessions of one unit of work: at most one of each kind for each database.

Holds: which sessions exist, which event loop they belong to, and that none is added after the unit ends.
Must not know: how a session is made, or how it ends.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn
from weakref import ref

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import SessionTransaction

from asgi_sqla.engine.moment import moment
from asgi_sqla.errors import OWN_SCOPE, WrongEventLoopError, ended
from asgi_sqla.session.guard import GuardedSession, User, current_user, running_loop
from asgi_sqla.session.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    from asgi_sqla.session.classes import A_co, S_co

    class Database(Protocol[S_co, A_co]):
        """Where sessions come from; the class itself is in a room above."""

        def _session_of(self, unit: Any, options: Mapping[str, Any]) -> S_co: ...

        def _async_session_of(self, unit: Any, options: Mapping[str, Any]) -> A_co: ...

        def _dialect(self) -> Any:
            """Return its dialect, or None if it is not known yet."""


class UnitSession:
    """One session of a unit: its sync core, its ``AsyncSession`` if it has one, its database and its event loop."""

    __slots__ = ("async_session", "database", "loop", "session")

    def __init__(
        self,
        database: object,
        session: GuardedSession,
        async_session: AsyncSession | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.database: object = database
        self.session: GuardedSession = session
        self.async_session: AsyncSession | None = async_session
        self.loop: asyncio.AbstractEventLoop | None = loop

    @property
    def outcome(self) -> Outcome:
        """The record of its transaction."""
        return self.session.guard_outcome


class Sessions:
    """The sessions of ``unit``, in the order of first use."""

    __slots__ = ("_awaits", "_loop", "_unit", "all", "closed", "users", "writes")

    def __init__(self, unit: object, *, awaits: bool = True) -> None:
        self._unit = ref(unit)  # a strong reference would keep both alive
        self._awaits = awaits
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closed: bool = False
        """Set within ``moment`` when the unit ends: a session made later raises, as nothing would end it."""
        self.all: tuple[UnitSession, ...] = ()
        self.writes: bool = False
        """Whether any of them may have something to commit."""
        self.users: set[User] | None = None
        """Every task and thread that used a session; None where the unit does not need to know."""

    def sync(self, database: object) -> UnitSession | None:
        """Return the ``Session`` of ``database``, if there is one."""
        if self.users is not None and not isinstance(user := current_user(), int):
            self.users.add(user)  # a thread counts when it uses the session: plain dependencies run in threads
        return self._of(database, asynchronous=False)

    def asynchronous(self, database: object) -> UnitSession | None:
        """Return the ``AsyncSession`` of ``database``, if there is one; raise on another event loop than the unit's."""
        running = running_loop()
        if running is not None and self._loop is None and self._awaits:
            self._loop = running
        elif running is None or self._loop is not running:
            self._refuse_loop(running)
        if self.users is not None:
            self.users.add(current_user())
        return self._of(database, asynchronous=True)

    def add(self, made: UnitSession) -> UnitSession:
        """Add a session ``made`` on first use, and return it; of two threads at once, both get the first one."""
        unit: Any = self._unit()  # alive, and a unit
        asynchronous = made.async_session is not None
        made.loop = self._loop if asynchronous else None
        with moment:
            first = self._of(made.database, asynchronous) if self.all else None
            if first is None and not self.closed:
                made.session.guard(unit, made.loop, self.users)
                self.all = (*self.all, made)
                self.writes = self.writes or made.session.guard_writes
                first = made
        if first is None:
            made.session.guard_close()
            raise ended(unit)
        if first is made and made.session.guard_record is not None:
            unit._observe(made.database)
        return first

    def seal(self) -> None:
        """Refuse new ones from now on; ``NONE`` is that of many units, and has none anyway."""
        with moment:
            self.closed = self is not NONE

    def _of(self, database: object, asynchronous: bool) -> UnitSession | None:
        for one in self.all:
            if one.database is database and (one.async_session is not None) is asynchronous:
                return one
        return None

    def note_users(self) -> None:
        """Record from now on who uses the sessions."""
        self.users = set()
        for one in self.all:
            one.session.guard_users = self.users

    def adopt(self, unit: object) -> None:
        """Hand the sessions over to the next ``unit``."""
        self._unit = ref(unit)
        for one in self.all:
            one.session.guard(unit, one.loop, self.users)  # type: ignore[arg-type]  # a unit has the hooks
            if one.session.guard_record is not None:
                unit._observe(one.database)  # type: ignore[attr-defined]  # it is a unit

    @property
    def in_transaction(self) -> bool:
        """Whether any session is in a transaction."""
        for one in self.all:  # noqa: SIM110  # every request reads this, and any() takes twice as long
            if one.session.in_transaction():
                return True
        return False

    def begun(self) -> list[SessionTransaction]:
        """Return the innermost transaction or savepoint of each session."""
        innermost = [one.session.get_nested_transaction() or one.session.get_transaction() for one in self.all]
        return [transaction for transaction in innermost if transaction is not None]

    def failures(self, *, unhandled: bool = False) -> list[Exception]:
        """Return the database error of each session, if it had one.

        With ``unhandled`` an error counts only if nothing was rolled back since.
        """
        outcomes = [one.outcome for one in self.all]
        return [one.error for one in outcomes if one.error is not None and (one.unhandled or not unhandled)]

    def _refuse_loop(self, running: asyncio.AbstractEventLoop | None) -> NoReturn:
        """Raise, because the running event loop is not the one of this unit's AsyncSessions."""
        where = "where no asyncio event loop runs" if running is None else "on another event loop"
        where = where if self._awaits else "in a sync scope"
        raise WrongEventLoopError(
            f"an AsyncSession of {self._unit()} was requested {where}; use the sync session there, "
            f"or open a unit of work in async code: {OWN_SCOPE}"
        )


NONE = Sessions(Sessions)
"""The sessions of an unused unit."""
