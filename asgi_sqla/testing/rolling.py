"""``rolled_back()``: everything that happens through a database inside it is undone at the end.

Holds: the context manager of both kinds, and its two modes.
Must not know: pytest.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol, TypeAlias

from anyio import to_thread

from asgi_sqla.database import Database
from asgi_sqla.engine.engines import Engines
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.session.listeners import blocking_warnings
from asgi_sqla.testing.copies import Copy
from asgi_sqla.testing.outer import Inside
from asgi_sqla.testing.statements import checked_database

Mode: TypeAlias = Literal["transaction", "copy"]


class World(Protocol):
    """What replaces the engines of a database for a while."""

    def end(self) -> None:
        """Undo everything, from a thread without a running event loop."""

    async def end_async(self) -> None:
        """Undo everything, from an event loop."""


class rolled_back:  # noqa: N801  # as contextlib's own
    """Undo, at the end of the block, everything that happens through ``database`` inside it.

    For ``with`` and ``async with``; the value is the database. Requests, ``session_scope()`` and the engines of the
    database work as usual, from any task or thread.

    - ``database``: the ``Database``; default: the global ``db``.
    - ``mode``: "transaction" runs everything in one transaction on one connection; transactions of the application are
      savepoints in it, and take turns. "copy" replaces the database with a copy, which is dropped: slower, and without
      restrictions; default: "transaction".

    In mode "transaction" constraints deferred to COMMIT are checked when the application commits. Only one kind of
    session can be used, and only one event loop. A transaction that begins inside another's ``with`` block is nested in
    it.

    In mode "copy" PostgreSQL and SQLite clone the database with its rows. MariaDB and MySQL clone it once per process,
    and fill the tables of the clone each time.

    Raises ConfigurationError for a wrong argument, at once, and for a use that the mode does not allow.
    """

    def __init__(self, database: Database | None = None, *, mode: Mode = "transaction") -> None:
        checked = checked_database(database, "rolled_back")
        if mode not in ("transaction", "copy"):
            raise ConfigurationError(f'mode={hidden(mode)} is not one of "transaction" and "copy"')
        self._database = checked
        self._mode = mode
        self._world: World | None = None
        self._undo: Callable[[], None] | None = None

    def __enter__(self) -> Database:
        if self._mode == "copy":  # idle connections would prevent the copy
            self._database.dispose()
        return self._enter(awaits=False)

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._leave().end()

    async def __aenter__(self) -> Database:
        if self._mode == "copy":
            await self._database.async_dispose()
            return await to_thread.run_sync(lambda: self._enter(awaits=True))
        return self._enter(awaits=True)

    async def __aexit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self._leave().end_async()

    def _enter(self, *, awaits: bool) -> Database:
        self._refuse_second()

        def make(real: Engines) -> Engines:
            if self._mode == "copy":
                self._world = copy = Copy(real)
                return copy.engines
            self._world = inside = Inside(real, awaits=awaits)
            return inside

        self._undo = self._database._substitute(make)
        blocking_warnings.append(False)  # nothing else waits for the event loop of a test
        return self._database

    def _refuse_second(self) -> None:
        if self._world is not None:
            raise ConfigurationError("this rolled_back() is open already; call rolled_back() again for a second one")

    def _leave(self) -> World:
        """Restore the database, and return what remains to be ended."""
        world, undo = self._world, self._undo
        assert world is not None
        assert undo is not None
        self._world = self._undo = None
        blocking_warnings.pop()
        undo()
        return world
