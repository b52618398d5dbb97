"""Cursors of aiosqlite that execute a statement and fetch its rows in one turn of the thread.

Holds: the cursors that SQLAlchemy gets, with all rows or with some at a time.
Must not know: connections beyond how to take a turn, engines, sessions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any


class Cursor:
    """A cursor with the rows of its statement."""

    __slots__ = ("_adapted", "_cursor", "_rows", "arraysize", "description", "lastrowid", "rowcount")

    server_side: bool = False

    def __init__(self, adapted: Any) -> None:
        self._adapted = adapted
        self._cursor: Any = None
        self._rows: deque[Any] = deque()
        self.arraysize: int = 1
        self.description: Any = None
        self.lastrowid: Any = None
        self.rowcount: int = -1

    def execute(self, operation: str, parameters: Any = None) -> None:
        """Execute a statement and fetch its rows."""
        raw = self._adapted._connection
        raw.note(operation)
        args = (operation,) if parameters is None else (operation, parameters)
        self._adapted.turn(self._execute, raw._connection, *args, stoppable=True)

    def executemany(self, operation: str, parameters: Any) -> None:
        """Execute a statement once for each of ``parameters``."""
        raw = self._adapted._connection
        raw.only_reads = False
        self._adapted.turn(self._executemany, raw._connection, operation, parameters, stoppable=True)

    def _execute(self, driver: Any, *args: Any) -> None:
        """Do that in the thread; sqlite3 resets the statement with its last row, and after an error."""
        cursor = driver.cursor()
        cursor.execute(*args)
        if cursor.description:
            self._rows = deque(cursor.fetchall())
        self._note(cursor)

    def _executemany(self, driver: Any, *args: Any) -> None:
        cursor = driver.cursor()
        cursor.executemany(*args)
        self._note(cursor)

    def _note(self, cursor: Any) -> None:
        self.description, self.rowcount, self.lastrowid = cursor.description, cursor.rowcount, cursor.lastrowid

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return the next rows."""
        rows = self._rows
        return [rows.popleft() for _ in range(min(size or self.arraysize, len(rows)))]

    def fetchall(self) -> list[Any]:
        """Return the rest of the rows."""
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def setinputsizes(self, *_sizes: Any) -> None:
        """Do nothing: sqlite3 has no sizes."""

    async def _async_soft_close(self) -> None:
        """Keep the rows; the statement is over."""

    def close(self) -> None:
        """Forget the rows."""
        self._rows.clear()


class StreamingCursor(Cursor):
    """A cursor that fetches its rows when they are asked for, each time in a turn."""

    __slots__ = ("_reads",)

    server_side = True

    def __init__(self, adapted: Any) -> None:
        super().__init__(adapted)
        self._reads = False

    def execute(self, operation: str, parameters: Any = None) -> None:
        """Execute a statement."""
        self._reads = operation[:6] == "SELECT"
        super().execute(operation, parameters)

    def _execute(self, driver: Any, *args: Any) -> None:
        """Fetch the first row as well, because SQLAlchemy asks for that one at once."""
        self._cursor = cursor = driver.cursor()
        self._adapted._connection.streams.add(cursor)
        cursor.execute(*args)
        self._rows = deque(cursor.fetchmany(1))
        self._note(cursor)

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        return self._rows.popleft() if self._rows else self._fetch(self._cursor.fetchone)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return the next rows."""
        size = size or self.arraysize
        rows = super().fetchmany(size)
        if len(rows) < size:
            rows += self._fetch(self._cursor.fetchmany, size - len(rows))
        return rows

    def fetchall(self) -> list[Any]:
        """Return the rest of the rows."""
        rows: list[Any] = super().fetchall() + self._fetch(self._cursor.fetchall)
        return rows

    def _fetch(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._adapted.turn(function, *args, stoppable=True)

    def close(self) -> None:
        """End the statement; one that does not only read may have to commit, and so to wait."""
        super().close()
        cursor, self._cursor = self._cursor, None
        raw = self._adapted._connection
        if cursor is None or not raw._running:  # a connection that is closed has ended its statements
            return
        if self._reads and raw.idle() is not None:
            cursor.close()
        else:
            self._adapted.turn(cursor.close)
