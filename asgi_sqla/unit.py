"""The unit of work: all that one request, one socket message or one job does to its databases.

Lives here: ``UnitOfWork``, and the one ContextVar that holds the current one.
Must not know: ASGI, HTTP statuses, how a database is configured.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from threading import Lock
from types import MappingProxyType
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asgi_sqla.ending import Ending
from asgi_sqla.errors import NoUnitOfWorkError, WrongEventLoopError
from asgi_sqla.guard import OWN_SCOPE, GuardedSession, User, current_user, ended
from asgi_sqla.shielding import to_completion
from asgi_sqla.steps import Source, Steps, Work, walk, walk_async

_making = Lock()
_current: ContextVar[UnitOfWork | None] = ContextVar("asgi_sqla_unit", default=None)


class UnitOfWork:
    """Everything one request, one socket message or one job does to its databases.

    Get the running one with ``current_unit()``; the middleware and ``session_scope()`` make them.
    It holds at most one ``Session`` and one ``AsyncSession`` per ``Database``, ends in commit or
    rollback, and is then closed for good.
    """

    # Defaults of the class, so that a unit nobody uses costs next to nothing to make.
    loop: asyncio.AbstractEventLoop | None = None
    """The event loop its AsyncSessions live on; None where there is none."""
    users: set[User] | None = None
    """Everybody who used its sessions, kept only where someone needs to know."""
    _works: Mapping[tuple[Source, bool], Work] = MappingProxyType({})
    _ended = False
    _rollback_only = False
    _doom: BaseException | None = None

    @property
    def name(self) -> str:
        """What it is called in errors and logs."""
        return "without a name"

    def __repr__(self) -> str:
        return f"<UnitOfWork {self.name} {'ended' if self._ended else 'open'}>"

    @property
    def used(self) -> bool:
        """Whether any session was made."""
        return bool(self._works)

    @property
    def ended(self) -> bool:
        """Whether it is over, and its sessions closed for good."""
        return self._ended

    def rollback_only(self) -> None:
        """Have the unit roll back whatever the response status, as for a dry run. It is no error."""
        self._rollback_only = True

    def doom(self, cause: BaseException) -> None:
        """Make it an error to commit this unit, because ``cause`` left a scope that had joined it."""
        self._doom = self._doom or cause

    def session(self, source: Source, **options: Any) -> Session:
        """Return this unit's ``Session`` of ``source``, made on first use with ``options``."""
        work = self._works.get((source, False))
        if work is None:
            work = self._add(source, source.make_session(**options), None)
        elif self.users is not None:
            self.users.add(current_user())
        return work.session

    def async_session(self, source: Source, **options: Any) -> AsyncSession:
        """Return this unit's ``AsyncSession`` of ``source``, made on first use with ``options``.

        Raises WrongEventLoopError on any event loop but the unit's own.
        """
        self._check_loop()
        work = self._works.get((source, True))
        if work is None:
            made = source.make_async_session(**options)
            assert isinstance(made.sync_session, GuardedSession)
            work = self._add(source, made.sync_session, made)
        elif self.users is not None:
            self.users.add(current_user())
        assert work.async_session is not None
        return work.async_session

    def _add(self, source: Source, session: GuardedSession, async_session: AsyncSession | None) -> Work:
        if self._ended:
            raise ended(self)
        asynchronous = async_session is not None
        session.guard(self, self.loop if asynchronous else None, self.users)
        if self.users is not None:
            self.users.add(current_user())
        with _making:  # of two threads that come first at once, both get the one session
            work = self._works.get((source, asynchronous), Work(source, session, async_session))
            self._works = {**self._works, (source, asynchronous): work}
        return work

    def _check_loop(self) -> None:
        if self.loop is None:
            raise WrongEventLoopError(
                f"{self} has no asyncio event loop to use an AsyncSession on; use the sync session in it, "
                f"or open a unit of work in async code: {OWN_SCOPE}"
            )
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self.loop:
            where = "in a thread without an event loop" if running is None else "on another event loop"
            raise WrongEventLoopError(
                f"an AsyncSession of {self} was asked for {where}; use the sync session there, "
                f"or open a unit of work: {OWN_SCOPE}"
            )

    async def settle(self, commit: bool) -> None:
        """Commit, or roll back, every open transaction; the sessions stay usable.

        All commit in the order of first use. If one cannot, it and those after it are rolled back
        and its exception is raised, with a note of what had been committed. A cancellation waits.
        """
        if self._doom is not None or self._active():
            await to_completion(walk_async(self._ending(commit).settle()))

    async def close(self, commit: bool, cause: BaseException | None = None) -> None:
        """Settle, then close every session for good. ``cause`` is the exception the unit ends with."""
        if self._doom is not None or self._active():
            await to_completion(walk_async(self._closing(commit, cause)))
        else:
            walk(self._closing(commit, cause))

    def close_now(self, commit: bool, cause: BaseException | None = None) -> None:
        """Do what ``close`` does, in this thread; for a unit without an event loop."""
        walk(self._closing(commit, cause))

    def _active(self) -> bool:
        return any(work.session.in_transaction() for work in self._works.values())

    def _ending(self, commit: bool) -> Ending:
        return Ending(self, tuple(self._works.values()), commit and not self._rollback_only, self._doom)

    def _closing(self, commit: bool, cause: BaseException | None) -> Steps:
        ending = self._ending(commit)
        self._ended = True
        return ending.close(cause)


def enter(unit: UnitOfWork) -> Token[UnitOfWork | None]:
    """Make ``unit`` the current one; the token undoes it in ``leave``."""
    return _current.set(unit)


def leave(token: Token[UnitOfWork | None]) -> None:
    """Undo ``enter``. In another context than the one entered there is nothing to undo."""
    with suppress(ValueError):
        _current.reset(token)


def inherited_unit() -> UnitOfWork | None:
    """Return the open unit of this context, if there is one."""
    unit = _current.get()
    return None if unit is None or unit.ended else unit


def current_unit() -> UnitOfWork:
    """Return the unit of work of this request, socket message or scope.

    Raises NoUnitOfWorkError outside any, and UnitOfWorkEndedError where only an ended one is known.
    """
    unit = _current.get()
    if unit is None:
        raise NoUnitOfWorkError(
            "no unit of work here; wrap the application in SQLAlchemyMiddleware(app, database), or outside "
            f"a request open one: with session_scope() as session: ..., {OWN_SCOPE}"
        )
    if unit.ended:
        raise ended(unit)
    return unit


def _forget_after_fork() -> None:
    # The parent's unit holds the parent's connections.
    _current.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
