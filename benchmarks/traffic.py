"""A load generator: so many connections, each sending its next request when the last is answered.

Runs in a process of its own (``python -m benchmarks.traffic``), told what to do line by line as a
contender is. It talks to loopback only, and its loops are bounded.
Must not know: who answers.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

HOST = "127.0.0.1"
METHODS = {"/unused": "GET", "/read": "GET", "/slow": "GET"}


def request(path: str) -> bytes:
    """Return the bytes of a request without a body."""
    return f"{METHODS.get(path, 'POST')} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()


async def status_of(reader: asyncio.StreamReader) -> int:
    """Read one answer whose body has a length, and return its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"content-length:" in lower:
        length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
    return int(head.split(b" ", 2)[1])


async def load(port: int, path: str, requests: int, connections: int) -> dict[str, Any]:
    """Send ``requests`` over ``connections``; return the requests per second, every latency, and the failures."""
    opened = [await asyncio.open_connection(HOST, port) for _ in range(connections)]
    wire = request(path)
    latencies: list[float] = []
    statuses: dict[int, int] = {}

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(requests // connections):
            start = time.perf_counter()
            writer.write(wire)
            status = await status_of(reader)
            latencies.append((time.perf_counter() - start) * 1e6)
            statuses[status] = statuses.get(status, 0) + 1

    start = time.perf_counter()
    await asyncio.gather(*(one(*pair) for pair in opened))
    seconds = time.perf_counter() - start
    for _, writer in opened:
        writer.close()
    return {"rate": len(latencies) / seconds, "latencies": latencies, "statuses": statuses}


async def wait_behind(port: int, readers: int, patience: float) -> dict[str, Any]:
    """Open ``readers`` slow readers, then time new requests; return seconds, None where patience ran out."""
    slow = await asyncio.gather(*(_slow_reader(port) for _ in range(readers)))
    await asyncio.sleep(patience / 3)  # so that whoever will get a connection has it
    waits = [await _wait(port, "/read", patience)]
    if waits[0][0] is not None:
        waits += [await _wait(port, path, patience) for path in ("/write", "/read")]
    started = await asyncio.gather(*(_has_started(one) for one in slow))
    for one in slow:
        one.close()
    return {"waits": waits, "started": sum(started)}


async def _slow_reader(port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.setblocking(False)
    await loop.sock_connect(one, (HOST, port))
    await loop.sock_sendall(one, request("/slow"))
    return one


async def _has_started(one: socket.socket) -> bool:
    """Whether a slow reader has been answered 200, of which it has read nothing yet."""
    try:
        return one.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200"
    except BlockingIOError:
        return False


async def _wait(port: int, path: str, patience: float) -> tuple[float | None, int | None]:
    start = time.perf_counter()
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(request(path))
            status = await status_of(reader)
            writer.close()
    except TimeoutError:
        return None, None
    return time.perf_counter() - start, status


COMMANDS: dict[str, Callable[..., Awaitable[Any]]] = {"load": load, "wait_behind": wait_behind}


async def main() -> None:
    """Obey until the input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        answer = await COMMANDS[command.pop("do")](**command)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
