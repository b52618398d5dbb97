"""The cursor of an asyncpg connection that executes a prepared statement without the layers above the protocol.

SQLAlchemy's and asyncpg's own make twenty calls and four coroutines of one statement. What they look at is looked at in
one place; whatever is unusual takes their way.

Holds: the class of cursors that our adapters make; imported only with such an engine.
Must not know: engines, sessions, or what travels with a statement.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from asyncpg.exceptions import OutdatedSchemaCacheError  # type: ignore[import-untyped]
from asyncpg.prepared_stmt import PreparedStatement  # type: ignore[import-untyped]
from asyncpg.protocol import Protocol  # type: ignore[import-untyped]
from sqlalchemy.dialects.postgresql import asyncpg as sqlalchemy_asyncpg

_adapters: Any = sqlalchemy_asyncpg  # much of it has no types

PRIVATE: tuple[tuple[type[Any], tuple[str, ...]], ...] = (
    (PreparedStatement, ("_state",)),
    (Protocol, ("bind_execute",)),
    (_adapters.AsyncAdapt_asyncpg_cursor, ("_prepare_and_execute",)),
)
"""What this room uses, and its owners do not promise."""

_COUNTED = frozenset((b"SELECT", b"UPDATE", b"DELETE", b"INSERT"))
_OF_21 = hasattr(_adapters.AsyncAdapt_asyncpg_cursor, "_rowcount")
"""Whether SQLAlchemy's own cursor has its public attributes as properties, as from 2.1 on."""


class _Columns(tuple[Any, ...]):  # noqa: SLOT001  # a tuple has room for no slot
    """asyncpg's attributes of a prepared statement, and how a cursor describes them; kept in SQLAlchemy's cache."""

    described: list[tuple[Any, ...]]


class _PreparedCursor(_adapters.AsyncAdapt_asyncpg_cursor):  # type: ignore[misc]  # no types
    """A cursor of a connection that begins its transactions without a word of the server."""

    __slots__ = ()

    async def _prepare_and_execute(self, operation: Any, parameters: Any) -> None:
        adapted: Any = self._adapt_connection
        cache: Any = adapted._prepared_statement_cache
        con, mutex = adapted._connection, adapted._execute_mutex
        found = None if not cache or not adapted.is_plain or mutex.locked() else cache.get(operation)
        if found is None or found[2] <= self._invalidate_schema_cache_asof or con.is_closed():
            await super()._prepare_and_execute(operation, parameters)
            return
        state = found[0]._state
        if state.closed or self._invalidate_schema_cache_asof > adapted._invalidate_schema_cache_asof:
            await super()._prepare_and_execute(operation, parameters)
            return
        await mutex.acquire()
        try:
            if adapted._transaction is None:
                await adapted._start_transaction()
            try:
                rows, status, _ = await con._protocol.bind_execute(state, parameters or (), "", 0, True, None)
            except OutdatedSchemaCacheError as exc:  # as asyncpg does
                await con.reload_schema_state()
                state.mark_closed()
                self._handle_exception(exc)
            except Exception as exc:
                self._handle_exception(exc)
            else:
                columns = found[1]
                if type(columns) is not _Columns:
                    columns = _Columns(columns)
                    columns.described = [(one.name, one.type.oid, None, None, None, None, None) for one in columns]
                    cache[operation] = found[0], columns, found[2]
                self._keep(rows, status, columns)
        finally:
            mutex.release()

    def _keep(self, rows: list[Any], status: bytes | None, columns: _Columns) -> None:
        words = status.split(b" ") if status else [b""]
        count = int(words[-1]) if words[0] in _COUNTED and words[-1].isdigit() else -1
        described = list(columns.described) or None
        cursor: Any = self
        cursor._rows = deque(rows)
        if _OF_21:
            cursor._description, cursor._rowcount = described, count
        else:
            cursor.description, cursor.rowcount = described, count


PREPARED: type[Any] = _PreparedCursor
"""What our adapters make."""
