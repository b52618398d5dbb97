"""A request's unit is made for who first asks: in a thread, at any moment of the response, or after it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from typing import Any

import pytest
from sqlalchemy import text
from support.asgi import Call, respond
from support.databases import Backend, Item

from asgi_sqla import Database, SQLAlchemyMiddleware, UnitOfWork, UnitOfWorkEndedError, current_unit, session_scope

BODY = {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.fixture
def database(sqlite: Backend) -> Database:
    """Return the database that the requests use."""
    return Database(sqlite.url)


def write(database: Database) -> None:
    """Insert a row in the current unit."""
    database.session.add(Item(name="written"))
    database.session.flush()


class Meddling(dict[str, Any]):
    """A message whose reader is interrupted by a thread, between any two of its steps."""

    def __init__(self, message: dict[str, Any], meddle: Any) -> None:
        super().__init__(message)
        self._meddle = meddle

    def __getitem__(self, key: str) -> Any:
        """Let the thread do all of its work first, once."""
        meddle, self._meddle = self._meddle, None
        if meddle is not None:
            thread = threading.Thread(target=contextvars.copy_context().run, args=(meddle,))
            thread.start()
            thread.join()
        return super().__getitem__(key)


async def test_what_a_thread_wrote_as_the_response_starts_is_committed_first(
    database: Database, sqlite: Backend
) -> None:
    """The thread asks for the unit between the moment that the start is seen and the moment that it is forwarded."""
    rows: list[list[str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(Meddling({"type": "http.response.start", "status": 200, "headers": []}, lambda: write(database)))
        rows.append(sqlite.names())
        await send(BODY)

    await Call(SQLAlchemyMiddleware(app, database))()
    assert rows == [["written"]]


async def test_what_a_thread_wrote_as_the_body_ends_is_committed(database: Database, sqlite: Backend) -> None:
    """The unit that the thread asks for knows that the response is complete, so it is not rolled back."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(Meddling(BODY, lambda: write(database)))

    await Call(SQLAlchemyMiddleware(app, database))()
    assert sqlite.names() == ["written"]


async def test_threads_that_ask_at_once_get_the_same_unit(database: Database) -> None:
    """There is never a second unit, however many ask first."""
    asked: list[set[UnitOfWork]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        together = threading.Barrier(4)

        def ask() -> UnitOfWork:
            together.wait()
            return current_unit()

        asked.append(set(await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(4)))))
        await respond(send)

    behind = SQLAlchemyMiddleware(app, database)
    for _ in range(50):
        await Call(behind)()
    assert [len(units) for units in asked] == [1] * 50


@pytest.mark.parametrize("before", [False, True], ids=["first asked after", "asked before"])
async def test_who_asks_after_the_request_is_told_that_it_is_over(database: Database, before: bool) -> None:
    """This is so for a context that outlives a request, whether or not the request had asked for its unit."""
    contexts: list[contextvars.Context] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if before:
            current_unit()
        contexts.append(contextvars.copy_context())
        await respond(send)

    await Call(SQLAlchemyMiddleware(app, database))()
    with pytest.raises(UnitOfWorkEndedError, match="a request that is over"):
        contexts[0].run(current_unit)


async def test_a_scope_inside_a_request_does_not_use_its_unit(database: Database) -> None:
    """A nested unit asks for the one around it, and leaves it unused."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with session_scope(database) as session:
            session.execute(text("SELECT 1"))
        assert not current_unit()._used
        await respond(send)

    assert (await Call(SQLAlchemyMiddleware(app, database))()).status == 200


async def test_an_application_may_take_the_unit_out_of_the_scope(database: Database) -> None:
    """The request goes on and ends as ever."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope.clear()
        await database.async_session.execute(text("SELECT 1"))
        await respond(send)

    assert (await Call(SQLAlchemyMiddleware(app, database))()).status == 200


def start(**more: Any) -> dict[str, Any]:
    """Return the start of a response."""
    return {"type": "http.response.start", "status": 200, "headers": [], **more}


def body(*, more: bool) -> dict[str, Any]:
    """Return a part of the body."""
    return {"type": "http.response.body", "body": b"part", "more_body": more}


DEBUG = {"type": "http.response.debug", "info": {}}
PATH = {"type": "http.response.pathsend", "path": __file__}
TRAILERS = {"type": "http.response.trailers", "headers": [], "more_trailers": False}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ([DEBUG, start()], False),
        ([start(), DEBUG], False),
        ([start(), body(more=True)], False),
        ([start(), body(more=True), DEBUG], False),
        ([start(), {"type": "http.response.body"}], True),
        ([DEBUG, start(), body(more=True), body(more=False)], True),
        ([start(), PATH], True),
        ([start(trailers=True), body(more=False), TRAILERS], True),
    ],
    ids=["late start", "start", "part", "part and more", "body", "parts", "path", "trailers"],
)
async def test_a_unit_that_is_made_late_knows_how_far_the_response_is(
    database: Database, sqlite: Backend, sent: list[dict[str, Any]], kept: bool
) -> None:
    """What is written after a whole response is committed, and what is written within one that never ends is not."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in sent:
            await send(message)
        write(database)

    await Call(SQLAlchemyMiddleware(app, database))()
    assert sqlite.names() == (["written"] if kept else [])


async def test_an_unused_request_keeps_no_part_of_its_body(database: Database) -> None:
    """The stand-in notes of which kind the last message was, and not the message."""
    parts: list[Any] = []

    class Part(dict[str, Any]):
        """A message that can be weakly referred to."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        part = Part(body(more=False))
        parts.append(weakref.ref(part))
        await send(part)
        del part
        parts.append(parts[0]())

    async def send(_message: Any) -> None:
        """Drop it."""

    await SQLAlchemyMiddleware(app, database)({"type": "http", "method": "GET", "path": "/"}, receive, send)
    assert parts[1] is None


async def receive() -> dict[str, Any]:
    """Return an empty body."""
    return {"type": "http.request", "body": b"", "more_body": False}
