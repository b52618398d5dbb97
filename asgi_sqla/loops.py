"""An async engine and the event loop it belongs to: when the loop ends, so does the engine.

Lives here: how that end is noticed, whoever runs the loop, and what is done then.
Must not know: how engines are made, or for whom.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

logger: logging.Logger = logging.getLogger("asgi_sqla")


class LoopEngine:
    """An async engine that is disposed with the running event loop; ``forget`` is called first.

    An async generator that has begun is closed by ``loop.shutdown_asyncgens()``, which every runner
    awaits. (A mapping weakly keyed by loop never frees: the engine refers to its loop.)
    """

    __slots__ = ("_end", "_entries", "_forget", "engine")

    def __init__(self, engine: AsyncEngine, forget: Callable[[], object]) -> None:
        self.engine: AsyncEngine = engine
        self._forget = forget
        self._entries: WeakSet[ConnectionPoolEntry] = WeakSet()
        # Told of each connection once: to be told of each checkout costs every request.
        event.listen(engine.sync_engine, "connect", self._connected)
        self._end = self._until_loop_ends()
        # Started by hand, as it awaits nothing before its yield: from here on the loop knows it.
        with contextlib.suppress(StopIteration):
            self._end.__anext__().send(None)

    async def dispose(self) -> None:
        """Close the idle connections; one that is out is closed when it comes back."""
        self._entries.clear()
        await self._end.aclose()

    async def _until_loop_ends(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._forget()
            for entry in [one for one in self._entries if one.in_use]:
                try:  # nobody can give it back: what it waits for runs no more
                    await greenlet_spawn(entry.invalidate)
                except Exception:  # somebody else who ends with the loop may be at it as well
                    logger.exception("a connection could not be closed when its event loop ended")
            await self.engine.dispose()

    def _connected(self, _connection: object, entry: ConnectionPoolEntry) -> None:
        self._entries.add(entry)
