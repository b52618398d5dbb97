"""Failures on request, to test how an application handles them.

Holds: a COMMIT that fails, and a connection that is lost.
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
from asgi_sqla.engine.given import checked_count
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.testing.statements import CONTROL, checked_database, is_of


@contextmanager
def fail_commit(
    database: Database | None = None, error: BaseException | None = None, *, times: int = 1
) -> Iterator[None]:
    """Make the next COMMIT of ``database`` inside the block fail.

    The work is rolled back, as the database does, and ``error`` is raised.

    - ``database``: the ``Database``; default: the global ``db``.
    - ``error``: the exception to raise, such as ``IntegrityError("COMMIT", None, Exception())``; default: an
      OperationalError.
    - ``times``: how many COMMITs fail; default: 1.

    Raises ConfigurationError for a wrong argument.
    """
    of = checked_database(database, "fail_commit")
    if not isinstance(error, BaseException | None):
        raise ConfigurationError(
            f'error={hidden(error)} is not an exception; write one such as IntegrityError("COMMIT", None, Exception())'
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
    """Lose the connection of the next statement through ``database`` inside the block.

    The driver raises what it raises when the server goes away. One connection is lost, and the next one works. Inside
    ``rolled_back()`` use ``mode="copy"``, because a transaction ends with its connection.

    - ``database``: the ``Database``; default: the global ``db``.

    Raises ConfigurationError for a wrong argument.
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
