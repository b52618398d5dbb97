"""The handshake of a websocket, and sessions that a framework injects once for all messages."""

import asyncio
import itertools
import sys
from collections.abc import Callable
from typing import Annotated, Any, Self

import pytest
from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from support.asgi import App, Message
from support.databases import Backend, Item, connections_out
from support.marks import KINDS

from asgi_sqla import Database, SQLAlchemyMiddleware

_names = itertools.count(1)


class Socket:
    """The server's side of a websocket: gives ``events`` in turn, and checks the database before each message."""

    def __init__(self, app: App, backend: Backend, events: list[Message], database: Database) -> None:
        self.app = app
        self.backend = backend
        self.database = database
        self.events = events
        self.sent: list[str] = []
        self.rows_at_send: list[list[str]] = []
        self.rows_at_receive: list[list[str]] = []
        self.out_at_receive: list[int] = []
        self.raised: BaseException | None = None

    async def receive(self) -> Message:
        """Give the next event, and record rows and connections while the application waits."""
        self.rows_at_receive.append(self.backend.names())
        self.out_at_receive.append(connections_out(self.database))
        if self.events:
            return self.events.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        """Keep the message's type, and what was committed before it left."""
        self.sent.append(message["type"].removeprefix("websocket."))
        self.rows_at_send.append(self.backend.names())

    async def run(self) -> Self:
        """Run the application to its end."""
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "scheme": "ws",
            "headers": [],
            "subprotocols": [],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "extensions": {"websocket.http.response": {}},
            "state": {},
        }
        try:
            await asyncio.wait_for(self.app(scope, self.receive, self.send), 5)
        except BaseException as exc:
            self.raised = exc
        return self


CONNECT = {"type": "websocket.connect"}
GOODBYE = {"type": "websocket.disconnect", "code": 1000}


def text(data: str) -> Message:
    """Return a message of the client's."""
    return {"type": "websocket.receive", "text": data}


async def add(database: Database, kind: str, name: str) -> None:
    """Write an item, and flush it."""
    if kind == "async":
        database.async_session.add(Item(name=name))
        await database.async_session.flush()
    else:
        database.session.add(Item(name=name))
        database.session.flush()


ACCEPT = {"type": "websocket.accept"}
CLOSE = {"type": "websocket.close", "code": 1000}
REFUSE = {"type": "websocket.close", "code": 1008}
WORK = "work"
RECEIVE = "receive"
RAISE = "raise"


def start(status: int) -> Message:
    """Return the start of a denial response."""
    return {"type": "websocket.http.response.start", "status": status, "headers": []}


def part(*, more: bool) -> Message:
    """Return a part of the body of a denial response."""
    return {"type": "websocket.http.response.body", "body": b"x", "more_body": more}


def program(database: Database, kind: str, steps: tuple[Any, ...]) -> App:
    """Return an application that takes the steps; each piece of work writes a row, "1", "2" and so on."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        numbers = itertools.count(1)
        for step in steps:
            if step == WORK:
                await add(database, kind, str(next(numbers)))
            elif step == RECEIVE:
                await receive()
            elif step == RAISE:
                raise ZeroDivisionError
            else:
                await send(step)

    return app


PROGRAMS: dict[str, tuple[tuple[Any, ...], list[str]]] = {
    # never accepted
    "returns at once": ((WORK,), []),
    "returns after connect": ((RECEIVE, WORK), []),
    "returns after work on both sides of connect": ((WORK, RECEIVE, WORK), []),
    "raises": ((RECEIVE, WORK, RAISE), []),
    # refused
    "work, then refused": ((RECEIVE, WORK, REFUSE), []),
    "work before connect, then refused": ((WORK, RECEIVE, REFUSE), []),
    "refused with a code that is well": ((RECEIVE, WORK, CLOSE), []),
    "refused, then work": ((RECEIVE, REFUSE, WORK), []),
    "refused, then connect asked for": ((WORK, REFUSE, RECEIVE), []),
    # accepted
    "accepted": ((RECEIVE, WORK, ACCEPT), ["1"]),
    "work before connect, accepted": ((WORK, RECEIVE, WORK, ACCEPT), ["1", "2"]),
    "accepted before connect": ((WORK, ACCEPT, RECEIVE), ["1"]),
    "accepted, then work": ((RECEIVE, ACCEPT, WORK), ["1"]),
    "accepted, then closed badly": ((RECEIVE, WORK, ACCEPT, WORK, REFUSE), ["1"]),
    "accepted, then closed well": ((RECEIVE, WORK, ACCEPT, WORK, CLOSE), ["1", "2"]),
    "accepted, then raises": ((RECEIVE, WORK, ACCEPT, WORK, RAISE), ["1"]),
    # denied with a response
    "denied": ((RECEIVE, WORK, start(403), part(more=False)), []),
    "denied, work before connect": ((WORK, RECEIVE, start(401), part(more=False)), []),
    "denied, then work, complete": ((RECEIVE, start(403), WORK, part(more=False)), ["1"]),
    "denied, then work, in parts": ((RECEIVE, start(403), part(more=True), WORK, part(more=False)), ["1"]),
    "denied, complete, then work": ((RECEIVE, start(403), part(more=False), WORK), ["1"]),
    "denied, given up at its start": ((RECEIVE, start(403), WORK), []),
    "denied, given up in its body": ((RECEIVE, start(403), part(more=True), WORK), []),
    "denied, given up, asked for more": ((RECEIVE, start(403), WORK, RECEIVE), []),
    "denied, raises in its body": ((RECEIVE, start(403), part(more=True), WORK, RAISE), []),
    "answered below 400": ((RECEIVE, WORK, start(200), part(more=False)), ["1"]),
    "answered below 400, given up": ((RECEIVE, WORK, start(200), WORK), ["1"]),
}
"""What an application does, and which of its rows are kept."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_handshake_keeps_what_its_client_was_told(
    database: Database, backend: Backend, name: str, kind: str
) -> None:
    """Work is kept if the handshake was accepted, or answered with success and completely; no connection stays out."""
    steps, kept = PROGRAMS[name]
    app = SQLAlchemyMiddleware(program(database, kind, steps), database)
    socket = await Socket(app, backend, [CONNECT, GOODBYE], database).run()

    assert backend.names() == kept
    assert connections_out(database) == 0
    assert isinstance(socket.raised, ZeroDivisionError | None)


@pytest.mark.parametrize("kind", KINDS)
async def test_work_is_committed_before_accept_is_forwarded(database: Database, backend: Backend, kind: str) -> None:
    """A client that knows of the handshake finds its row."""
    app = SQLAlchemyMiddleware(program(database, kind, (RECEIVE, WORK, ACCEPT)), database)
    socket = await Socket(app, backend, [CONNECT], database).run()
    assert (socket.sent, socket.rows_at_send) == (["accept"], [["1"]])


# Sessions injected once


def plain(database: Database, kind: str) -> App:
    """Return an ASGI application that gets its session once."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session: Any = database.async_session if kind == "async" else database.session
        await receive()
        await send(ACCEPT)
        while (event := await receive())["type"] == "websocket.receive":
            await write(session, event["text"])
            await send({"type": "websocket.send", "text": "written"})

    return app


async def write(session: AsyncSession | Session, name: str) -> None:
    """Write an item through an injected session."""
    session.add(Item(name=name))
    if isinstance(session, AsyncSession):
        await session.flush()
    else:
        session.flush()


async def converse(websocket: WebSocket, session: AsyncSession | Session) -> None:
    """Write an item for each message."""
    await websocket.accept()
    async for name in websocket.iter_text():
        await write(session, name)
        await websocket.send_text("written")


def starlette(database: Database, kind: str) -> App:
    """Return an application of Starlette, whose endpoint gets the session once."""

    async def endpoint(websocket: WebSocket) -> None:
        await converse(websocket, database.async_session if kind == "async" else database.session)

    return Starlette(routes=[WebSocketRoute("/", endpoint)])


def fastapi(database: Database, kind: str) -> App:
    """Return an application of FastAPI, where a dependency gives the session."""
    api = FastAPI()

    @api.websocket("/")
    async def endpoint(websocket: WebSocket, session: Annotated[Any, Depends(getter(database, kind))]) -> None:
        await converse(websocket, session)

    return api


def getter(database: Database, kind: str) -> Callable[[], Any]:
    """Return the dependency of a kind of session."""
    return database.get_async_session if kind == "async" else database.get_session


def fastapi_in_a_generator(database: Database, kind: str) -> App:
    """Return one whose dependency yields the session, and does nothing after it."""
    api = FastAPI()

    async def session_of_socket() -> Any:
        yield database.async_session if kind == "async" else database.session

    @api.websocket("/")
    async def endpoint(websocket: WebSocket, session: Annotated[Any, Depends(session_of_socket)]) -> None:
        await converse(websocket, session)

    return api


MAKERS = {
    "plain ASGI": plain,
    "Starlette": starlette,
    "FastAPI's Depends": fastapi,
    "FastAPI's Depends with yield": fastapi_in_a_generator,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maker", MAKERS)
async def test_an_injected_session_works_for_every_message(
    database: Database, backend: Backend, maker: str, kind: str
) -> None:
    """Each message is committed when the next is requested, and an idle socket holds no connection."""
    app = SQLAlchemyMiddleware(MAKERS[maker](database, kind), database)
    socket = await Socket(app, backend, [CONNECT, text("a"), text("b"), text("c"), GOODBYE], database).run()

    assert socket.raised is None
    assert socket.sent == ["accept", "send", "send", "send"]
    assert socket.rows_at_receive == [[], [], ["a"], ["a", "b"], ["a", "b", "c"]]
    assert socket.out_at_receive == [0] * 5
    assert backend.names() == ["a", "b", "c"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maker", MAKERS)
async def test_a_message_that_fails_rolls_back_only_itself(
    database: Database, backend: Backend, maker: str, kind: str
) -> None:
    """The row of the failing message is lost, the rows before it stay, and the injected session is closed for good."""
    app = SQLAlchemyMiddleware(MAKERS[maker](database, kind), database)
    socket = await Socket(app, backend, [CONNECT, text("a"), text("b"), text("a"), GOODBYE], database).run()

    assert type(socket.raised).__name__ == "IntegrityError"
    assert backend.names() == ["a", "b"]
    assert connections_out(database) == 0


async def test_a_denial_of_a_framework_is_judged_by_its_status(database: Database, backend: Backend) -> None:
    """Starlette sends a response instead of the handshake."""

    async def endpoint(websocket: WebSocket) -> None:
        await add(database, "async", f"{next(_names)}")
        await websocket.send_denial_response(PlainTextResponse("no", status_code=403))

    app = SQLAlchemyMiddleware(Starlette(routes=[WebSocketRoute("/", endpoint)]), database)
    socket = await Socket(app, backend, [CONNECT], database).run()
    assert (socket.raised, socket.sent) == (None, ["http.response.start", "http.response.body"])
    assert backend.names() == []


# What is committed when


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_sent_with_open_work_leaves_before_its_commit(
    database: Database, backend: Backend, kind: str
) -> None:
    """Asking for the next message commits it, so only a scope of its own can tell what is committed."""
    app = SQLAlchemyMiddleware(plain(database, kind), database)
    socket = await Socket(app, backend, [CONNECT, text("a"), GOODBYE], database).run()

    assert (socket.sent, socket.rows_at_send) == (["accept", "send"], [[], []])
    assert socket.rows_at_receive == [[], [], ["a"]]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_wait_with_a_limit_is_another_task_before_python_3_12(
    database: Database, backend: Backend, kind: str
) -> None:
    """There ``asyncio.wait_for`` says nothing about the work of its caller, which then commits at the end."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        while (await asyncio.wait_for(receive(), 5))["type"] == "websocket.receive":
            await write(database.async_session if kind == "async" else database.session, "a")

    socket = await Socket(SQLAlchemyMiddleware(app, database), backend, [CONNECT, text("a"), GOODBYE], database).run()

    at_the_third = ["a"] if sys.version_info >= (3, 12) else []
    assert (socket.raised, socket.rows_at_receive, backend.names()) == (None, [[], [], at_the_third], ["a"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raises", [True, False])
async def test_a_conversation_that_another_task_receives_is_one_unit(
    database: Database, backend: Backend, kind: str, raises: bool
) -> None:
    """After the client has disconnected an application that raises keeps nothing, and one that returns keeps all."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.create_task(receive())
        await send(ACCEPT)
        while (event := await asyncio.create_task(receive()))["type"] == "websocket.receive":
            await write(database.async_session if kind == "async" else database.session, event["text"])
        if raises:
            raise KeyError

    events = [CONNECT, text("a"), text("b"), GOODBYE]
    socket = await Socket(SQLAlchemyMiddleware(app, database), backend, events, database).run()

    assert (type(socket.raised), socket.rows_at_receive) == (KeyError if raises else type(None), [[]] * 4)
    assert backend.names() == ([] if raises else ["a", "b"])
