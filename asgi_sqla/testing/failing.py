"""Failures to order, to test one's own handling of them.

Lives here: a COMMIT that fails, and a connection that is lost.
Must not know: how the application handles them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError

from asgi_sqla.database import Database
from asgi_sqla.engine.options import checked_count
from asgi_sqla.engine.urls import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.testing.statements import CONTROL, checked_database, is_of


@contextmanager
def fail_commit(
    database: Database | None = None, error: BaseException | None = None, *, times: int = 1
) -> Iterator[None]:
    """Have the next COMMIT of ``database`` (``db`` if left out) inside the block fail, ``times`` of them.

    What was to be committed is rolled back, as the database does, and ``error`` raised: an OperationalError
    unless given, such as ``IntegrityError("COMMIT", None, Exception())``.
    """
    of = checked_database(database, "fail_commit")
    if not isinstance(error, BaseException | None):
        raise ConfigurationError(
            f'error={hidden(error)} is no exception; write one such as IntegrityError("COMMIT", None, Exception())'
        )
    left = [error or OperationalError("COMMIT", None, Exception("fail_commit()"))] * checked_count("times", times)

    def fail(connection: Connection) -> None:
        if left and is_of(connection, of):
            connection.dialect.do_rollback(connection.connection)
            raise left.pop()

    event.listen(Engine, "commit", fail)
    try:
        yield
    finally:
        event.remove(Engine, "commit", fail)


@contextmanager
def kill_connection(database: Database | None = None) -> Iterator[None]:
    """Have the next statement through ``database`` (``db`` if left out) inside the block find its connection lost.

    The driver raises what it does when the server went away; one connection is lost, the next one works. With
    ``rolled_back()`` write ``mode="copy"``: a transaction does not outlive its connection.
    """
    of = checked_database(database, "kill_connection")
    killed: list[Connection] = []

    def kill(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if not killed and is_of(connection, of) and not statement.lstrip().upper().startswith(CONTROL):
            killed.append(connection)
            raw: Any = connection.connection.dbapi_connection
            raw.close()

    event.listen(Engine, "before_cursor_execute", kill)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", kill)
