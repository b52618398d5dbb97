"""Work after the start of an incomplete response is rolled back, although the application returns normally."""

from __future__ import annotations

from typing import Any

import pytest
from support.asgi import Call, http_scope, respond
from support.databases import Backend, Item

from asgi_sqla import Database, SQLAlchemyMiddleware

START = {"type": "http.response.start", "status": 200, "headers": []}
MORE = {"type": "http.response.body", "body": b"a", "more_body": True}
CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept"}


@pytest.mark.parametrize("sent", [[START], [START, MORE]], ids=["started", "half sent"])
async def test_an_unfinished_response_keeps_what_was_committed(
    database: Database, backend: Backend, sent: list[Any]
) -> None:
    """A framework may stop sending after an exception in a body: the work of the body is rolled back."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="before"))
        for message in sent:
            await send(message)
        database.async_session.add(Item(name="in the body"))
        await database.async_session.flush()

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.messages) == (None, sent)
    assert backend.names() == ["before"]


async def test_a_finished_response_keeps_what_comes_after(database: Database, backend: Backend) -> None:
    """The writes of a background task after the body are committed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)
        database.async_session.add(Item(name="in the background"))

    await Call(SQLAlchemyMiddleware(app, database))()

    assert backend.names() == ["in the background"]


@pytest.mark.parametrize("states", [True, False])
async def test_an_exception_after_the_start_spares_the_server(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture, states: bool
) -> None:
    """It is raised to a server that states its spec_version, and logged if it would harm later requests."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)
        database.async_session.add(Item(name="late"))
        raise ValueError("late")

    asgi = {"version": "3.0", "spec_version": "2.3"} if states else {"version": "3.0"}
    call = await Call(SQLAlchemyMiddleware(app, database), http_scope(asgi=asgi))()

    assert isinstance(call.raised, ValueError) is states
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ([] if states else ["late"])
    assert backend.names() == []


async def converse(database: Database, *, accept: bool, close: dict[str, Any]) -> list[Any]:
    """Accept a websocket or not, do work, and close the socket; return what was sent."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if accept:
            await send(ACCEPT)
        database.async_session.add(Item(name="a"))
        await database.async_session.flush()
        await send({"type": "websocket.close", **close})

    async def receive() -> Any:
        return CONNECT

    async def send(message: Any) -> None:
        sent.append((message["type"], [] if message["type"] == "websocket.accept" else names()))

    def names() -> list[str]:
        with database.engine.connect() as connection:
            return [row.name for row in connection.execute(Item.__table__.select())]

    await SQLAlchemyMiddleware(app, database)({"type": "websocket", "path": "/ws"}, receive, send)
    return sent


@pytest.mark.parametrize(
    ("close", "kept"),
    [({}, True), ({"code": 1000}, True), ({"code": 1001}, True), ({"code": 1011}, False), ({"code": 4500}, False)],
)
async def test_a_close_code_decides(database: Database, backend: Backend, close: dict[str, Any], kept: bool) -> None:
    """A close code for success commits the message, and any other rolls it back."""
    sent = await converse(database, accept=True, close=close)

    assert sent == [("websocket.accept", []), ("websocket.close", ["a"] if kept else [])]
    assert backend.names() == (["a"] if kept else [])


async def test_a_refused_handshake_keeps_nothing(database: Database, backend: Backend) -> None:
    """A close before the handshake is answered 403, whatever its code is."""
    sent = await converse(database, accept=False, close={"code": 1000})

    assert sent == [("websocket.close", [])]
    assert backend.names() == []
