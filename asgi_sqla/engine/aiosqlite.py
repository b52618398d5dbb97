"""aiosqlite with one turn of its thread for each statement, and none where nothing can wait.

SQLAlchemy's adapter takes five: for a cursor, for the statement, for its rows, for the end of the cursor, and one for
the end of the transaction even if it only read. The connection stays aiosqlite's, with its thread and its methods, for
users, for the end of a loop, and for whatever else uses it.

What runs on the event loop, while the thread has nothing to do, waits for no lock and no disk: BEGIN DEFERRED, and the
end of a transaction that only read. A read never does: SQLite can be told how many instructions it may execute, but one
instruction may count a million rows, which took 10 ms, or wait for a slow disk.

Holds: the connection for SQLAlchemy, and what it must know of aiosqlite's; imported only with such an engine.
Must not know: engines' options, sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any
from weakref import WeakSet

import aiosqlite
from sqlalchemy.dialects.sqlite import aiosqlite as sqlalchemy_aiosqlite
from sqlalchemy.engine import Engine

from asgi_sqla.engine.aiosqlite_cursors import Cursor, StreamingCursor
from asgi_sqla.engine.interrupting import AGAIN
from asgi_sqla.engine.loops import await_, in_greenlet
from asgi_sqla.engine.sqlite_reads import Reads
from asgi_sqla.engine.waiter import Waiter

adapters: Any = sqlalchemy_aiosqlite  # much of it has no types

VERSION: str = aiosqlite.__version__
VERSIONS: tuple[tuple[int, int], tuple[int, int]] = (0, 22), (0, 23)
"""From the first, and below the second: those that the tests run with."""
PRIVATE: tuple[tuple[type[Any], tuple[str, ...]], ...] = (
    (aiosqlite.Connection, ("_execute",)),
    (adapters.AsyncAdapt_aiosqlite_connection, ("_handle_exception",)),
)
"""What this room uses, and its owners do not promise; SQLAlchemy itself uses ``_connection`` and ``_tx``."""
_ATTRIBUTES = ("_connection", "_running", "_tx")


class TurnTaking(Reads, aiosqlite.Connection):
    """A connection that knows whether its thread has something to do, and whether its transaction only read."""

    begun: int = 0
    """How many turns the event loop has asked for."""
    ended: int = 0
    """How many the thread has ended, in their order."""
    streams: WeakSet[Any]
    """sqlite3's cursors whose rows are still to come."""

    def idle(self) -> Any:
        """Return sqlite3's connection if the thread has nothing to do and may be left out; else None."""
        return self._connection if self.begun == self.ended and self._running and in_greenlet() else None

    async def turn(self, function: Callable[..., Any], *args: Any, stoppable: bool = False) -> Any:
        """Return what ``function`` returns in the thread; a cancellation ends it if it is ``stoppable``."""
        if self._connection is None or not self._running:
            raise ValueError("no active connection")  # as aiosqlite does, and as SQLAlchemy understands it
        self.begun += 1
        number, future = self.begun, Waiter(asyncio.get_running_loop())
        turn = _Turn(self, future, function, args)
        told: Any = future  # aiosqlite's thread sets its result on the event loop
        self._tx.put_nowait((told, turn))
        try:
            await future
        except asyncio.CancelledError:
            if stoppable:
                self._interrupt(number)
            raise
        return turn.result

    def stop(self) -> Any:
        """Close, and end the thread."""
        self._let_go()
        return super().stop()

    async def close(self) -> None:
        """Close, and wait for that."""
        self._let_go()
        await super().close()

    def _let_go(self) -> None:
        """Have the thread end what is open before it closes the connection.

        SQLite keeps a connection that was closed with an unfinished statement, and its locks, until that is freed.
        """
        if self._connection is not None and self._running:
            self.begun += 1
            self._tx.put_nowait((None, _Turn(self, None, _end_all, (self._connection, self.streams))))

    def _interrupt(self, number: int) -> None:
        """Interrupt until the thread has ended a turn."""
        if self.ended < number and self._connection is not None:
            self._connection.interrupt()
            asyncio.get_running_loop().call_later(AGAIN, self._interrupt, number)

    async def _execute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Do what a user of aiosqlite's own methods asks for, and note it."""
        self.only_reads = False
        self.begun += 1
        turn = _Turn(self, None, partial(fn, **kwargs), args)
        await super()._execute(turn)  # type: ignore[no-untyped-call]  # aiosqlite's own has no types
        return turn.result


def _end_all(driver: Any, streams: WeakSet[Any]) -> None:
    for cursor in list(streams):
        cursor.close()
    if driver.in_transaction:
        driver.rollback()


class _Turn:
    """A call in the thread, which keeps the last one while it waits: so this one lets go of what it was made with."""

    __slots__ = ("_call", "result")

    def __init__(
        self,
        raw: TurnTaking,
        future: Waiter | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self._call: Any = raw, future, function, args
        self.result: Any = None

    def __call__(self) -> None:
        (raw, future, function, args), self._call = self._call, None
        try:
            if future is None or not future.cancelled():
                self.result = function(*args)
        finally:
            raw.ended += 1


class _Adapted(adapters.AsyncAdapt_aiosqlite_connection):  # type: ignore[misc]  # no types
    """What SQLAlchemy uses: the adapter of aiosqlite with other cursors, and ends that need no turn."""

    __slots__ = ()

    _connection: TurnTaking

    def cursor(self, server_side: bool = False) -> Any:
        """Return a cursor; nothing is asked of the thread."""
        return StreamingCursor(self) if server_side else Cursor(self)

    def turn(self, function: Callable[..., Any], *args: Any, stoppable: bool = False) -> Any:
        """Return what ``function`` returns in the thread."""
        try:
            return await_(self._connection.turn(function, *args, stoppable=stoppable))
        except Exception as error:
            self._handle_exception(error)

    def begin_deferred(self) -> None:
        """Begin; it takes no lock, so it needs no turn unless the thread is in use."""
        raw = self._connection
        driver = raw.idle()
        if driver is None:
            self.run_async(methodcaller("execute", "BEGIN DEFERRED"))
            return
        driver.execute("BEGIN DEFERRED")
        raw.note_begin(driver.total_changes)

    def commit(self) -> None:
        """Commit; what only read is ended without a turn, as it waits for nothing."""
        driver = self._connection.idle()
        if driver is None:  # the thread is in use, or the connection is closed
            super().commit()
        else:
            self._end(driver, driver.commit)

    def rollback(self) -> None:
        """Roll back, as ``commit`` does."""
        driver = self._connection.idle()
        if driver is None:
            super().rollback()
        else:
            self._end(driver, driver.rollback)

    def _end(self, driver: Any, end: Callable[[], Any]) -> None:
        raw = self._connection
        if not driver.in_transaction:
            return
        if raw.has_only_read(driver.total_changes):
            end()
        else:
            self.turn(end)

    @property
    def isolation_level(self) -> Any:
        """When sqlite3 begins a transaction by itself; None for never."""
        return self._connection.isolation_level

    @isolation_level.setter
    def isolation_level(self, value: Any) -> None:
        driver = self._connection.idle()
        if driver is not None and not driver.in_transaction:  # within one, None commits
            driver.isolation_level = value
        else:
            self.turn(setattr, self._connection._connection, "isolation_level", value)

    def set_progress_handler(self, handler: Any, steps: int) -> None:
        """Have ``handler`` called each ``steps`` instructions of SQLite; None for no handler."""
        self._call(methodcaller("set_progress_handler", handler, steps))

    def create_function(self, *args: Any, **kwargs: Any) -> None:
        """Create a function of SQL."""
        self._call(methodcaller("create_function", *args, **kwargs))

    def _call(self, method: Callable[[Any], Any]) -> None:
        driver = self._connection.idle()
        if driver is not None:
            method(driver)
        else:
            self.turn(method, self._connection._connection)


def prepare(engine: Engine) -> None:
    """Have ``engine`` make such connections; those of a user's own ``creator`` stay as they are."""
    dialect: Any = engine.dialect
    connect = dialect.connect

    def connect_adapted(*args: Any, **kwargs: Any) -> Any:
        adapted = connect(*args, **kwargs)
        raw = adapted._connection
        # A user may want sqlite3 to refuse other threads, or to begin transactions by itself. With a shared cache even
        # BEGIN waits for what other connections do.
        plain = kwargs.get("check_same_thread") is not False or "autocommit" in kwargs or "cache=shared" in str(args)
        if plain or type(raw) is not aiosqlite.Connection:
            return adapted
        raw.__class__ = TurnTaking  # SQLAlchemy has opened it, which no other class of it could take part in
        made: Any = raw
        made.streams = WeakSet()
        return _Adapted(adapted.dbapi, raw)

    dialect.connect = connect_adapted


def is_able() -> bool:
    """Return whether a connection has the attributes that this room uses."""
    made = vars(aiosqlite.Connection(lambda: None, 1))  # type: ignore[arg-type, return-value]  # it is not opened
    return all(name in made for name in _ATTRIBUTES)


def ahead_of(_fairy: object) -> None:
    """Return None: there is no network on which another statement could travel."""
