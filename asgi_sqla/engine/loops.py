"""An async engine belongs to one event loop, and is disposed when that loop ends, whatever runs it.

Holds: how the end of a loop is noticed, what is done then, and how long it may take.
Must not know: how engines are made, or for whom.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from sqlalchemy import event, util
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import concurrency, greenlet_spawn

from asgi_sqla.engine.drivers import cut

DISPOSE_LIMIT = 2.0
"""Seconds for a server to answer when connections are closed; then they are cut."""

in_greenlet: Callable[[], bool] = concurrency.in_greenlet
"""Return whether ``await_`` may be called."""
await_: Callable[[Any], Any] = getattr(util, "await_", None) or util.await_only
"""SQLAlchemy's way to await inside its greenlet: the new name, and that of 2.0."""

awaits: ContextVar[bool] = ContextVar("asgi_sqla_awaits", default=False)
"""Whether sync drivers that can wait on an event loop do so: where a task ends a sync session, in a greenlet."""

logger: logging.Logger = logging.getLogger("asgi_sqla")


class LoopEngine:
    """An async engine that is disposed with the running event loop; ``forget`` is called first.

    Every runner awaits ``loop.shutdown_asyncgens()``, which closes a started async generator. (A mapping with weak keys
    would never free a loop, because the engine refers to it.)
    """

    __slots__ = ("_end", "_entries", "_forget", "_tasks", "engine", "loop")

    def __init__(self, engine: AsyncEngine, forget: Callable[[], object]) -> None:
        self.engine: AsyncEngine = engine
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._forget = forget
        self._entries: WeakSet[ConnectionPoolEntry] = WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()
        # One event for each connection: an event for each checkout would cost every request.
        event.listen(engine.sync_engine, "connect", self._connected)
        self._end = self._until_loop_ends()
        # Started by hand, which is possible as it awaits nothing before its yield; then the loop knows it.
        with contextlib.suppress(StopIteration):
            self._end.__anext__().send(None)

    async def dispose(self) -> None:
        """Close the idle connections; a checked-out one is closed when it is returned."""
        for entry in [one for one in self._entries if one.in_use]:
            self._entries.discard(entry)
        await self._end.aclose()

    def abandon(self) -> None:
        """Dispose from any thread, on the engine's own loop, without waiting."""
        if not self.loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it was closed at this moment
                self.loop.call_soon_threadsafe(self._begin_to_dispose)

    def _begin_to_dispose(self) -> None:
        task = self.loop.create_task(self.dispose())
        self._tasks.add(task)  # a loop holds its tasks weakly
        task.add_done_callback(self._tasks.discard)

    async def _until_loop_ends(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._forget()
            for entry in [one for one in self._entries if one.in_use]:
                try:  # nothing can return it: the code that has it will not run again
                    await self._bounded(greenlet_spawn(entry.invalidate))
                except Exception:  # other code that ends with the loop may use it as well
                    logger.exception("a connection could not be closed when its event loop ended")
            await self._bounded(self.engine.dispose())

    async def _bounded(self, closing: Coroutine[Any, Any, object]) -> None:
        """Await ``closing``; after the limit cut every connection, so that none waits for a silent server."""
        task = asyncio.ensure_future(closing)
        done, _ = await asyncio.wait([task], timeout=DISPOSE_LIMIT)
        if not done:
            logger.error("%r does not answer: its connections are cut", self.engine)
            for entry in list(self._entries):
                if entry.driver_connection is not None:
                    cut(entry.driver_connection, self.engine.dialect)
            done, _ = await asyncio.wait([task], timeout=DISPOSE_LIMIT)
        if not done:
            task.cancel()
            return
        task.result()

    def _connected(self, _connection: object, entry: ConnectionPoolEntry) -> None:
        self._entries.add(entry)
