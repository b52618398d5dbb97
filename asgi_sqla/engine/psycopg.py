"""psycopg with a BEGIN that travels with the first statement: two round trips for a transaction of one, not three.

libpq's pipeline mode sends both, with one Sync, so the server skips the statement if BEGIN fails. A statement without
parameters may hold several, or be a COPY; psycopg sends it by the simple protocol, and then BEGIN goes before it as
usual.

Holds: the cursor classes that our engines give to psycopg; imported only with such an engine.
Must not know: engines, sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import psycopg
from psycopg import (
    AsyncCursor,
    AsyncServerCursor,
    Column,
    Connection,
    Cursor,
    Pipeline,
    ServerCursor,
    pq,
    sql,
)
from psycopg._preparing import Prepare
from psycopg.adapt import Transformer
from sqlalchemy import event
from sqlalchemy.engine import Engine

from asgi_sqla.engine.psycopg_adapted import adapt, described
from asgi_sqla.engine.psycopg_ahead import PipelinedConnection, become_pipelined
from asgi_sqla.engine.psycopg_sending import send_after_begin

VERSION: str = psycopg.__version__
VERSIONS: tuple[tuple[int, int], tuple[int, int]] = (3, 2), (3, 4)
"""From the first, and below the second: those that the tests run with."""
PRIVATE: tuple[tuple[type[Any], tuple[str, ...]], ...] = (
    (Cursor, ("_check_results", "_convert_query", "_execute_gen", "_get_prepared", "_reset", "_set_results")),
    (Connection, ("_check_connection_ok", "_commit_gen", "_exec_command", "_get_tx_start_command", "_start_query")),
    (ServerCursor, ("_declare_gen", "_fetch_gen", "_make_declare_statement", "_scroll_gen", "_select_current_result")),
)
"""What this room uses, and its owners do not promise."""

IDLE: Any = pq.TransactionStatus.IDLE
USABLE: Any = (IDLE, pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)


class _Pipelined:
    __slots__ = ()

    @property
    def description(self: Any) -> list[Column] | None:
        """The columns of the result; None if it has none."""
        result = self.pgresult
        if result and result.nfields:
            return described(self, result)
        nothing: list[Column] | None = super().description  # type: ignore[misc]  # of Cursor
        return nothing

    def _execute_gen(
        self: Any, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Generator[Any, Any, None]:
        conn, status = self._conn, self._pgconn.transaction_status
        travels = (status == IDLE and not conn._autocommit) or (
            status in USABLE and (getattr(conn, "ahead", None) is not None or getattr(conn, "commits", False))
        )
        if travels and not (conn._pipeline or conn._tpc or self.closed):
            done = yield from self._execute_with_begin(query, params, prepare, binary)
            if done:
                return
        yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)  # type: ignore[misc]  # of Cursor

    def _execute_with_begin(
        self: Any, query: Any, params: Any, prepare: bool | None, binary: bool | None
    ) -> Generator[Any, Any, bool]:
        """Do what ``execute()`` does, with BEGIN; return False, and have done nothing, if that is not possible.

        In autocommit what travels instead of BEGIN came with a statement that is known to be a single one.
        """
        conn = self._conn
        if not self._last_query or self._last_query is not query:
            self._last_query = None
            self._tx = Transformer(self)
        try:
            statement = self._convert_query(query, params)
        except Exception:
            yield from conn._start_query()  # the transaction begins all the same, as without us
            raise
        prepared, name = self._get_prepared(statement, prepare)
        if prepared is Prepare.NO and not statement.params and not conn._autocommit:
            return False
        self._reset()
        self._query = statement
        results = yield from send_after_begin(conn, self._pgconn, _sends(self, statement, prepared, name, binary))
        if (key := conn._prepared.maybe_add_to_cache(statement, prepared, name)) is not None:
            conn._prepared.validate(key, prepared, name, results)
        self._check_results(results)
        self._set_results(results)
        self._last_query = query
        yield from conn._prepared.maintain_gen(conn)
        return True


class PipelinedCursor(_Pipelined, Cursor[Any]):  # type: ignore[misc]  # psycopg's own attributes
    """A cursor of a sync connection."""

    __slots__ = ()


class PipelinedAsyncCursor(_Pipelined, AsyncCursor[Any]):  # type: ignore[misc]  # as above
    """A cursor of an async connection."""

    __slots__ = ()


class _PipelinedServer:
    """A cursor on the server: BEGIN, DECLARE and FETCH of the first row travel together.

    SQLAlchemy asks for that row at once, in the same call. No FETCH follows the one that brought too few rows.
    """

    __slots__ = ()

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        ahead: list[Any] = []
        self._ahead, self._ended = ahead, False

    def _declare_gen(
        self: Any, query: Any, params: Any = None, binary: bool | None = None
    ) -> Generator[Any, Any, None]:
        conn, pgconn = self._conn, self._pgconn
        begins = pgconn.transaction_status == IDLE and not (conn._autocommit or conn._pipeline or conn._tpc)
        if not begins or self._described or self.closed:
            yield from super()._declare_gen(query, params, binary)  # type: ignore[misc]  # of ServerCursor
            return
        self._reset()
        self._tx = Transformer(self)
        try:
            statement = self._convert_query(self._make_declare_statement(query), params)
        except Exception:
            yield from conn._start_query()  # the transaction begins all the same, as without us
            raise
        self._format = self.format if binary is None else pq.Format(binary)
        declare = partial(pgconn.send_query_params, statement.query, statement.params, param_types=statement.types)
        fetch = sql.SQL("FETCH FORWARD 1 FROM {}").format(sql.Identifier(self._name)).as_bytes(self)
        results = yield from send_after_begin(
            conn,
            pgconn,
            [
                partial(declare, param_formats=statement.formats),
                partial(pgconn.send_query_params, fetch, None, result_format=self._format),
            ],
        )
        self._check_results(results)
        self._results = results
        self._select_current_result(0, format=self._format)
        self._described = True
        self._ahead = self._tx.load_rows(0, self.pgresult.ntuples, self._make_row)
        self._ended = not self._ahead

    def _fetch_gen(self: Any, num: int | None) -> Generator[Any, Any, list[Any]]:
        if self.closed:
            yield from super()._fetch_gen(num)  # type: ignore[misc]  # it raises
        rows: list[Any] = self._ahead
        self._ahead = []
        if (num is not None and len(rows) >= num) or self._ended:
            return rows
        more: list[Any] = yield from super()._fetch_gen(num and num - len(rows))  # type: ignore[misc]  # as above
        self._ended = num is None or len(rows) + len(more) < num
        return rows + more

    def _scroll_gen(self: Any, value: int, mode: str) -> Generator[Any, Any, None]:
        if mode == "relative":
            value -= len(self._ahead)
        self._ahead, self._ended = [], False
        yield from super()._scroll_gen(value, mode)  # type: ignore[misc]  # as above


class PipelinedServerCursor(_PipelinedServer, ServerCursor[Any]):
    """A cursor on the server, of a sync connection."""

    __slots__ = ("_ahead", "_ended")


class PipelinedAsyncServerCursor(_PipelinedServer, AsyncServerCursor[Any]):
    """A cursor on the server, of an async connection."""

    __slots__ = ("_ahead", "_ended")


def _sends(cursor: Any, statement: Any, prepared: Prepare, name: bytes, binary: bool | None) -> list[Callable[[], Any]]:
    """Return the calls that send ``statement``, and before it what prepares it, if it is to be prepared."""
    pgconn = cursor._pgconn
    formats = {
        "param_formats": statement.formats,
        "result_format": cursor.format if binary is None else pq.Format(binary),
    }
    if prepared is Prepare.NO:
        parameters = (statement.query, statement.params)
        return [partial(pgconn.send_query_params, *parameters, param_types=statement.types, **formats)]
    execute = partial(pgconn.send_query_prepared, name, statement.params, **formats)
    if prepared is Prepare.SHOULD:
        return [partial(pgconn.send_prepare, name, statement.query, param_types=statement.types), execute]
    return [execute]


def is_able() -> bool:
    """Return whether the libpq in use has a pipeline mode."""
    return bool(Pipeline.is_supported())


def arguments(asynchronous: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments for ``create_engine()``, and those for the driver."""
    return {}, {"cursor_factory": PipelinedAsyncCursor if asynchronous else PipelinedCursor}


def prepare(engine: Engine) -> None:
    """Make every connection of ``engine`` one of ours, with our cursors on the server; no argument does that."""
    factory = PipelinedAsyncServerCursor if engine.dialect.is_async else PipelinedServerCursor

    def on_connect(adapted: Any, _record: object) -> None:
        raw = engine.dialect.get_driver_connection(adapted)
        raw.server_cursor_factory = factory
        become_pipelined(raw)
        if isinstance(raw, PipelinedConnection):
            adapt(adapted)

    event.listen(engine, "connect", on_connect)


def ahead_of(fairy: Any) -> PipelinedConnection | None:
    """Return what sends statements ahead on a connection of the pool; None if it is not one of ours."""
    raw = fairy.driver_connection
    return raw if isinstance(raw, PipelinedConnection) else None
