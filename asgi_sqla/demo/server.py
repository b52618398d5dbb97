"""A real server on a loopback port, in the event loop of the tour, so that the tour can look at its pools.

Holds: how uvicorn is started and stopped.
Must not know: what it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

from asgi_sqla.unit.cancellation import to_completion

HOST = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """Return a socket that listens on ``port``, or on a free one for 0; raise OSError if it is in use."""
    # asyncio turns Nagle's algorithm off (40 ms per response) only if the protocol is named.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


class Server(uvicorn.Server):
    """A uvicorn that leaves the signals to the code that started it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


@contextlib.asynccontextmanager
async def serving(app: Any, listener: socket.socket) -> AsyncIterator[None]:
    """Serve ``app`` on ``listener`` until the block ends. Raises RuntimeError if the server does not start."""
    server = Server(uvicorn.Config(app, lifespan="on", log_config=None))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await _started(server, task)
        yield
    finally:
        (await to_completion(_stop(server, task))).check()


async def _started(server: Server, task: asyncio.Task[None]) -> None:
    while not server.started:
        if task.done():
            raise RuntimeError("the server did not start") from task.exception()
        await asyncio.sleep(0.01)


async def _stop(server: Server, task: asyncio.Task[None]) -> None:
    server.should_exit = True
    await asyncio.wait((task,), timeout=0.5)
    for connection in list(server.server_state.connections):  # of clients that neither read nor disconnect
        connection.transport.abort()
    await task
