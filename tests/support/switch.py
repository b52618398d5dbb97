"""A proxy before PostgreSQL that can be pointed at another server, and can stall, swallow, reset and refuse.

It needs no pytest: the benchmarks use it too.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeAlias

Mode: TypeAlias = Literal["forward", "stall", "swallow", "refuse"]
"""Bytes pass; or nobody reads them; or they are read and dropped; or new connections are closed at once."""


class Switch:
    """Forwards each connection to the port that it is pointed at, on an event loop in a thread of its own."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._mode: Mode = "forward"
        self._flowing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="switch")
        self.port = 0

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()
        self._do(self._listen())

    def stop(self) -> None:
        """Close everything."""
        self.reset()
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def point(self, port: int) -> None:
        """Forward new connections to another port."""
        self._target = port

    def set(self, mode: Mode) -> None:
        """Treat what comes from now on, on every connection, in another way."""
        self._do(self._set(mode))

    def reset(self) -> None:
        """Reset every connection, at both ends."""
        self._do(self._reset())

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._flowing.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2**16)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _set(self, mode: Mode) -> None:
        self._mode = mode
        self._flowing.clear() if mode == "stall" else self._flowing.set()

    async def _reset(self) -> None:
        for writer in list(self._writers):
            end = writer.get_extra_info("socket")
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._flowing.wait()
            if self._mode == "refuse":
                return
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(back)
            try:
                await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
            finally:
                self._end(back)
        except OSError:  # nobody listens there, or one side is gone
            pass
        finally:
            self._end(writer)

    def _end(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                await self._flowing.wait()
                if self._mode != "swallow":
                    writer.write(data)
                    await writer.drain()
        writer.close()  # the other direction then ends too


@contextmanager
def switch(port: int) -> Iterator[Switch]:
    """Run a switch that points at ``port``."""
    made = Switch(port)
    made.start()
    try:
        yield made
    finally:
        made.stop()
