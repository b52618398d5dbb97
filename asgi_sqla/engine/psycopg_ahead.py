"""psycopg's connections on which other statements travel with a statement, and with COMMIT.

The cursors of ours send them in a pipeline. What is sent without those, by the simple protocol, is one string.

Holds: the classes of connections, and how psycopg's become these; imported only with such an engine.
Must not know: which statements travel, engines, sessions.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

from psycopg import AsyncConnection, Connection, errors, pq
from psycopg._connection_base import BaseConnection
from psycopg.generators import execute

from asgi_sqla.engine.loops import await_, awaits
from asgi_sqla.engine.psycopg_waiting import WaitingConnection, awaited

IDLE: Any = pq.TransactionStatus.IDLE
FAILED: Any = pq.ExecStatus.FATAL_ERROR


class PipelinedConnection(BaseConnection[Any]):
    """A connection on which other statements travel with a statement, and with COMMIT."""

    __slots__ = ()  # as below, and on the same base: a connection becomes one of these after psycopg has made it

    ahead: bytes | None = None
    last: bytes | None = None
    commits: bool = False
    """Whether COMMIT travels with the next statement."""
    commit_sent: bool = False
    refusal: Exception | None = None
    """What the server answered to a COMMIT that travelled with a statement, if it refused that."""

    def set_ahead(self, ahead: str | None, last: str | None) -> None:
        """Send ``ahead`` with the next statement, once, and ``last`` with the next COMMIT."""
        self.ahead = None if ahead is None else ahead.encode()
        self.last = None if last is None else last.encode()

    def commit_with_next(self, now: bool) -> None:
        """Send COMMIT with the next statement, if a cursor of ours sends it in a pipeline."""
        self.commits = now
        if now:
            self._forget_commit()

    def rolls_back_nothing(self) -> bool:
        """Return whether ``rollback()`` would neither send a word nor raise; then there is no need to call it.

        The pool asks for it after each COMMIT too.
        """
        idle: bool = self.pgconn.transaction_status == IDLE
        nothing = idle and not (self._num_transactions or self._tpc or self._pipeline)
        if nothing:
            self._forget_commit()
        return nothing

    def _forget_commit(self) -> None:
        """Forget the COMMIT that travelled with a statement."""
        self.commit_sent, self.refusal = False, None

    def _start_query(self: Any) -> Generator[Any, Any, None]:
        """Begin, if the cursor below did not, and send what is left to send."""
        ahead = self.ahead
        if ahead is None or self._autocommit:
            yield from super()._start_query()
            return
        self.ahead = None
        if self._pipeline is None and self.pgconn.transaction_status == IDLE:
            yield from _run(self, self._get_tx_start_command() + b";" + ahead)
            return
        yield from super()._start_query()
        yield from self._exec_command(ahead)

    def _rollback_gen(self: Any) -> Generator[Any, Any, None]:
        self._forget_commit()
        return super()._rollback_gen()

    def _commit_gen(self: Any) -> Generator[Any, Any, None]:
        if self.commit_sent:
            self.commit_sent, refusal, self.refusal = False, self.refusal, None
            if refusal is not None:
                raise refusal
        last = self.last
        if last is None or self._num_transactions or self._tpc or self._pipeline:
            yield from super()._commit_gen()
            return
        self.last = None
        if self.pgconn.transaction_status != IDLE:
            yield from _run(self, last + b";COMMIT")


class _Sync(PipelinedConnection, Connection[Any]):
    """A sync connection, whose transaction can end on an event loop without holding that up."""

    __slots__ = ()

    can_await = sys.platform != "win32"
    """Whether the event loops of the system watch a socket; those of Windows do not, or not all of them."""

    def commit(self: Any) -> None:
        """Commit what there is."""
        if awaits.get():
            self._await(self._commit_gen())
        else:
            super().commit()

    def rollback(self: Any) -> None:
        """Roll back what there is."""
        if self.rolls_back_nothing():
            return
        if awaits.get():
            self._await(self._rollback_gen())
        else:
            super().rollback()

    def _await(self: Any, gen: Generator[Any, Any, None]) -> None:
        """Do on the event loop what psycopg does in its thread; no other thread may use libpq's connection then."""
        with self.lock:
            await_(awaited(gen, self.pgconn.socket))


class _Async(PipelinedConnection, WaitingConnection):
    """An async connection."""

    __slots__ = ()


def _run(conn: Any, statements: bytes) -> Generator[Any, Any, None]:
    """Send several statements together, by the simple protocol."""
    conn._check_connection_ok()
    conn.pgconn.send_query(statements)
    for result in (yield from execute(conn.pgconn)):
        if result.status == FAILED:
            raise errors.error_from_result(result, encoding=conn.pgconn._encoding)


_CLASSES: dict[type[Any], type[Any]] = {Connection: _Sync, AsyncConnection: _Async}


def become_pipelined(raw: Any) -> None:
    """Make a connection one of ours; one of a user's own class stays what it is."""
    raw.__class__ = _CLASSES.get(type(raw), type(raw))
