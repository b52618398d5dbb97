"""asyncpg's connections with a COMMIT that reports its true result.

PostgreSQL answers the COMMIT of a failed transaction with the command tag ROLLBACK and no error, and asyncpg does not
read the tag. It cannot distinguish a failed transaction from an open one either. So a statement that failed on the
driver's own connection, outside SQLAlchemy, would be reported as done.

Holds: the class of connections that our engines give to asyncpg; imported only with such an engine.
Must not know: adapters, engines, sessions.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from asgi_sqla.engine.asyncpg_messages import unsynced

ASKING_LIMIT = 1.0
"""Seconds to ask a server to end a statement."""
_asking: set[Any] = set()
"""The tasks that ask; an event loop keeps only weak references to its tasks."""
COMMIT_REFUSED: str = "a statement had failed, so PostgreSQL answered COMMIT: ROLLBACK"


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection on which COMMIT of a failed transaction is an error."""

    __slots__ = ("ahead", "commit_sent", "last", "refusal")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ahead: str | None = None
        self.last: str | None = None
        self.commit_sent: bool = False
        self.refusal: Exception | None = None

    def send_ahead(self) -> None:
        """Write what travels with the next message."""
        sql, self.ahead = self.ahead, None
        if sql is not None:
            self._transport.write(unsynced(sql))

    def executemany(self, *args: Any, **kwargs: Any) -> Any:
        """Execute, and send what travels with that."""
        self.send_ahead()
        return super().executemany(*args, **kwargs)

    async def _introspect_types(self, typeoids: Any, timeout: float | None) -> Any:  # noqa: ASYNC109  # as asyncpg calls it
        """Look up unknown types; asyncpg switches ``jit`` off meanwhile, which a pooler must not hand to strangers."""
        if self._stmt_cache_enabled or self.is_in_transaction():
            return await super()._introspect_types(typeoids, timeout)
        async with self.transaction(readonly=True):
            return await super()._introspect_types(typeoids, timeout)

    def terminate(self) -> None:
        """Terminate; the server is still asked to end the statement whose caller was cancelled.

        asyncpg asks in a task, and drops it. anyio repeats a cancellation, and so has SQLAlchemy terminate at once.
        """
        asking = [task for task in getattr(self, "_cancellations", ()) if not task.done()]
        if asking:
            self._cancellations.clear()
            _asking.update(asking)
            for task in asking:
                task.add_done_callback(_asking.discard)
                task.get_loop().call_later(ASKING_LIMIT, task.cancel)
        super().terminate()

    def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """Raise InFailedSQLTransactionError (SQLSTATE 25P02) if COMMIT was answered with ROLLBACK."""
        running: Coroutine[Any, Any, str] = super().execute(query, *args, timeout=timeout)
        return _checked(running) if query[:6] == "COMMIT" else running


CONNECTION: type[Any] = _Connection
"""What our engines give to asyncpg."""


async def _checked(running: Coroutine[Any, Any, str]) -> str:
    status = await running
    if status == "ROLLBACK":
        raise asyncpg.InFailedSQLTransactionError(COMMIT_REFUSED)
    return status
