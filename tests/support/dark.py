"""A proxy before a database server that can lose its network: it drops everything, and keeps every socket open."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from selectors import EVENT_READ, DefaultSelector
from typing import Any, Literal, TypeAlias

from sqlalchemy import URL, make_url

from support.databases import Backend

Loss: TypeAlias = Literal["none", "answers", "everything"]
"""What does not arrive: nothing is lost, what the server says is, or what either side says is."""


class Connection:
    """Both ends of one connection, and whether any data on it was lost."""

    def __init__(self, driver: socket.socket, server: socket.socket | None) -> None:
        self.driver = driver
        self.server = server
        self.lost = server is None


class Dark:
    """Forwards bytes in a thread, or drops them; a connection that lost bytes stays silent forever.

    While it is dark, neither side notices that the other has closed.
    """

    def __init__(self, url: URL, port: int = 0) -> None:
        self._url = url
        self._loss: Loss = "none"
        self._selector = DefaultSelector()
        self._connections: list[Connection] = []
        self._listening = socket.create_server(("127.0.0.1", port))
        self._selector.register(self._listening, EVENT_READ)
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, EVENT_READ)
        self._thread = threading.Thread(target=self._run)
        self._stopping = False
        self.port: int = self._listening.getsockname()[1]

    def start(self) -> None:
        """Begin to forward."""
        self._thread.start()

    def stop(self) -> None:
        """Close every connection, and refuse others; do it once."""
        if self._stopping:
            return
        self._stopping = True
        self._wake.send(b"x")
        self._thread.join()
        for one in (self._listening, self._wake, self._woken):
            one.close()
        for connection in self._connections:
            self._close(connection.driver)
            self._close(connection.server)
        self._selector.close()

    def go_dark(self, loss: Loss = "everything") -> None:
        """Drop everything from now on."""
        self._loss = loss

    def let_through(self) -> None:
        """Forward again; the server learns which connections are broken, and the driver does not."""
        self._loss = "none"
        self._wake.send(b"x")

    @property
    def is_dark(self) -> bool:
        """Whether data is dropped now."""
        return self._loss != "none"

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    self._woken.recv(1)
                elif key.data is None:
                    self._accept()
                else:
                    self._pass_on(key.fileobj, key.data)
            if self._loss == "none":
                for connection in self._connections:
                    if connection.lost and connection.server is not None:
                        self._close(connection.server)
                        connection.server = None

    def _accept(self) -> None:
        driver, _ = self._listening.accept()
        driver.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(driver, None if self._loss == "everything" else self._connect())
        self._connections.append(connection)
        for end in (connection.driver, connection.server):
            if end is not None:
                self._selector.register(end, EVENT_READ, connection)

    def _connect(self) -> socket.socket:
        if "host" not in self._url.query:
            return socket.create_connection((self._url.host, self._url.port or 3306))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{self._url.query['host']}/.s.PGSQL.{self._url.port or 5432}")
        return server

    def _pass_on(self, end: Any, connection: Connection) -> None:
        if end.fileno() < 0:  # the other end has just been closed with it
            return
        try:
            data = end.recv(65_536)
        except ConnectionError:  # a driver that was cut resets its connection
            data = b""
        lost = self._loss == "everything" or (self._loss == "answers" and end is connection.server)
        if lost or connection.lost:
            connection.lost = True
            if not data:
                self._selector.unregister(end)
            return
        other = connection.server if end is connection.driver else connection.driver
        try:
            if data and other is not None:
                other.sendall(data)
        except ConnectionError:  # as it may on the sending side
            data = b""
        if not data:
            self._close(connection.driver)
            self._close(connection.server)
            connection.server = None

    def _close(self, end: socket.socket | None) -> None:
        if end is not None and end.fileno() >= 0:
            if end.fileno() in self._selector.get_map():
                self._selector.unregister(end)
            end.close()


@contextmanager
def dark(backend: Backend) -> Iterator[tuple[Dark, str]]:
    """Put a proxy that can go dark before the server of ``backend``; yield it and its own URL."""
    url = make_url(backend.url)
    proxy = Dark(url)
    proxy.start()
    query = {key: value for key, value in url.query.items() if key != "host"}
    if backend.is_postgresql:
        query["ssl" if "asyncpg" in url.drivername else "sslmode"] = "disable"
    through = url.set(host="127.0.0.1", port=proxy.port, query=query)
    try:
        yield proxy, through.render_as_string(hide_password=False)
    finally:
        proxy.stop()
