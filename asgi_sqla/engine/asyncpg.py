"""asyncpg with a BEGIN that travels with the first statement, and a COMMIT that may travel with the last.

BEGIN is written without a Sync just before the first statement, which has one: two round trips for a transaction of one
statement, not three. If BEGIN fails, the server skips the statement, and asyncpg reads the error as the statement's.

Holds: the classes of adapters that our engines give to SQLAlchemy; imported only with such an engine.
Must not know: engines, sessions.
"""

from __future__ import annotations

from typing import Any, NoReturn

import asyncpg  # type: ignore[import-untyped]
from asyncpg.protocol import Protocol  # type: ignore[import-untyped]
from asyncpg.transaction import Transaction, TransactionState  # type: ignore[import-untyped]
from sqlalchemy.dialects.postgresql import asyncpg as sqlalchemy_asyncpg

from asgi_sqla.engine.asyncpg_connection import COMMIT_REFUSED, CONNECTION
from asgi_sqla.engine.asyncpg_cursors import PREPARED
from asgi_sqla.engine.asyncpg_cursors import PRIVATE as OF_CURSORS
from asgi_sqla.engine.asyncpg_last import Last
from asgi_sqla.engine.asyncpg_messages import begin
from asgi_sqla.engine.loops import await_

adapters: Any = sqlalchemy_asyncpg  # much of it has no types

VERSION: str = asyncpg.__version__
VERSIONS: tuple[tuple[int, int], tuple[int, int]] = (0, 32), (0, 33)
"""From the first, and below the second: those that the tests run with."""
PRIVATE: tuple[tuple[type[Any], tuple[str, ...]], ...] = (
    (asyncpg.Connection, ("_protocol", "_query_loggers", "_top_xact", "_transport")),
    (asyncpg.PostgresError, ("new",)),
    (Protocol, ("_is_cancelling", "is_in_transaction", "query")),
    (adapters.AsyncAdapt_asyncpg_connection, ("_handle_exception", "_prepare", "_start_transaction", "_transaction")),
    *OF_CURSORS,
)
"""What this room uses, and its owners do not promise."""

_OF_20 = hasattr(adapters.AsyncAdapt_asyncpg_connection, "_started")
"""Whether SQLAlchemy's own adapter notes twice that a transaction is open, as before 2.1."""
STARTED: Any = TransactionState.STARTED


class _ServerSideCursor(adapters.AsyncAdapt_asyncpg_ss_cursor):  # type: ignore[misc]  # no types
    """A cursor on the server; asyncpg refuses one before the server has said that a transaction is open."""

    __slots__ = ()

    async def _prepare_and_execute(self, operation: Any, parameters: Any) -> None:
        adapted = self._adapt_connection
        if adapted._transaction is None:
            await adapters.AsyncAdapt_asyncpg_connection._start_transaction(adapted)
        if isinstance(adapted, _Limited):  # a portal is bound without being executed, which asyncpg would not expect
            con = adapted._connection
            ahead, con.ahead = con.ahead, None
            if ahead is not None:
                await con.execute(ahead)
        await super()._prepare_and_execute(operation, parameters)


class _Pipelined(adapters.AsyncAdapt_asyncpg_connection):  # type: ignore[misc]  # no types
    """SQLAlchemy's adapter of a connection."""

    __slots__ = ()

    is_plain: bool = True
    """Whether nothing but BEGIN travels with its next statement."""

    def cursor(self, server_side: bool = False) -> Any:
        """Return a cursor."""
        return _ServerSideCursor(self) if server_side else PREPARED(self)

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
        con._transport.write(begin(level, self.readonly, self.deferrable))
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
        transaction, con = self._transaction, self._connection
        self._keep(None)  # whatever the answer is, it has ended
        usual = not (con.is_closed() or con._query_loggers)  # then there is nothing between it and the protocol
        try:
            status = await_(con._protocol.query(sql, None) if usual else asyncpg.Connection.execute(con, sql))
            if status == "ROLLBACK" and sql.endswith("COMMIT;"):
                raise asyncpg.InFailedSQLTransactionError(COMMIT_REFUSED)  # handled as the driver's own
        except BaseException as exc:
            transaction._state = TransactionState.FAILED
            if isinstance(exc, asyncpg.PostgresError) and self._is_in_transaction():
                self._keep(transaction)  # what travelled with COMMIT failed, because a statement had
            if isinstance(exc, Exception):
                self._handle_exception(exc)
            raise
        transaction._state = state

    def _handle_exception(self, error: Exception) -> NoReturn:
        # An error of the server that leaves no transaction is BEGIN's own: the next statement has to begin again.
        if isinstance(error, asyncpg.PostgresError) and not self._is_in_transaction():
            self._keep(None)
        super()._handle_exception(error)
        raise AssertionError  # unreachable: it raises

    def _is_in_transaction(self) -> bool:
        con = self._connection  # one that was terminated has no protocol
        return not con.is_closed() and bool(con._protocol.is_in_transaction())

    def _keep(self: Any, transaction: Any) -> None:
        self._connection._top_xact = self._transaction = transaction
        if _OF_20:
            self._started = transaction is not None


class _Limited(_Pipelined):
    """An adapter with statements that travel: a class of its own, so that others pay nothing."""

    __slots__ = ()

    is_plain: bool = False

    def set_ahead(self, ahead: str | None, last: str | None) -> None:
        """Send ``ahead`` with the next statement, once, and ``last`` with the next COMMIT."""
        adapted: Any = self
        adapted._connection.ahead, adapted._connection.last = ahead, last
        adapted.__class__ = _Pipelined if last is None and ahead is None else _Limited

    async def _prepare(self, operation: Any, invalidate_timestamp: Any) -> Any:
        prepared = await super()._prepare(operation, invalidate_timestamp)
        con = self._connection
        if con.ahead is not None and con._protocol._is_cancelling():
            await con.fetchrow(";")  # asyncpg waits until the last statement is cancelled
        con.send_ahead()  # the caller writes Bind and Execute next; what was prepared may be without a transaction
        return prepared

    def commit(self) -> None:
        """Commit, after what travels with that."""
        con = self._connection
        last, con.last = con.last, None
        if self._transaction is not None:
            self._end("COMMIT;" if last is None else f"{last};COMMIT;", TransactionState.COMMITTED)


class _Lone(_Pipelined):
    """An adapter whose next statement COMMIT follows at once."""

    __slots__ = ()

    is_plain: bool = False

    async def _prepare(self, operation: Any, invalidate_timestamp: Any) -> Any:
        prepared, attributes = await super()._prepare(operation, invalidate_timestamp)
        con = self._connection
        return prepared if con.commit_sent else Last(prepared, con), attributes

    def commit(self) -> None:
        """Do what the server has done already: succeed, or raise why not."""
        sent, refusal = self._leave()
        if not sent:
            self.commit()  # of the class that it has become
            return
        transaction = self._transaction
        self._keep(None)
        transaction._state = TransactionState.COMMITTED if refusal is None else TransactionState.FAILED
        if refusal is not None:
            self._handle_exception(refusal)

    def rollback(self) -> None:
        """Roll back, unless the server has ended the transaction by COMMIT."""
        sent, _ = self._leave()
        if sent:
            self._keep(None)
        self.rollback()

    def _leave(self) -> tuple[bool, Exception | None]:
        """Become an adapter like others; return whether COMMIT was sent, and why it was refused."""
        adapted: Any = self
        con = self._connection
        sent, refusal = con.commit_sent, con.refusal
        con.commit_sent, con.refusal = False, None
        adapted.__class__ = _Pipelined
        return sent, refusal


class _Dbapi(adapters.AsyncAdapt_asyncpg_dbapi):  # type: ignore[misc]  # no types
    """SQLAlchemy's adapter of the driver."""

    def connect(self, *arg: Any, **kw: Any) -> Any:
        """Connect; a connection of the user's own ``async_creator`` is left as it is, if it is of another kind."""
        adapted: Any = super().connect(*arg, **kw)
        ours = isinstance(adapted._connection, asyncpg.Connection)
        if ours and type(adapted) is adapters.AsyncAdapt_asyncpg_connection:
            adapted.__class__ = _Pipelined
        return adapted


class _Ahead:
    """Makes an adapter send statements ahead."""

    __slots__ = ("_adapted",)

    def __init__(self, adapted: Any) -> None:
        self._adapted = adapted

    @property
    def autocommit(self) -> bool:
        """Whether its statements run without a transaction."""
        return bool(self._adapted.autocommit)

    @property
    def commit_sent(self) -> bool:
        """Whether COMMIT went with a statement, and may have been carried out."""
        return bool(self._adapted._connection.commit_sent)

    @property
    def refusal(self) -> Exception | None:
        """What the server answered to that COMMIT, if it refused it."""
        found: Exception | None = self._adapted._connection.refusal
        return found

    def set_ahead(self, ahead: str | None, last: str | None) -> None:
        """Do what the adapter does."""
        _Limited.set_ahead(self._adapted, ahead, last)

    def commit_with_next(self, now: bool) -> None:
        """Have the adapter write COMMIT just after the next statement, unless other statements travel already."""
        adapted = self._adapted
        if now and adapted.is_plain:
            adapted.__class__ = _Lone
        elif type(adapted) is _Lone and not (now or self.commit_sent):
            adapted._leave()


def ahead_of(fairy: Any) -> _Ahead | None:
    """Return what sends statements ahead on a connection of the pool; None if it is not one of ours."""
    adapted = fairy.dbapi_connection
    ours = isinstance(adapted, _Pipelined) and isinstance(adapted._connection, CONNECTION)
    return _Ahead(adapted) if ours else None


def connection_class() -> type[Any]:
    """Return the ``connection_class`` for ``asyncpg.connect()``."""
    return CONNECTION


def is_able() -> bool:
    """Return True: every PostgreSQL can."""
    return True


def arguments(_asynchronous: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments for ``create_async_engine()``, and those for the driver."""
    return {"module": _Dbapi(asyncpg)}, {}


def prepare(_engine: object) -> None:
    """Do nothing: the arguments are enough."""
