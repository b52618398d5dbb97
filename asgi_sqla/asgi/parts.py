"""Answers in parts: what is open is committed before each part of the body, so an idle stream holds nothing.

To its reader each event of an event stream is an answer. So a part is to its request what the start is to any other:
nobody is told "done" before the database is.

Holds: which response is an answer in parts, what happens before each part, and what a failure there means.
Must not know: how sessions are ended.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from asgi_sqla.asgi.exchange import ANSWERED, COMPLETE, PARTS, SETTLING, WAITING, Answered
from asgi_sqla.asgi.settling import Exchange
from asgi_sqla.session.guard import current_user
from asgi_sqla.unit.cancellation import FINE, Finished
from asgi_sqla.unit.logs import ERROR, WARNING, tell
from asgi_sqla.unit.sessions import NONE

TRAILERS = "http.response.trailers"
WHOLE = frozenset(("http.response.body", "http.response.pathsend", "http.response.zerocopysend"))
"""The messages that carry a body; ``more_body`` is False or missing in the last one."""


class InParts(Exchange):
    """The part of a request that knows about answers in parts."""

    _in_parts = _trailers = False
    """Whether the response is an answer in parts, and whether trailers follow its body."""
    _whole_dry_run = False
    """Whether the application called ``rollback_only()`` before the response started."""

    def _is_settling(self) -> bool:
        return self._at is SETTLING or self._committing > 0

    def _may_stream(self) -> bool:
        headers = () if self._start is None else self._start.get("headers") or ()
        return not any(name.lower() == b"content-length" for name, _ in headers)

    def rollback_only(self) -> None:
        """Roll the unit back at its end, whatever the response status is, as for a dry run. This is not an error.

        After an answer in parts has started, this is about the next part only.
        """
        self._unit._rollback_only = True
        self._whole_dry_run = self._whole_dry_run or self._at is WAITING

    def _is_in_parts(self, start: Any) -> bool:
        self._in_parts = self._rules.parts(self._scope, start)
        self._trailers = bool(start.get("trailers"))
        return self._in_parts

    def _is_late_in_parts(self) -> bool:
        """Return whether the response, which has started, is an answer in parts."""
        start, self._start = self._start, None
        if start is not None and self._rules.parts is not None and self._is_in_parts(start):
            self._at = PARTS if self._at is not COMPLETE else COMPLETE
        return self._in_parts

    def _send_in_parts(self, message: Any) -> Awaitable[None]:
        """Commit what is open, if ``message`` tells its reader something; then forward it."""
        kind = message["type"]
        if kind not in WHOLE and kind != TRAILERS:
            forwarded: Awaitable[None] = self._send(message)
            return forwarded
        if self._is_beside(message) or not self._unit._has_work():
            return self._forward(message)
        return self._commit_and_send(message)

    def _forward(self, message: Any) -> Awaitable[None]:
        more = "more_trailers" if message["type"] == TRAILERS else "more_body"
        if not message.get(more) and not (self._trailers and message["type"] != TRAILERS):
            self._at = COMPLETE
        forwarded: Awaitable[None] = self._send(message)
        return forwarded

    def _is_beside(self, message: Any) -> bool:
        """Return whether ``message`` is only a comment, sent beside the work of another task or thread.

        It tells its reader nothing, and a commit may be in the middle of that work: frameworks send a ping by
        themselves every few seconds.
        """
        sessions = self._unit._sessions
        if sessions is NONE:
            return False
        users = sessions.users
        if users is None:
            sessions.note_users()
        if not is_comment(message):
            return False
        others = set() if users is None else users - {current_user()}
        return any(not isinstance(one, int) for one in others) or (
            (users is None or bool(others)) and any(one.outcome.wrote for one in sessions.all)
        )

    async def _commit_and_send(self, message: Any) -> None:
        from asgi_sqla.unit.parts import commit_part  # only an answer in parts pays for it

        unit = self._unit
        self._committing += 1
        try:
            finished = await commit_part(unit)
            if unit._sessions.users is not None:
                unit._sessions.users.clear()
            unit._rollback_only = self._whole_dry_run
            if finished is not FINE:
                await self._fail(finished)
        finally:
            self._committing -= 1
            if self._settled is not None and not self._committing:
                self._settled.set()
        if self._at is ANSWERED:  # the commit for another task's part has failed meanwhile
            raise Answered
        await self._forward(message)

    async def _fail(self, finished: Finished) -> None:
        """End the stream without the part, or raise a cancellation."""
        unit, failure = self._unit, finished.failure
        if failure is None:
            tell(WARNING, unit, "cancelled during COMMIT, so a part was not sent although its work is committed")
        if not isinstance(failure, Exception):
            finished.check()
            return
        self._failure, self._at = failure, ANSWERED
        tell(ERROR, unit, "its stream ends without the next part, as COMMIT failed: %r", failure)
        closed = await unit._close(commit=False, cause=failure)
        finished._replace(failure=None).check()
        closed.check()
        raise Answered from failure


def is_comment(message: Any) -> bool:
    """Return whether a body part has only comments of an event stream, or nothing, and is not the last one."""
    if message["type"] != "http.response.body" or not message.get("more_body"):
        return False
    body = bytes(message.get("body", b""))
    return body[-1:] in (b"", b"\n", b"\r") and all(not line or line[:1] == b":" for line in body.splitlines())
