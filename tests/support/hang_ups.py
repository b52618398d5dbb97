"""Clients that hang up while the database works for them, on a real server."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from anyio import to_thread
from sqlalchemy import text

from asgi_sqla import Database, SQLAlchemyMiddleware
from support.asgi import respond
from support.databases import Backend
from support.servers import Server, request_bytes, wait_until


class HangUps(NamedTuple):
    """What became of the requests of clients that hung up."""

    ran: int
    """How many of their statements the server was executing when they did."""
    runs: int
    """How many it still executes."""
    seconds: float
    """How long it took until it executed none, and every request had ended."""
    out: int
    """How many connections are still checked out."""
    served: bool
    """Whether the pool then served as many requests at once as it has connections."""


def sleeps(backend: Backend, seconds: int = 30) -> str:
    """Return a statement that takes long."""
    if backend.name == "sqlite":
        return "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    return f"SELECT pg_sleep({seconds})" if backend.is_postgresql else f"SELECT sleep({seconds})"


def asleep(backend: Backend) -> int:
    """Return how many statements sleep in the server."""
    return 0 if backend.name == "sqlite" else backend.asleep()


def handler(database: Database, kind: str, statement: str) -> Any:
    """Return an application that executes ``statement`` for ``/sleeps``, and a short one for anything else."""

    def execute(sql: str) -> None:
        database.session.execute(text(sql))

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        sql = statement if scope["path"] == "/sleeps" else "SELECT 1"
        if kind == "sync":
            await to_thread.run_sync(execute, sql)
        else:
            await database.async_session.execute(text(sql))
        await respond(send)

    return app


def call(server: Server, path: str = "/sleeps", count: int = 1) -> list[socket.socket]:
    """Send a request from each of ``count`` clients, and return them."""
    clients = [server.connect() for _ in range(count)]
    for client in clients:
        client.sendall(request_bytes(path))
    return clients


def hang_ups(
    backend: Backend, count: int, kind: str = "async", wrap: Callable[[Any], Any] = lambda app: app
) -> HangUps:
    """Have ``count`` clients hang up in the middle of a statement of 30 seconds; return what became of it.

    ``wrap`` wraps the application inside the middleware.
    """
    database = Database(backend.url, engine_options={"pool_size": count, "max_overflow": 0})
    app = wrap(handler(database, kind, sleeps(backend)))
    with Server(SQLAlchemyMiddleware(app, database, cancel_on_disconnect=True)) as server:
        clients = call(server, count=count)
        wait_until(lambda: server.out_now(database) == count)
        time.sleep(0.2)  # SQLite does not say what it executes, and needs no more
        ran = _last_of(lambda: asleep(backend), count if backend.name != "sqlite" else 0)
        for client in clients:
            client.close()
        began = time.monotonic()
        wait_until(lambda: server.running == 0)
        runs = _last_of(lambda: asleep(backend), 0)
        seconds = time.monotonic() - began
        again = call(server, "/short", count)
        served = all(client.recv(100).startswith(b"HTTP/1.1 200") for client in again)
        for client in again:
            client.close()
        out = server.out(database)
        server.call(database.async_dispose())
    return HangUps(ran, runs, seconds, out, served)


def _last_of(count: Callable[[], int], wanted: int) -> int:
    """Return ``count()`` when it is as wanted, or after ten seconds; each call of it makes a connection."""
    deadline = time.monotonic() + 10
    while (last := count()) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return last
