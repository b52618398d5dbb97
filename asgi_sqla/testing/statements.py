"""Counting the statements that reach a database.

Holds: which statements count, and the two ways to limit their number.
Must not know: who sends them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine

from asgi_sqla.database import Database, db
from asgi_sqla.engine.given import checked_count
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError, WrongEventLoopError

CONTROL = ("BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK", "COMMIT", "SET ", "PRAGMA")
"""The first words of statements about the transaction or the connection, which do not count."""


class Statements(list[str]):
    """The SQL that was sent, in order, as a list of strings; one entry for an executemany."""

    def __str__(self) -> str:
        return "\n".join(f"{number}. {' '.join(sql.split())}" for number, sql in enumerate(self, 1)) or "none"


@contextmanager
def count_statements(database: Database | None = None) -> Iterator[Statements]:
    """Collect the SQL that is sent through ``database`` inside the block, by any task or thread.

    The value is a list: ``len(statements)``. Statements that begin or end transactions and savepoints do not count.

    - ``database``: the ``Database``; default: the global ``db``.

    Raises ConfigurationError for a wrong argument.
    """
    of = checked_database(database, "count_statements")
    statements = Statements()

    def note(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if is_of(connection, of) and not statement.lstrip().upper().startswith(CONTROL):
            statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@contextmanager
def assert_statements(
    database: Database | None = None,
    *,
    max: int | None = None,  # noqa: A002  # it reads well at the call
    exactly: int | None = None,
) -> Iterator[Statements]:
    """Do what ``count_statements`` does, and raise AssertionError with the SQL if the number is wrong.

    - ``database``: the ``Database``; default: the global ``db``.
    - ``max``: the highest number of statements.
    - ``exactly``: the exact number of statements.

    Raises ConfigurationError unless one of ``max`` and ``exactly`` is given.
    """
    if (max is None) == (exactly is None):
        raise ConfigurationError("assert_statements() needs max= or exactly=; write assert_statements(max=3)")
    checked_database(database, "assert_statements")
    checked_count("max" if exactly is None else "exactly", max if exactly is None else exactly)
    with count_statements(database) as statements:
        yield statements
    found = len(statements)
    if exactly is not None and found != exactly:
        raise AssertionError(f"expected {exactly} statement(s), but {found} were sent:\n{statements}")
    if max is not None and found > max:
        raise AssertionError(f"expected at most {max} statement(s), but {found} were sent:\n{statements}")


def checked_database(database: Any, call: str) -> Database:
    """Return ``database``, or ``db`` for None; for anything else raise ConfigurationError, naming ``call``."""
    if not isinstance(database, Database | None):
        raise ConfigurationError(f"database={hidden(database)} is not a Database; write {call}(Database(...))")
    return database or db


def is_of(connection: Connection, database: Database) -> bool:
    """Return whether ``connection`` is one to ``database``."""
    url = _url(database)
    return url is not None and _place(connection.engine.url) == _place(url)


def _url(database: Database) -> URL | None:
    try:
        return database.engine.url
    except ConfigurationError:
        pass
    try:
        return database.async_engine.url
    except WrongEventLoopError:  # it has only async engines, and there is no event loop in this thread
        return None


def _place(url: URL) -> tuple[object, ...]:
    return url.get_backend_name(), url.host, url.port, url.database
