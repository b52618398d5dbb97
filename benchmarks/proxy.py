"""The process of a network: forwards bytes to a server after a delay, and counts how often the driver waits for it.

``python -m benchmarks.proxy PORT MICROSECONDS`` prints its port, then for each line of its standard input what it has
counted; it ends with its input. The delay holds each way, for any number of connections, and keeps the order of bytes.
Must not know: what the bytes mean, or who asks.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import NamedTuple

HOST = "127.0.0.1"
PIECE = 2**16


class End:
    """One end of a connection: towards the driver, or towards the server."""

    other: End

    def __init__(self, connected: socket.socket, *, driver: bool) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self.number = connected.fileno()
        self.driver = driver
        self.waiting = False
        """Whether the driver has spoken, and no answer has been delivered since."""
        self.unsent = bytearray()
        """What was due, but is more than the socket takes."""
        self.last = False
        """Whether nothing comes after ``unsent``."""
        self.ended = False
        """Whether it has said its last."""


class Piece(NamedTuple):
    """Bytes on their way; none say that there will be no more."""

    due: float
    end: End
    data: bytes


class Proxy:
    """Forwards every connection to a port of the loopback, on one thread."""

    def __init__(self, port: int, delay: float) -> None:
        self._port = port
        self._delay = delay
        self._ends: dict[int, End] = {}
        self._pieces: deque[Piece] = deque()
        self._listening = socket.create_server((HOST, 0), backlog=1024)
        self._poll = select.epoll()
        self._poll.register(self._listening, select.EPOLLIN)
        self._poll.register(sys.stdin, select.EPOLLIN)
        self._round_trips = 0
        self._connections = 0

    def run(self) -> None:
        """Forward until the standard input ends."""
        print(self._listening.getsockname()[1], flush=True)
        while True:
            left = max(0.0, self._pieces[0].due - monotonic()) if self._pieces else None
            select.select([self._poll], [], [], left)  # epoll by itself would round up to milliseconds
            self._deliver()
            for number, events in self._poll.poll(0):
                if number == sys.stdin.fileno():
                    if not os.read(number, PIECE):
                        return
                    print(self._round_trips, self._connections, flush=True)
                elif number == self._listening.fileno():
                    self._accept()
                elif number in self._ends:  # it may just have been closed with the other
                    self._serve(self._ends[number], events)

    def _accept(self) -> None:
        accepted, _ = self._listening.accept()
        try:
            connected = socket.create_connection((HOST, self._port), timeout=5)
        except OSError:  # the server is gone, and the driver is told so
            accepted.close()
            return
        driver, server = End(accepted, driver=True), End(connected, driver=False)
        driver.other, server.other = server, driver
        for end in (driver, server):
            self._ends[end.number] = end
            self._poll.register(end.number, select.EPOLLIN)
        self._connections += 1

    def _serve(self, end: End, events: int) -> None:
        if events & select.EPOLLOUT:
            self._send(end)
        if events & ~select.EPOLLOUT and not end.ended:
            self._receive(end)
        elif events & select.EPOLLHUP and end.ended:  # it takes nothing more either
            self._close(end)

    def _receive(self, end: End) -> None:
        try:
            data = end.socket.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:  # reset: to the other end it has ended
            data = b""
        if not data:
            end.ended = True
            self._listen_to(end)
        elif end.driver and not end.waiting:
            end.waiting = True
            self._round_trips += 1
        self._pieces.append(Piece(monotonic() + self._delay, end.other, data))

    def _deliver(self) -> None:
        now = monotonic()
        while self._pieces and self._pieces[0].due <= now:
            _, end, data = self._pieces.popleft()
            if self._ends.get(end.number) is not end:  # its number may be another's by now
                continue
            end.unsent += data
            end.last = not data
            if end.driver and data:
                end.waiting = False
            self._send(end)

    def _send(self, end: End) -> None:
        try:
            if end.unsent:
                del end.unsent[: end.socket.send(end.unsent)]
        except BlockingIOError:
            pass  # it is tried again when the socket takes more
        except OSError:  # nobody is there
            self._close(end)
            return
        if end.last and not end.unsent:
            with suppress(OSError):  # it was reset meanwhile
                end.socket.shutdown(socket.SHUT_WR)
            if end.ended:
                self._close(end)
                return
        self._listen_to(end)

    def _listen_to(self, end: End) -> None:
        wanted = 0 if end.ended else select.EPOLLIN
        self._poll.modify(end.number, wanted | (select.EPOLLOUT if end.unsent else 0))

    def _close(self, end: End) -> None:
        """Close both ends; what is still on its way finds nobody."""
        for one in (end, end.other):
            if self._ends.get(one.number) is one:
                del self._ends[one.number]
                self._poll.unregister(one.number)
                one.socket.close()


def main() -> None:
    """Run the proxy that the command line asks for."""
    with suppress(OSError):  # where the kernel has no such file, timers are late by 50 microseconds
        Path("/proc/self/timerslack_ns").write_text("1")
    port, microseconds = map(int, sys.argv[1:])
    Proxy(port, microseconds / 1e6).run()


if __name__ == "__main__":
    main()
