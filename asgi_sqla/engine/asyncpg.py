"""asyncpg with a COMMIT that reports its true result.

PostgreSQL answers the COMMIT of a failed transaction with the command tag ROLLBACK and no error, and asyncpg does not
read the tag. It cannot distinguish a failed transaction from an open one either. So a statement that failed on the
driver's own connection, outside SQLAlchemy, would be reported as done.

Holds: the connection class that our engines give to ``asyncpg.connect()``; imported only with such an engine.
Must not know: engines, sessions.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import asyncpg  # type: ignore[import-untyped]


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection on which COMMIT of a failed transaction is an error."""

    __slots__ = ()

    def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """Raise InFailedSQLTransactionError (SQLSTATE 25P02) if COMMIT was answered with ROLLBACK."""
        running: Coroutine[Any, Any, str] = super().execute(query, *args, timeout=timeout)
        return _checked(running) if query[:6] == "COMMIT" else running


async def _checked(running: Coroutine[Any, Any, str]) -> str:
    status = await running
    if status == "ROLLBACK":
        raise asyncpg.InFailedSQLTransactionError("a statement had failed, so PostgreSQL answered COMMIT: ROLLBACK")
    return status


def connection_class() -> type[Any]:
    """Return the ``connection_class`` for ``asyncpg.connect()``."""
    return _Connection
