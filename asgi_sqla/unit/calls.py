"""The calls that run on the sessions of a unit, and on those of the scopes inside it, and how they are interrupted.

Holds: which calls those are, whether one is a COMMIT, and the requests to their servers that are on their way.
Must not know: why they are interrupted, or how a driver asks its server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from sqlalchemy.util import greenlet_spawn

from asgi_sqla.engine.interrupting import LIMIT, Request, interruption
from asgi_sqla.session.listeners import connections_in_use
from asgi_sqla.session.watched import Watched
from asgi_sqla.unit import threads
from asgi_sqla.unit.logs import DEBUG, ERROR, WARNING, tell
from asgi_sqla.unit.unit import UnitOfWork


class Calls:
    """The calls of ``unit``, whichever task or thread makes them."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._requests: dict[Watched, asyncio.Future[None]] = {}

    def commit(self) -> bool:
        """Return whether one of them is a COMMIT."""
        return any(one.outcome.committing for one in self._connections())

    def in_threads(self) -> bool:
        """Return whether a thread makes one of them; it may still be waiting for its connection."""
        own = [one.session for one in self._unit._sessions.all]
        inside = [one.session for one in self._connections()]
        return any(one.guard_loop is None and one._guard_user is not None for one in (*own, *inside))

    def interrupt(self) -> bool:
        """Ask the server of each to end its statement; return whether one is being asked.

        A COMMIT is left alone.
        """
        for one in self._running():
            if one not in self._requests:
                self._ask(one)
        return bool(self._requests)

    def cut(self) -> bool:
        """Cut the connection of each, because its server does not end it; return whether there was one."""
        cut = [one.cut() for one in self._running()]
        if any(cut):
            tell(ERROR, self._unit, "its server does not end its statement, so its connection is cut")
        return any(cut)

    def _running(self) -> list[Watched]:
        """Return the connections on which a call is running that is no COMMIT."""
        running = [one for one in self._connections() if one.session._guard_user is not None]
        return [one for one in running if not one.outcome.committing]

    def _connections(self) -> Iterator[Watched]:
        for one in connections_in_use():
            unit = one.session.guard_unit
            while isinstance(unit, UnitOfWork) and unit is not self._unit:
                unit = unit._outer  # of a scope
            if unit is self._unit:
                yield one

    def _ask(self, one: Watched) -> None:
        try:
            request = interruption(one.connection)
        except Exception as exc:  # each driver raises its own error for a connection that it has closed meanwhile
            tell(DEBUG, self._unit, "its server is not asked to end its statement: %r", exc)
            return
        if request is None:
            return
        future: asyncio.Future[None]
        if one.connection.dialect.is_async:
            future = asyncio.ensure_future(_bounded(request))
        else:
            try:
                future = threads.future_of(threads.submit(request))
            except threads.NoThreadError as exc:
                tell(WARNING, self._unit, "no thread can ask the server to end its statement: %s", exc)
                return
        self._requests[one] = future
        future.add_done_callback(lambda done: self._asked(one, done))

    def _asked(self, one: Watched, done: asyncio.Future[None]) -> None:
        del self._requests[one]
        if not done.cancelled() and (failure := done.exception()) is not None:
            tell(WARNING, self._unit, "its server was not asked to end its statement: %r", failure)


async def _bounded(request: Request) -> None:
    async with asyncio.timeout(LIMIT):
        await greenlet_spawn(request)
