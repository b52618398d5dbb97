"""A wire between a driver and PostgreSQL that counts how often the driver waits for an answer.

It needs nothing of the other helpers, for the benchmarks use it too.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from sqlalchemy import URL, make_url


class Connection:
    """Both ends of one connection, and whose turn it is to speak."""

    def __init__(self, driver: socket.socket, server: socket.socket) -> None:
        self.ends = (driver, server)
        self.answered = True


class Wire:
    """Forwards bytes in a thread, and counts each turn from listening to sending as one round trip."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._selector = DefaultSelector()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._selector.register(self._listening, EVENT_READ)
        self._stop, self._stopped = socket.socketpair()
        self._selector.register(self._stopped, EVENT_READ)
        self._thread = threading.Thread(target=self._run)
        self.port: int = self._listening.getsockname()[1]
        self.round_trips = 0
        self.patience = 0.0
        """Seconds in which a driver may say more before it is heard, for one that writes twice."""

    def start(self) -> None:
        """Begin to forward."""
        self._thread.start()

    def stop(self) -> None:
        """Close every connection."""
        self._stop.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # only sockets were registered
        self._selector.close()

    def hear(self, connection: Connection, data: bytes) -> None:
        """Be told what a driver says, for those who read it."""

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._stopped:
                    return
                if key.data is None:
                    self._connect()
                elif key.fd == key.fileobj.fileno():  # type: ignore[union-attr]  # the other end may just have closed it
                    self._forward(key.fileobj, key.data)

    def _connect(self) -> None:
        driver, _ = self._listening.accept()
        driver.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = _connected(self._url)
        connection = Connection(driver, server)
        for end in connection.ends:
            self._selector.register(end, EVENT_READ, connection)

    def _forward(self, end: Any, connection: Connection) -> None:
        driver, server = connection.ends
        if self.patience and end is driver:
            time.sleep(self.patience)
        try:
            data = end.recv(65_536)
            (server if end is driver else driver).sendall(data)
        except ConnectionError:  # either end may go at any time, as when a backend is terminated
            data = b""
        if not data:
            for one in connection.ends:
                self._selector.unregister(one)
                one.close()
        elif end is driver:
            self.hear(connection, data)
            self.round_trips += connection.answered
            connection.answered = False
        else:
            connection.answered = True


def _connected(url: URL) -> socket.socket:
    port = url.port or 5432
    if "host" not in url.query:
        return socket.create_connection((url.host, port))
    server = socket.socket(socket.AF_UNIX)
    server.connect(f"{url.query['host']}/.s.PGSQL.{port}")
    return server


@contextmanager
def wire(url: str) -> Iterator[tuple[Wire, str]]:
    """Put a wire before the server of ``url``; yield it and its own URL."""
    parsed = make_url(url)
    wire = Wire(parsed)
    wire.start()
    query = {key: value for key, value in parsed.query.items() if key != "host"}
    if "asyncpg" in parsed.drivername:
        query["ssl"] = "disable"
    else:
        query["sslmode"] = "disable"
    through = parsed.set(host="127.0.0.1", port=wire.port, query=query)
    try:
        yield wire, through.render_as_string(hide_password=False)
    finally:
        wire.stop()
