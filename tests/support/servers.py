"""A real uvicorn on a free loopback port, and what a client sees on the wire."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

import uvicorn

from asgi_sqla import Database

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds that a client waits for an answer that should come at once."""


class _Uvicorn(uvicorn.Server):
    """A uvicorn that checks more often whether it must stop, because tests start many."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # noqa: ASYNC110  # nobody sets an event when it is to stop
            await asyncio.sleep(0.01)


class Server:
    """A uvicorn that serves ``app`` from a thread of this process, for as long as it is entered.

    It logs through the root logger, so that ``caplog`` sees it. ``options`` go to ``uvicorn.Config``.
    """

    def __init__(self, app: Any, **options: Any) -> None:
        self._app = app
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self._main,
            **{
                "interface": "asgi3",
                "log_config": None,
                "timeout_graceful_shutdown": 3,
                "timeout_keep_alive": 60,  # a busy machine makes clients late, who would find their socket closed
                "ws": "websockets-sansio",
                **options,
            },
        )
        self._server = _Uvicorn(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="uvicorn")
        self._loop: asyncio.AbstractEventLoop | None = None
        self.running = 0
        """How many requests and conversations the application is still in."""

    async def _main(self, scope: Any, receive: Any, send: Any) -> None:
        self._loop = asyncio.get_running_loop()
        serving = scope["type"] != "lifespan"
        self.running += serving
        try:
            await self._app(scope, receive, send)
        finally:
            self.running -= serving

    def __enter__(self) -> Self:
        self._thread.start()
        if not wait_until(lambda: self._server.started or not self._thread.is_alive()) or not self._server.started:
            raise RuntimeError("uvicorn did not start")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        self._listener.close()
        if self._thread.is_alive():
            raise RuntimeError("uvicorn did not stop")

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` on the event loop of the server."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def idle(self) -> bool:
        """Wait until the application has returned from everything; return whether it has."""
        return wait_until(lambda: self.running == 0)

    def out(self, database: Database) -> int:
        """Return how many connections of both pools are checked out, once the application is idle."""
        self.idle()
        return self.out_now(database)

    def out_now(self, database: Database) -> int:
        """Return how many connections of both pools are checked out at this moment."""
        return self.call(_checked_out(database))

    def connect(self, *, small_window: bool = False) -> socket.socket:
        """Return a raw connection; with ``small_window`` one that stalls its server early."""
        client = socket.socket()
        if small_window:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", self.port))
        return client

    def raw(self, path: str = "/", method: str = "POST") -> bytes:
        """Return every byte the server sends for one request."""
        with self.connect() as client:
            client.sendall(request_bytes(path, method))
            return b"".join(iter(lambda: client.recv(65536), b""))


async def _checked_out(database: Database) -> int:
    pools: list[Any] = [database.engine.pool, database.async_engine.pool]
    return sum(pool.checkedout() for pool in pools)


def request_bytes(path: str = "/", method: str = "POST") -> bytes:
    """Return a request without a body; the server closes the connection after it."""
    return f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def wait_until(true: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Wait until ``true()`` is true; return whether it became so."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def statuses(wire: bytes) -> list[int]:
    """Return the status of every response on the wire."""
    return [int(part[:3]) for part in wire.split(b"HTTP/1.1 ")[1:]]


def errors(records: list[logging.LogRecord]) -> list[str]:
    """Return the class of every exception that was logged."""
    return [type(record.exc_info[1]).__name__ for record in records if record.exc_info]
