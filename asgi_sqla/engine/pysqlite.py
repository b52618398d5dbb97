"""sqlite3's connections that note whether a transaction only reads, also for code that goes past the session.

Holds: the classes of connections and cursors, and how an engine makes them; imported only with such an engine.
Must not know: sessions, or what is decided on it.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from asgi_sqla.engine.sqlite_reads import Reads


class NotingCursor(sqlite3.Cursor):
    """A cursor that has its connection note what it executes."""

    def execute(self, sql: str, *parameters: Any) -> Any:
        """Execute a statement."""
        if sql[:6] != "SELECT":  # in line, as every statement comes this way
            self.connection.only_reads = False  # type: ignore[attr-defined]  # it is one of ours
        return super().execute(sql, *parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        """Execute a statement once for each of ``parameters``."""
        self.connection.only_reads = False  # type: ignore[attr-defined]  # as above
        return super().executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Any:
        """Commit, and execute several statements."""
        self.connection.only_reads = False  # type: ignore[attr-defined]  # as above
        return super().executescript(sql_script)


class NotingConnection(Reads, sqlite3.Connection):
    """A connection with such cursors."""

    is_known: bool = True
    """Whether only such cursors have been made on it."""

    def begin_deferred(self) -> None:
        """Begin; it takes no lock."""
        sqlite3.Cursor(self).execute("BEGIN DEFERRED")
        if self.is_known:
            self.note_begin(self.total_changes)

    def cursor(self, factory: Any = None) -> Any:
        """Return a cursor; one of another class may execute what nobody notes."""
        if factory is None:
            return NotingCursor(self)
        self.is_known = False
        self.note_other()
        return super().cursor(factory)

    def execute(self, sql: str, *parameters: Any) -> Any:
        """Execute a statement on a new cursor."""
        return NotingCursor(self).execute(sql, *parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        """Execute a statement once for each of ``parameters``, on a new cursor."""
        return NotingCursor(self).executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Any:
        """Commit, and execute several statements on a new cursor."""
        return NotingCursor(self).executescript(sql_script)

    def blobopen(self, *args: Any, **options: Any) -> Any:
        """Open a value to read or write it in parts, which counts no change."""
        self.note_other()
        return super().blobopen(*args, **options)


def prepare(engine: Engine) -> None:
    """Have ``engine`` make such connections, unless its user has another class for them."""
    event.listen(engine, "do_connect", _choose_class)


def _choose_class(_dialect: object, _record: object, args: list[Any], arguments: dict[str, Any]) -> None:
    plain = "autocommit" in arguments or "cache=shared" in str(args)  # with a shared cache even an end may wait
    if not plain:
        arguments.setdefault("factory", NotingConnection)
