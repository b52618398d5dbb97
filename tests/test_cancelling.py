"""psycopg with a libpq before version 17, which asks a server to cancel a statement without a limit of time.

The newest psycopg brings a newer libpq, so there the tests only say that it is older.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable

import pytest
from psycopg import capabilities
from sqlalchemy import text
from support.dark import dark
from support.databases import Backend
from support.failing import until

from asgi_sqla import Database, session_scope
from asgi_sqla.engine.cancelling import asking_first

pytestmark = pytest.mark.parametrize("backend", ["psycopg"], indirect=True)

SLEEPS = "SELECT pg_sleep(30)"


@pytest.fixture(autouse=True)
def _older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "has_cancel_safe", lambda *_arguments: False)


async def _cancelled(database: Database, is_running: Callable[[], bool], then: Callable[[], object]) -> None:
    async def work() -> None:
        async with session_scope(database) as session:
            await session.execute(text(SLEEPS))

    task = asyncio.create_task(work())
    await until(is_running)
    then()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)


async def test_a_cancelled_task_ends_its_statement(backend: Backend) -> None:
    """The server hears of it, as with a newer libpq."""
    database = Database(backend.url)
    await _cancelled(database, lambda: backend.asleep() == 1, lambda: None)
    await until(lambda: backend.asleep() == 0)
    await database.async_dispose()


async def test_a_silent_server_stops_nobody_else(backend: Backend) -> None:
    """The event loop goes on while the server is asked, and the cancelled task ends."""
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.05)
            longest = max(longest, time.monotonic() - began)

    with dark(backend) as (proxy, url):
        database = Database(url)
        beating = asyncio.create_task(beat())
        await _cancelled(database, lambda: backend.asleep() == 1, proxy.go_dark)
        beating.cancel()
        assert longest < 2  # psycopg waits for at least five seconds
        await database.async_dispose()
    backend.terminate()


@pytest.mark.usefixtures("backend")
def test_a_server_that_hangs_up_is_not_asked() -> None:
    """It does not answer either."""
    made: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as raw:
        request = asking_first(raw, lambda: made.append("request"), 5)
        accepted, _ = server.accept()
        hanging_up = threading.Thread(target=lambda: server.accept()[0].close())
        hanging_up.start()
        with pytest.raises(ConnectionError):
            request()
        hanging_up.join()
        assert (raw.recv(1), accepted.recv(1), made) == (b"", b"", [])  # cut at both ends
        accepted.close()
