"""Work whose event loop was closed in the middle: nothing can be awaited, and nothing of the work stays."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session
from support.asgi import Call, http_scope
from support.databases import Backend, Item, sqlite_backend
from support.failing import BrokenError
from support.marks import KINDS
from support.servers import wait_until

from asgi_sqla import Database, SQLAlchemyMiddleware, session_scope

Work = Callable[[], Coroutine[Any, Any, None]]


async def in_request(database: Database, work: Work) -> None:
    """Do ``work`` in a request."""

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        await work()

    await Call(SQLAlchemyMiddleware(app, database))()


async def in_websocket(database: Database, work: Work) -> None:
    """Do ``work`` in a websocket."""

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        await work()

    await Call(SQLAlchemyMiddleware(app, database), {**http_scope(), "type": "websocket"})()


async def in_scope(database: Database, work: Work) -> None:
    """Do ``work`` in a scope."""
    async with session_scope(database):
        await work()


def leave_unfinished(database: Database, kind: str, run: Callable[[Database, Work], Coroutine[Any, Any, None]]) -> None:
    """Begin to write on an event loop, and close the loop in the middle."""
    written: list[bool] = []

    async def work() -> None:
        if kind == "sync":
            database.session.add(Item(name="a"))
            database.session.flush()
        else:
            database.async_session.add(Item(name="a"))
            await database.async_session.flush()
        written.append(True)
        await asyncio.Event().wait()

    async def until_written(task: asyncio.Task[None]) -> None:
        while not (written or task.done()):  # noqa: ASYNC110 -- it sets no event
            await asyncio.sleep(0.005)

    loop = asyncio.new_event_loop()
    running = run(database, work)
    task = loop.create_task(running)
    loop.run_until_complete(until_written(task))
    if task.done():
        raise AssertionError from task.exception()
    loop.close()
    running.close()  # as the garbage collector does, sooner or later
    del task


@pytest.fixture
def _careless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Allow the warnings of asyncio and the drivers about such a loop, because they are true."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _unraisable: None)
    for name in ("asyncio", "sqlalchemy.pool"):  # pytest keeps their records, and with a traceback the connection
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


@pytest.mark.usefixtures("_careless")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [in_request, in_websocket, in_scope])
def test_what_was_begun_is_rolled_back(
    backend: Backend,
    kind: str,
    run: Callable[[Database, Work], Coroutine[Any, Any, None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is kept, no connection is in a transaction, and the database stays usable."""
    database = Database(backend.url)

    leave_unfinished(database, kind, run)

    if backend.name != "sqlite":
        caplog.clear()  # its records have tracebacks, and those the connection
        gc.collect()  # psycopg closes a connection whose loop is gone when nobody has it any more
        assert wait_until(lambda: backend.backends("idle in transaction") == 0)
    with session_scope(database) as session:
        session.add(Item(name="b"))
    database.dispose()
    assert backend.names() == ["b"]


class StubbornSession(Session):
    """A user's session class that cannot be closed."""

    def close(self) -> None:
        super().close()
        raise BrokenError


@pytest.mark.usefixtures("_careless")
def test_a_session_that_cannot_be_closed_keeps_no_other_open(
    sqlite: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so, and the sessions after it are closed."""
    (tmp_path / "first").mkdir()
    first = sqlite_backend(tmp_path / "first")
    stubborn = Database(first.url, session_options={"class_": StubbornSession})
    database = Database(sqlite.url)

    async def in_both(database: Database, work: Work) -> None:
        async with session_scope(database):
            stubborn.session.add(Item(name="a"))
            stubborn.session.flush()
            await work()

    leave_unfinished(database, "sync", in_both)

    failed = [record.exc_info for record in caplog.records if record.name == "asgi_sqla"]
    assert [one and one[0] for one in failed] == [BrokenError]
    assert [one.engine.pool.checkedout() for one in (stubborn, database)] == [0, 0]  # type: ignore[attr-defined]  # queues
    for one in (stubborn, database):
        one.dispose()
    first.witness.dispose()
    assert (first.names(), sqlite.names()) == ([], [])
