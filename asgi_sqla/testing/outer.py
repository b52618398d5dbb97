"""The outer transaction: one connection, opened by its first user, and rolled back at the end.

Holds: the thread or event loop of the transaction, how it ends there, and the engines on it.
Must not know: tests, units, pytest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from asgi_sqla.engine.arguments import Recipe
from asgi_sqla.engine.engines import Engines
from asgi_sqla.errors import ConfigurationError, WrongEventLoopError
from asgi_sqla.testing.savepoints import COPY, World, learn, let_go, run, savepoint_engine
from asgi_sqla.testing.turns import Turns

PROBE = "SELECT 1"
"""The statement of ``Database.check()``; it does not count as a use."""


class Outer(World):
    """One connection with the outer transaction, and the engine on it."""

    kind = "a Session"

    def __init__(self, real: Engine, owner: Inside, *, awaits: bool = False) -> None:
        self._real = real
        self._owner = owner
        self.turns: Turns = Turns(awaits=awaits)
        self._connection: Connection | None = None
        self._over: str | None = None
        self.used: bool = False
        """Whether it has run a statement."""
        self.engine: Engine = savepoint_engine(real, self)

    def end(self, *, keep: bool = True) -> None:
        """Roll back; return the connection to its pool, or close it if there is no pool to ``keep`` it."""
        self._over = self._over or "it has ended"
        let_go(self._real, self.engine)
        self.turns.end()
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if not keep:  # at once, before any await, as the pool is about to close checked-out connections
            raw: Any = connection.connection.dbapi_connection
            connection.detach()
            raw.rollback()
            raw.close()
            return
        with contextlib.closing(connection):
            connection.rollback()

    def connect(self) -> Any:
        """Return the driver's connection, in the outer transaction."""
        if self._over is not None:
            raise ConfigurationError(f"everything in the outer transaction is lost: {self._over}")
        if self._connection is None:
            self._connection = self._begun(self._real.connect())
            learn(self.engine.dialect, self._real.dialect)
        return self._connection.connection.dbapi_connection

    def _begun(self, connection: Connection) -> Connection:
        try:
            connection.begin()
            fairy: Any = connection.connection
            if connection.dialect.name == "sqlite" and not fairy.driver_connection.in_transaction:
                run(fairy, "BEGIN")
        except BaseException:
            connection.close()
            raise
        return connection

    def lose(self) -> None:
        """Record that the connection must not be used again."""
        if self._over is None:
            self._over = f"it has lost its connection; to test what follows that, write {COPY}"
        if self._connection is not None:
            self._connection.invalidate()

    def note(self, statement: str) -> None:
        """Record a use, if ``statement`` is one."""
        if not self.used and statement != PROBE and not statement.startswith("BEGIN"):
            self._owner.claim(self)
            self.used = True


class AsyncOuter(Outer):
    """The outer transaction on an event loop; it ends with the loop at the latest."""

    kind = "an AsyncSession"

    def __init__(self, real: AsyncEngine, owner: Inside, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(real.sync_engine, owner, awaits=True)
        self.loop = loop
        self._closed = False
        self.async_engine: AsyncEngine = AsyncEngine(self.engine)
        self._ending = self._until_loop_ends()
        # Started by hand, which is possible as it awaits nothing before its yield; then the loop knows it.
        with contextlib.suppress(StopIteration):
            self._ending.__anext__().send(None)
        self._keep = False

    def connect(self) -> Any:
        """Return the driver's connection, in the outer transaction, and notice when its pool closes it."""
        if self._connection is None:
            event.listen(self._real, "invalidate", self._note_closed, insert=True)
        return super().connect()

    def end(self, *, keep: bool = True) -> None:
        """Roll back, and stop listening."""
        if event.contains(self._real, "invalidate", self._note_closed):
            event.remove(self._real, "invalidate", self._note_closed)
        super().end(keep=keep)

    def _note_closed(self, closed: object, _record: object, _exception: object) -> None:
        if self._connection is not None and self._connection.connection.dbapi_connection is closed:
            self._closed = True
            self.turns.end()
            self._over = self._over or "it has ended with its event loop"

    async def end_async(self) -> None:
        """Roll back, on its event loop."""
        self._keep = True
        await self._ending.aclose()

    async def _until_loop_ends(self) -> AsyncGenerator[None]:
        """End when closed by us, or by ``loop.shutdown_asyncgens()``, when the loop's pools close too."""
        try:
            yield
        finally:
            if self._keep or not self._closed:
                await greenlet_spawn(self.end, keep=self._keep)


class Inside(Engines):
    """The engines of a database inside its outer transaction."""

    def __init__(self, real: Engines, *, awaits: bool) -> None:
        super().__init__(None, Recipe({}))
        self._real = real
        self._awaits = awaits
        self._entered_on = asyncio._get_running_loop()
        self._outer: Outer | None = None
        self._async_outer: AsyncOuter | None = None

    def __repr__(self) -> str:
        return f"{self._real!r} inside rolled_back()"

    @property
    def in_use(self) -> bool:
        """Whether they must not be replaced: always."""
        return True

    def sync(self) -> Engine:
        """Return the sync engine."""
        with self._lock:
            if self._outer is None:
                self._outer = Outer(self._real.sync(), self)
        return self._outer.engine

    def asynchronous(self) -> AsyncEngine:
        """Return the async engine, which works on one event loop."""
        real = self._real.asynchronous()
        loop = asyncio.get_running_loop()
        if loop is self._entered_on and not self._awaits:
            raise ConfigurationError(
                "with rolled_back(...) cannot roll back an AsyncSession of this event loop, as it cannot await; "
                "write async with rolled_back(...)"
            )
        outer = self._async_outer
        if outer is not None and outer.loop is not loop and outer.used:
            raise WrongEventLoopError(
                f"an AsyncSession of {self!r} was requested on a second event loop, but its connection belongs to the "
                "first; use one loop for the whole test: with TestClient(app) as client: ..."
            )
        if outer is None or outer.loop is not loop:
            outer = self._async_outer = AsyncOuter(real, self, loop)
        return outer.async_engine

    def claim(self, outer: Outer) -> None:
        """Raise if the other kind of session is in use: one transaction cannot span two connections."""
        for other in (self._outer, self._async_outer):
            if other is not None and other is not outer and other.used:
                raise ConfigurationError(
                    f"{outer.kind} of {self!r} was used after {other.kind}: they are two connections, one transaction "
                    f"cannot span them, and neither would see the other's rows; use one kind, or write {COPY}"
                )

    def has_async(self) -> bool:
        """Return whether there can be an async engine."""
        return self._real.has_async()

    def dispose(self) -> None:
        """Do nothing: rolled_back() ends it."""

    async def dispose_async(self) -> None:
        """Do nothing: rolled_back() ends it."""

    def forget(self) -> None:
        """Drop the connections without closing them, as they belong to the parent process."""

    def end(self) -> None:
        """Roll back, from a thread without a running event loop."""
        if self._outer is not None:
            self._outer.end()
        outer = self._async_outer
        if outer is None or outer.loop.is_closed():
            return
        if outer.loop.is_running():
            asyncio.run_coroutine_threadsafe(outer.end_async(), outer.loop).result()
        else:
            outer.loop.run_until_complete(outer.end_async())

    async def end_async(self) -> None:
        """Roll back, from an event loop."""
        if self._outer is not None:
            self._outer.end()
        outer = self._async_outer
        if outer is None or outer.loop.is_closed():
            return
        if outer.loop is asyncio.get_running_loop():
            await outer.end_async()
        elif outer.loop.is_running():
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(outer.end_async(), outer.loop))
