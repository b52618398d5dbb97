"""Real clients that hang up in the middle of a statement, on a real server: no statement and no connection is left."""

from __future__ import annotations

import socket
from typing import Any

import anyio
import pytest
from support.asgi import respond
from support.databases import Backend
from support.drivers import EACH, on_drivers
from support.hang_ups import asleep, call, handler, hang_ups, sleeps
from support.marks import KINDS, POSTGRESQL
from support.servers import Server, wait_until

from asgi_sqla import Database, SQLAlchemyMiddleware
from asgi_sqla.asgi import disconnect
from asgi_sqla.engine import interrupting

SOON = 8.0
"""Seconds on a busy machine; the statements take 30."""


def in_task_group(app: Any) -> Any:
    """Run ``app`` in a task of anyio, as BaseHTTPMiddleware does: a cancellation arrives there again and again."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app, scope, receive, send)

    return wrapped


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", POSTGRESQL[:1], indirect=True)
def test_twenty_clients_that_hang_up_leave_nothing(backend: Backend, kind: str) -> None:
    """No backend runs their statements, and the pool is whole."""
    seen = hang_ups(backend, 20, kind)

    assert (seen.ran, seen.runs, seen.out, seen.served) == (20, 0, 0, True)
    assert seen.seconds < SOON


@on_drivers(*EACH)
def test_every_driver_ends_the_statement(backend: Backend, kind: str) -> None:
    """Whether it asks its server when it is cancelled or not."""
    seen = hang_ups(backend, 2, kind)

    assert (seen.runs, seen.out, seen.served) == (0, 0, True)
    assert seen.seconds < SOON


@on_drivers("asyncpg", "psycopg async")
def test_a_cancellation_that_is_repeated_ends_it_too(backend: Backend, kind: str) -> None:
    """It would cut short what asyncpg and psycopg ask their server by themselves."""
    seen = hang_ups(backend, 2, kind, in_task_group)

    assert (seen.runs, seen.out, seen.served) == (0, 0, True)
    assert seen.seconds < SOON


@on_drivers("asyncpg")
def test_a_half_closed_connection_counts_as_gone(backend: Backend, kind: str) -> None:
    """So the servers have it: they would not send a response any more."""
    database = Database(backend.url)
    app = handler(database, kind, sleeps(backend))
    with Server(SQLAlchemyMiddleware(app, database, cancel_on_disconnect=True)) as server:
        (client,) = call(server)
        assert wait_until(lambda: asleep(backend) == 1)
        client.shutdown(socket.SHUT_WR)

        assert wait_until(lambda: server.running == 0 and asleep(backend) == 0, SOON)
        assert client.recv(1) == b""
        client.close()
        assert server.out(database) == 0
        server.call(database.async_dispose())


def test_a_large_body_arrives_whole_and_the_connection_is_kept(sqlite: Backend) -> None:
    """The application takes its time before it reads; the server stops reading meanwhile, and goes on."""
    sizes: list[int] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep(2 * disconnect.WATCH_AFTER)
        size, more = 0, True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            size, more = size + len(message["body"]), message["more_body"]
        sizes.append(size)
        await respond(send, 204)

    head = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
    middleware = SQLAlchemyMiddleware(app, Database(sqlite.url), cancel_on_disconnect=True)
    with Server(middleware) as server, server.connect() as client:
        for size in (2**20, 0, 5):
            client.sendall(head % size + bytes(size))
            assert client.recv(1000).startswith(b"HTTP/1.1 204")

    assert sizes == [2**20, 0, 5]


@on_drivers("pymysql")
def test_only_a_query_of_our_own_connection_is_killed(backend: Backend, kind: str) -> None:
    """A proxy may give its number to a stranger; the port that it comes from tells."""
    database = Database(backend.url)
    with database.engine.connect() as connection, database.engine.connect() as other:
        raw: Any = connection.connection.driver_connection
        killer: Any = other.connection.driver_connection
        executed: list[str] = []

        class Cursor:
            """A cursor that notes what it executes."""

            def __init__(self) -> None:
                self.own = killer.cursor()

            def execute(self, statement: str) -> None:
                executed.append(statement)
                self.own.execute(statement)

            def fetchone(self) -> Any:
                return self.own.fetchone()

        port = interrupting._local_port(raw)
        assert port is not None
        interrupting._kill_if_ours(Cursor(), raw.thread_id(), port)  # it is idle
        interrupting._kill_if_ours(Cursor(), killer.thread_id(), port)  # another one's number

    assert kind == "sync"
    assert [one for one in executed if one.startswith("KILL")] == []
    database.dispose()
