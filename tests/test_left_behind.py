"""A worker thread that outlives its cancelled request leaves nothing open, at whatever step it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from anyio import to_thread
from sqlalchemy import Connection, event, insert
from sqlalchemy.orm import Session
from support.asgi import Call, respond
from support.databases import Backend, Item, connections_out
from support.failing import engine_of
from support.servers import wait_until

from asgi_sqla import Database, SQLAlchemyMiddleware

PATIENCE = 10.0

Way = Callable[[Session], object]


def row(name: str) -> Any:
    return insert(Item).values(name=name)


def in_begin(session: Session) -> None:
    with session.begin():
        session.execute(row("a"))


def in_savepoint(session: Session) -> None:
    session.execute(row("a"))
    with session.begin_nested():
        session.execute(row("b"))


def in_savepoint_of_unflushed(session: Session) -> None:
    with session.begin_nested():
        session.add(Item(name="a"))


def by_the_savepoint(session: Session) -> None:
    savepoint = session.begin_nested()
    session.execute(row("a"))
    savepoint.rollback()


def on_the_connection(session: Session) -> None:
    session.connection().execute(row("a"))


def many_on_the_connection(session: Session) -> None:
    session.connection().execute(insert(Item), [{"name": "a"}, {"name": "b"}])


def on_the_driver(session: Session) -> None:
    session.connection().exec_driver_sql("INSERT INTO item (name) VALUES ('a')")


WAYS: list[tuple[Way, str]] = [
    (in_begin, "COMMIT"),
    (in_begin, "INSERT"),
    (in_savepoint, "RELEASE"),
    (in_savepoint_of_unflushed, "INSERT"),
    (in_savepoint_of_unflushed, "RELEASE"),
    (by_the_savepoint, "ROLLBACK TO"),
    (on_the_connection, "INSERT"),
    (many_on_the_connection, "INSERT"),
    (on_the_driver, "INSERT"),
]


@pytest.mark.parametrize(("way", "at"), WAYS, ids=[f"{way.__name__} at {at}" for way, at in WAYS])
async def test_a_thread_that_is_left_behind(database: Database, backend: Backend, way: Way, at: str) -> None:
    """It waits in a statement, or in its COMMIT, while its task is cancelled and its unit ends."""
    reached, go_on, left = threading.Event(), threading.Event(), threading.Event()

    def hold(what: str) -> None:
        if what.startswith(at) and not reached.is_set():
            reached.set()
            assert go_on.wait(PATIENCE)

    def on_statement(_connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        hold(statement)

    def work() -> None:
        try:
            way(database.session)
        finally:
            left.set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await to_thread.run_sync(work, abandon_on_cancel=True)
        await respond(send, 201)

    engine = engine_of(database, "sync")
    event.listen(engine, "before_cursor_execute", on_statement)
    event.listen(engine, "commit", lambda _connection: hold("COMMIT"))
    call = Call(SQLAlchemyMiddleware(app, database))
    request = asyncio.create_task(call())
    await asyncio.to_thread(reached.wait, PATIENCE)
    request.cancel()
    await asyncio.wait((request,))
    go_on.set()

    assert await asyncio.to_thread(left.wait, PATIENCE)
    assert wait_until(lambda: connections_out(database) == 0, PATIENCE)
    assert backend.name == "sqlite" or backend.backends("idle in transaction%") == 0
    assert call.starts == []
    assert backend.names() == (["a"] if (way, at) == (in_begin, "COMMIT") else [])
