"""psycopg's connections on which other statements travel with a statement, and with COMMIT.

The cursors of ours send them in a pipeline. What is sent without those, by the simple protocol, is one string.

Holds: the classes of connections, and how psycopg's become these; imported only with such an engine.
Must not know: which statements travel, engines, sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from psycopg import AsyncConnection, Connection, errors, pq, waiting
from psycopg._connection_base import BaseConnection
from psycopg.generators import execute

from asgi_sqla.engine.waiter import Waiter

ACTIVE: Any = pq.TransactionStatus.ACTIVE
IDLE: Any = pq.TransactionStatus.IDLE
READ: Any = waiting.WAIT_R
READABLE: Any = waiting.READY_R
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
    """A sync connection."""

    __slots__ = ()

    def rollback(self: Any) -> None:
        """Roll back what there is."""
        if not self.rolls_back_nothing():
            super().rollback()


class _Async(PipelinedConnection, AsyncConnection[Any]):
    """An async connection."""

    __slots__ = ()

    async def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Do what ``gen`` does, and wait where it has to, with fewer turns of the event loop than psycopg's own.

        What is not plainly a statement is left to psycopg: a COPY, a pipeline, a limit, and an interruption.
        """
        if args or kwargs or self._pipeline or self.pgconn.transaction_status == ACTIVE:
            return await super().wait(gen, *args, **kwargs)
        try:
            ready = next(gen)
        except StopIteration as end:
            return end.value
        interruption: BaseException | None = None
        loop, number = asyncio.get_running_loop(), self.pgconn.socket
        while ready == READ:
            waiter = Waiter(loop)
            try:
                loop.add_reader(number, waiter.wake)
                try:
                    await waiter
                finally:
                    loop.remove_reader(number)
            except (OSError, asyncio.CancelledError) as exc:
                interruption = exc
                break
            try:
                ready = gen.send(READABLE)
            except StopIteration as end:
                return end.value
        return await super().wait(_Begun(gen, ready, interruption))


class _Begun:
    """What a generator that has begun has left to do, for who expects one that has not."""

    __slots__ = ("_gen", "_interruption", "_ready")

    def __init__(self, gen: Any, ready: Any, interruption: BaseException | None) -> None:
        self._gen, self._ready, self._interruption = gen, ready, interruption

    def __next__(self) -> Any:
        interruption, self._interruption = self._interruption, None
        if interruption is not None:
            raise interruption
        return self._ready

    def send(self, ready: Any) -> Any:
        return self._gen.send(ready)


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
