"""The sessions of one unit of work: at most one of each kind for each database.

Lives here: when a session is made, and on which event loop it may be.
Must not know: how it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, NamedTuple, Protocol
from weakref import ref

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from asgi_sqla.engines import Role
from asgi_sqla.errors import WrongEventLoopError
from asgi_sqla.guard import OWN_SCOPE, GuardedSession, User, current_user
from asgi_sqla.steps import Work, running_loop


class Manner(NamedTuple):
    """How a session is to work: on which of its database's engines, and how isolated."""

    role: Role
    isolation_level: str | None


class Source(Protocol):
    """Where sessions come from: a ``Database``, which lives above."""

    def make_session(self, manner: Manner, options: Mapping[str, Any]) -> GuardedSession:
        """Return a new ``Session``."""
        ...

    def make_async_session(self, manner: Manner, options: Mapping[str, Any]) -> AsyncSession:
        """Return a new ``AsyncSession`` around a guarded one."""
        ...


class Sessions:
    """The sessions of ``unit``, in the order of first use."""

    __slots__ = ("_awaits", "_by_source", "_lock", "_loop", "_unit", "users", "works", "writes")

    def __init__(self, unit: object, *, awaits: bool = True) -> None:
        self._unit = ref(unit)  # or each would keep the other alive
        self._awaits = awaits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = Lock()
        self._by_source: dict[tuple[Source, bool], Work] = {}
        self.works: tuple[Work, ...] = ()
        self.writes: bool = False
        """Whether any of them may have something to commit."""
        self.users: set[User] | None = None
        """Everybody who used a session, kept only where someone needs to know."""

    def sync(self, source: Source, manner: Callable[[], Manner], options: Mapping[str, Any]) -> Session:
        """Return the ``Session`` of ``source``, made on first use in the ``manner()`` that is asked for then."""
        work = self._by_source.get((source, False))
        if work is None:
            work = self._add(source, source.make_session(manner(), options))
        if self.users is not None:
            self.users.add(current_user())
        return work.session

    def asynchronous(self, source: Source, manner: Callable[[], Manner], options: Mapping[str, Any]) -> AsyncSession:
        """Return the ``AsyncSession`` of ``source``, made as ``sync`` makes its; only on the unit's event loop."""
        loop = self._checked_loop()
        work = self._by_source.get((source, True))
        if work is None:
            made = source.make_async_session(manner(), options)
            assert isinstance(made.sync_session, GuardedSession)
            work = self._add(source, made.sync_session, made, loop)
        if self.users is not None:
            self.users.add(current_user())
        assert work.async_session is not None
        return work.async_session

    @property
    def in_transaction(self) -> bool:
        """Whether any of them is."""
        for work in self.works:  # noqa: SIM110  # every request asks this, and any() takes twice as long
            if work.session.in_transaction():
                return True
        return False

    @property
    def has_committed(self) -> bool:
        """Whether anything is in a database for good already."""
        return any(work.session.guard_committed for work in self.works)

    def begun(self) -> list[SessionTransaction]:
        """Return the innermost transaction, or savepoint, that each is in."""
        innermost = [work.session.get_nested_transaction() or work.session.get_transaction() for work in self.works]
        return [transaction for transaction in innermost if transaction is not None]

    def failures(self, *, unhandled: bool = False) -> list[Exception]:
        """Return what error of the database each ran into; on request only where nothing was rolled back since."""
        sessions = [work.session for work in self.works if work.session.guard_unhandled or not unhandled]
        return [session.guard_error for session in sessions if session.guard_error is not None]

    def _add(
        self,
        source: Source,
        session: GuardedSession,
        async_session: AsyncSession | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Work:
        asynchronous = async_session is not None
        session.guard(self._unit(), loop, self.users)
        if session.guard_writes:
            self.writes = True
        with self._lock:  # of two threads that come first at once, both get the one session
            work = self._by_source.setdefault((source, asynchronous), Work(source, session, async_session, loop))
            self.works = tuple(self._by_source.values())
        return work

    def _checked_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running event loop, the only one for AsyncSessions of this unit from now on."""
        running = running_loop() if self._awaits else None
        self._loop = self._loop or running
        if running is not None and running is self._loop:
            return running
        where = "where no asyncio event loop runs" if running is None else "on another event loop"
        where = where if self._awaits else "in a sync scope"
        raise WrongEventLoopError(
            f"an AsyncSession of {self._unit()} was asked for {where}; use the sync session there, "
            f"or open a unit of work in async code: {OWN_SCOPE}"
        )


NONE = Sessions(Sessions)
"""The sessions of a unit that nobody has used."""
