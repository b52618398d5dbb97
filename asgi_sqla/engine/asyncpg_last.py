"""asyncpg with a COMMIT that follows a statement at once: both are answered in one round trip.

asyncpg has one request at a time. So COMMIT is written to the transport just after the statement, and for so long this
room reads first what the server says. asyncpg gets the answer to its statement, and one end for both. If the statement
fails, the server takes COMMIT as ROLLBACK.

Holds: how COMMIT is written, and how its answer is told from the statement's; imported only with such an engine.
Must not know: which statements travel with COMMIT, adapters, engines, sessions.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from asgi_sqla.engine.asyncpg_messages import COMMIT, COMMITTED, DONE, END, ERROR, FATAL, READY, fields


class _Answers(asyncio.Protocol):
    """Reads two answers of the server instead of asyncpg's protocol, and passes on what that expects."""

    def __init__(self, transport: Any, protocol: Any) -> None:
        self._transport = transport
        self._protocol = protocol
        self._unread = bytearray()
        self._first_ended = False
        self.sent: bool = False
        """Whether COMMIT was written."""
        self.complete: bool = False
        """Whether the server has answered both."""
        self.refusal: dict[str, str] | None = None
        """The fields of the error that it answered to COMMIT."""
        transport.set_protocol(self)

    def commit(self) -> None:
        """Write COMMIT."""
        self.sent = True
        self._transport.write(COMMIT)

    def leave(self) -> None:
        """Let asyncpg's protocol read again."""
        self._transport.set_protocol(self._protocol)

    def data_received(self, data: bytes) -> None:
        """Pass on what is not about COMMIT."""
        if not self._unread and data.endswith(COMMITTED):  # as it mostly comes: whole, and no error
            self.complete = True
            self.leave()
            self._protocol.data_received(data[: -len(COMMITTED)] + END)
            return
        unread, passed, start = self._unread, bytearray(), 0
        unread += data
        while not self.complete and len(unread) >= start + 5:
            end = start + 1 + int.from_bytes(unread[start + 1 : start + 5], "big")
            if len(unread) < end:
                break
            if self._is_passed(bytes(unread[start : start + 1]), bytes(unread[start + 5 : end])):
                passed += unread[start:end]
            start = end
        if self.complete:
            start, passed = len(unread), passed + unread[start:]
            self.leave()
        del unread[:start]
        if passed:
            self._protocol.data_received(bytes(passed))

    def _is_passed(self, kind: bytes, body: bytes) -> bool:
        """Return whether asyncpg gets a message."""
        if kind == READY:
            self.complete, self._first_ended = self._first_ended, True
            return self.complete
        if not self._first_ended:
            return True
        if kind == ERROR and not any(one in body for one in FATAL):
            self.refusal = fields(body)
            return False
        return kind != DONE

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self._protocol.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """Pass it on."""
        closes: bool | None = self._protocol.eof_received()
        return closes

    def pause_writing(self) -> None:
        """Pass it on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._protocol.resume_writing()


class Last:
    """A prepared statement that COMMIT follows."""

    def __init__(self, statement: Any, con: Any) -> None:
        self._statement = statement
        self._con = con

    def get_statusmsg(self) -> Any:
        """Return what the server said of the statement."""
        return self._statement.get_statusmsg()

    async def fetch(self, *parameters: Any) -> Any:
        """Send both and return the rows of the statement; the answer to COMMIT is kept on the connection."""
        con = self._con
        answers = _Answers(con._transport, con._protocol)
        soon = asyncio.get_running_loop().call_soon(answers.commit)  # asyncpg writes before it first awaits anything
        try:
            rows = await self._statement.fetch(*parameters)
        except BaseException:
            con.commit_sent = answers.sent and not answers.complete
            if con.commit_sent and not con.is_closed():
                con.terminate()  # nobody can tell which answers are still to come
            elif not answers.sent:  # asyncpg has refused the statement
                answers.leave()
            raise
        finally:
            soon.cancel()
        con.commit_sent = True
        if answers.refusal is not None:
            con.refusal = asyncpg.PostgresError.new(answers.refusal, query="COMMIT;")
        return rows
