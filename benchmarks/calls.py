"""Calls of an ASGI application in process, as a server makes them.

Holds: the scope, the two callables and a lifespan.
Must not know: what is called, or how long it takes.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

REQUEST = {"type": "http.request", "body": b"", "more_body": False}
METHODS = {"/unused": "GET", "/read": "GET", "/slow": "GET"}


async def receive() -> Any:
    """Give an empty body."""
    return REQUEST


class Client:
    """Calls ``app``, and keeps the statuses it answered."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.state: dict[str, Any] = {}
        self.statuses: list[int] = []

    async def send(self, message: Any) -> None:
        """Keep the status."""
        if message["type"] == "http.response.start":
            self.statuses.append(message["status"])

    def scope(self, path: str) -> dict[str, Any]:
        """Return the scope of one request."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": METHODS.get(path, "POST"),
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(b"host", b"localhost"), (b"content-length", b"0")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": self.state.copy(),
        }

    async def __call__(self, path: str) -> None:
        """Make one request; what the application raises goes through."""
        await self.app(self.scope(path), receive, self.send)

    async def status(self, path: str) -> int:
        """Make one request, and return the first status of its answer; 500 if it raises before one."""
        self.statuses.clear()
        try:
            await self(path)
        except Exception:  # what a server would make of it
            self.statuses.append(500)
        return self.statuses[0]


class Lifespan:
    """The lifespan of an application, as an async context manager."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = asyncio.Event()
        self._started = asyncio.Event()
        self._asked = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._live())
        await self._started.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        await self._task

    async def _live(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._client.state}
        try:
            await self._client.app(scope, self._receive, self._send)
        finally:
            self._started.set()

    async def _receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "lifespan.startup.failed":
            raise RuntimeError(message.get("message"))
        self._started.set()
