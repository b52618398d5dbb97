"""A client in process that keeps every ASGI message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
App = Callable[..., Awaitable[None]]


def http_scope(path: str = "/", method: str = "GET", **more: Any) -> Message:
    """Return the scope of a request, as a server makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [],
        "client": ("127.0.0.1", 1234),
        "server": ("127.0.0.1", 80),
        **more,
    }


class Call:
    """One request: call it, then look at ``messages``, ``status``, ``body`` and ``raised``."""

    def __init__(self, app: App, scope: Message | None = None) -> None:
        self.app = app
        self.scope = http_scope() if scope is None else scope
        self.messages: list[Message] = []
        self.raised: BaseException | None = None
        self.on_start: Callable[[Message], Awaitable[None]] | None = None
        self._requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive(self) -> Message:
        """Give the empty body, then wait for a disconnect as a server does."""
        if self._requests:
            return self._requests.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        """Keep the message."""
        if self.on_start is not None and message["type"] == "http.response.start":
            await self.on_start(message)
        self.messages.append(message)

    async def __call__(self) -> Call:
        """Run the application to its end, and keep what it raises."""
        try:
            await self.app(self.scope, self.receive, self.send)
        except BaseException as exc:  # the tests look at it
            self.raised = exc
        return self

    @property
    def starts(self) -> list[int]:
        """The status of every response start."""
        return [message["status"] for message in self.messages if message["type"] == "http.response.start"]

    @property
    def status(self) -> int:
        """The status of the only response."""
        (status,) = self.starts
        return int(status)

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")


async def respond(send: Any, status: int = 200, body: bytes = b"", *, sized: bool = False) -> None:
    """Send a whole response; a ``sized`` one says at its start how long it is, as those of frameworks do."""
    headers = [(b"content-length", b"%d" % len(body))] if sized else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
