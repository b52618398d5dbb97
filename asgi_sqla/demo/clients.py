"""The clients of the tour: one that asks and looks at once, and one that stops reading.

Holds: what is seen from the other end of a socket.
Must not know: what is promised.
"""

from __future__ import annotations

import asyncio
import json
import socket
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, NamedTuple

import httpx

from asgi_sqla.demo.witness import Sight, Witness


class Seen(NamedTuple):
    """What a client saw of one response, and what the witness saw when its status came."""

    status: int
    body: str
    sight: Sight
    milliseconds: float

    def __str__(self) -> str:
        return f"{self.status} {self.body} in {self.milliseconds:.0f} ms"


async def ask(client: httpx.AsyncClient, witness: Witness, request: str, body: Any = None) -> Seen:
    """Send ``request``, such as "POST /orders", and look at the database when its status arrives."""
    method, path = request.split()
    began = time.perf_counter()
    async with client.stream(method, path, json=body) as response:
        sight = witness.look()
        await response.aread()
    return Seen(response.status_code, _shortened(response.text), sight, (time.perf_counter() - began) * 1000)


def _shortened(text: str) -> str:
    with suppress(ValueError):  # what is not JSON stays unchanged
        text = json.dumps(json.loads(text))
    return textwrap.shorten(text, 55, placeholder=" ...")


@asynccontextmanager
async def stalled_readers(host: str, port: int, paths: tuple[str, ...]) -> AsyncIterator[str]:
    """Ask for each of ``paths``, take the head of each response, and read no more; yield the statuses."""
    async with AsyncExitStack() as stack:
        heads = [await stack.enter_async_context(_stalled_reader(host, port, path)) for path in paths]
        yield ", ".join(head.split()[1].decode() for head in heads)


@asynccontextmanager
async def _stalled_reader(host: str, port: int, path: str) -> AsyncIterator[bytes]:
    with socket.socket() as connection:
        # A small window, so that the kernel does not take the whole body for us.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, (host, port))
        await loop.sock_sendall(connection, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        yield await loop.sock_recv(connection, 512)
