"""asyncpg with a COMMIT that reports its true result, and a BEGIN that travels with the first statement.

PostgreSQL answers the COMMIT of a failed transaction with the command tag ROLLBACK and no error, and asyncpg does not
read the tag. It cannot distinguish a failed transaction from an open one either. So a statement that failed on the
driver's own connection, outside SQLAlchemy, would be reported as done.

BEGIN is written without a Sync just before the first statement, which has one: two round trips for a transaction of one
statement, not three. If BEGIN fails, the server skips the statement, and asyncpg reads the error as the statement's.

Holds: the classes of connections that our engines give to asyncpg and SQLAlchemy; imported only with such an engine.
Must not know: engines, sessions.
"""

from __future__ import annotations

from collections.abc import Coroutine
from functools import cache
from typing import Any, NoReturn

import asyncpg  # type: ignore[import-untyped]
from asyncpg.protocol import Protocol  # type: ignore[import-untyped]
from asyncpg.transaction import Transaction, TransactionState  # type: ignore[import-untyped]
from sqlalchemy.dialects.postgresql import asyncpg as sqlalchemy_asyncpg

from asgi_sqla.engine.loops import await_

adapters: Any = sqlalchemy_asyncpg  # much of it has no types

VERSION: str = asyncpg.__version__
VERSIONS: tuple[tuple[int, int], tuple[int, int]] = (0, 32), (0, 33)
"""From the first, and below the second: those that the tests run with."""
PRIVATE: tuple[tuple[type[Any], tuple[str, ...]], ...] = (
    (asyncpg.Connection, ("_protocol", "_top_xact", "_transport")),
    (Protocol, ("_is_cancelling", "is_in_transaction")),
    (adapters.AsyncAdapt_asyncpg_connection, ("_handle_exception", "_start_transaction", "_transaction")),
    (adapters.AsyncAdapt_asyncpg_cursor, ("_prepare_and_execute",)),
)
"""What this room uses, and its owners do not promise."""

STARTED: Any = TransactionState.STARTED
COMMIT_REFUSED: str = "a statement had failed, so PostgreSQL answered COMMIT: ROLLBACK"


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection on which COMMIT of a failed transaction is an error."""

    __slots__ = ()

    async def _introspect_types(self, typeoids: Any, timeout: float | None) -> Any:  # noqa: ASYNC109  # as asyncpg calls it
        """Look up unknown types; asyncpg switches ``jit`` off meanwhile, which a pooler must not hand to strangers."""
        if self._stmt_cache_enabled or self.is_in_transaction():
            return await super()._introspect_types(typeoids, timeout)
        async with self.transaction(readonly=True):
            return await super()._introspect_types(typeoids, timeout)

    def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """Raise InFailedSQLTransactionError (SQLSTATE 25P02) if COMMIT was answered with ROLLBACK."""
        running: Coroutine[Any, Any, str] = super().execute(query, *args, timeout=timeout)
        return _checked(running) if query[:6] == "COMMIT" else running


async def _checked(running: Coroutine[Any, Any, str]) -> str:
    status = await running
    if status == "ROLLBACK":
        raise asyncpg.InFailedSQLTransactionError(COMMIT_REFUSED)
    return status


class _ServerSideCursor(adapters.AsyncAdapt_asyncpg_ss_cursor):  # type: ignore[misc]  # no types
    """A cursor on the server; asyncpg refuses one before the server has said that a transaction is open."""

    __slots__ = ()

    async def _prepare_and_execute(self, operation: Any, parameters: Any) -> None:
        adapted = self._adapt_connection
        if adapted._transaction is None:
            await adapters.AsyncAdapt_asyncpg_connection._start_transaction(adapted)
        await super()._prepare_and_execute(operation, parameters)


class _Pipelined(adapters.AsyncAdapt_asyncpg_connection):  # type: ignore[misc]  # no types
    """SQLAlchemy's adapter of a connection."""

    __slots__ = ()

    def cursor(self, server_side: bool = False) -> Any:
        """Return a cursor."""
        return _ServerSideCursor(self) if server_side else super().cursor()

    async def _start_transaction(self) -> None:
        """Write BEGIN; the cursor that called this writes its statement next, and nothing comes between."""
        con = self._connection
        protocol = con._protocol
        level = self.isolation_level
        if level == "autocommit":
            return
        if con._top_xact is not None or con.is_closed() or protocol.is_in_transaction() or protocol._is_cancelling():
            await super()._start_transaction()
            return
        transaction = Transaction(con, level, self.readonly, self.deferrable)
        con._transport.write(_begin(level, self.readonly, self.deferrable))
        transaction._state = STARTED
        self._keep(transaction)

    def commit(self) -> None:
        """Commit, without the layers around asyncpg's own transaction."""
        if self._transaction is not None:
            self._end("COMMIT;", TransactionState.COMMITTED)

    def rollback(self) -> None:
        """Roll back, without the layers around asyncpg's own transaction."""
        if self._transaction is not None:
            self._end("ROLLBACK;", TransactionState.ROLLEDBACK)

    def _end(self, sql: str, state: Any) -> None:
        transaction = self._transaction
        self._keep(None)  # whatever the answer is, it has ended
        try:
            status = await_(asyncpg.Connection.execute(self._connection, sql))
            if status == "ROLLBACK" and sql == "COMMIT;":
                raise asyncpg.InFailedSQLTransactionError(COMMIT_REFUSED)  # handled as the driver's own
        except BaseException as exc:
            transaction._state = TransactionState.FAILED
            if isinstance(exc, Exception):
                self._handle_exception(exc)
            raise
        transaction._state = state

    def _handle_exception(self, error: Exception) -> NoReturn:
        # An error of the server that leaves no transaction is BEGIN's own: the next statement has to begin again.
        if isinstance(error, asyncpg.PostgresError) and not self._connection._protocol.is_in_transaction():
            self._keep(None)
        super()._handle_exception(error)
        raise AssertionError  # unreachable: it raises

    def _keep(self: Any, transaction: Any) -> None:
        self._connection._top_xact = self._transaction = transaction
        if hasattr(self, "_started"):  # in SQLAlchemy 2.0
            self._started = transaction is not None


class _Dbapi(adapters.AsyncAdapt_asyncpg_dbapi):  # type: ignore[misc]  # no types
    """SQLAlchemy's adapter of the driver."""

    def connect(self, *arg: Any, **kw: Any) -> Any:
        """Connect; a connection of the user's own ``async_creator`` is left as it is, if it is of another kind."""
        adapted: Any = super().connect(*arg, **kw)
        ours = isinstance(adapted._connection, asyncpg.Connection)
        if ours and type(adapted) is adapters.AsyncAdapt_asyncpg_connection:
            adapted.__class__ = _Pipelined
        return adapted


@cache
def _begin(isolation_level: str | None, readonly: bool, deferrable: bool) -> bytes:
    """Return what begins a transaction."""
    sql = "BEGIN"
    if isolation_level:
        sql += f" ISOLATION LEVEL {isolation_level.replace('_', ' ').upper()}"
    return _unsynced(sql + " READ ONLY" * readonly + " DEFERRABLE" * deferrable)


def _unsynced(sql: str) -> bytes:
    """Return the messages Parse, Bind and Execute of ``sql``, without a Sync."""
    return (
        _message(b"P", b"\0" + sql.encode() + b"\0" + b"\0\0")
        + _message(b"B", b"\0\0" + b"\0\0" + b"\0\0" + b"\0\0")
        + _message(b"E", b"\0" + b"\0\0\0\0")
    )


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def connection_class() -> type[Any]:
    """Return the ``connection_class`` for ``asyncpg.connect()``."""
    return _Connection


def is_able() -> bool:
    """Return True: every PostgreSQL can."""
    return True


def arguments(_asynchronous: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments for ``create_async_engine()``, and those for the driver."""
    return {"module": _Dbapi(asyncpg)}, {}


def prepare(_engine: object) -> None:
    """Do nothing: the arguments are enough."""
