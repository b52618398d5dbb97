"""WebSockets on a real socket: each message is a unit of work, and an idle socket holds no connection."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.exceptions import WebSocketException
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from support.databases import NO_OWNER, Backend, Item
from support.marks import KINDS, on_one, on_server
from support.servers import Server, errors, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from asgi_sqla import Database, SQLAlchemyMiddleware, UnitOfWorkEndedError, session_scope

Endpoint = Callable[[WebSocket], Awaitable[None]]


def application(endpoint: Endpoint) -> Starlette:
    """Return an application with one websocket."""
    return Starlette(routes=[WebSocketRoute("/", endpoint)])


def client(server: Server) -> ClientConnection:
    """Return a connection to the server."""
    return connect(f"ws://127.0.0.1:{server.port}/", open_timeout=10, close_timeout=5)


def vanish(connection: ClientConnection) -> None:
    """Break the connection as a lost network does: with a reset, and without a close frame."""
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.socket.close()


async def add(database: Database, kind: str, **fields: Any) -> None:
    """Write an item through the session of ``kind``, in the current task."""
    if kind == "async":
        database.async_session.add(Item(**fields))
        await database.async_session.flush()
    else:
        database.session.add(Item(**fields))
        database.session.flush()


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_commits_when_the_handler_asks_for_the_next(database: Database, backend: Backend, kind: str) -> None:
    """Between messages the last one's work is committed, and no connection is held."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        async for name in websocket.iter_text():
            await add(database, kind, name=name)
            await websocket.send_text(f"got {name}")

    with Server(SQLAlchemyMiddleware(application(endpoint), database)) as server, client(server) as conversation:
        for name in ("a", "b"):
            conversation.send(name)
            assert conversation.recv(10) == f"got {name}"
            assert wait_until(lambda: server.out_now(database) == 0)
            assert backend.names()[-1] == name
        assert server.running == 1


@pytest.mark.parametrize("at", ["idle", "in the middle of its work"])
@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_a_client_that_vanishes_leaves_no_connection_behind(
    database: Database, backend: Backend, kind: str, at: str
) -> None:
    """However the client disconnects, the handler ends, and with it every transaction."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        async for name in websocket.iter_text():
            await add(database, kind, name=name)
            await websocket.send_text("got it")
            if at != "idle":
                while websocket.client_state.name == "CONNECTED":
                    await websocket.send_text("and more")
                    await asyncio.sleep(0.005)

    with Server(SQLAlchemyMiddleware(application(endpoint), database)) as server:
        with client(server) as conversation:
            conversation.send("a")
            conversation.recv(10)
            vanish(conversation)
        idle = server.idle()
        out = server.out_now(database)
        left = backend.backends("idle in transaction") if backend.is_postgresql else 0

    assert (idle, out, left) == (True, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_rolls_back_its_own_message_alone(
    database: Database, backend: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The work of earlier messages stays, that of the failing one is lost, and the server sees the error once."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        async for name in websocket.iter_text():
            await add(database, kind, name=name)
            if name == "bad":
                raise ValueError(name)

    with Server(SQLAlchemyMiddleware(application(endpoint), database)) as server:
        with client(server) as conversation:
            conversation.send("good")
            conversation.send("bad")
            wait_until(lambda: server.running == 0)
        out = server.out(database)

    assert (out, backend.names()) == (0, ["good"])
    assert errors(caplog.records) == ["ValueError"]


@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_work_after_the_last_message_commits_when_the_handler_returns(
    database: Database, backend: Backend, kind: str
) -> None:
    """Work of the handler after a disconnect is kept like any other."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await websocket.receive_text()
        except WebSocketDisconnect:
            await add(database, kind, name="goodbye")

    with Server(SQLAlchemyMiddleware(application(endpoint), database)) as server:
        with client(server):
            pass
        out = server.out(database)

    assert (out, backend.names()) == (0, ["goodbye"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_commit_is_raised_where_the_next_message_was_asked_for(
    database: Database, backend: Backend, kind: str
) -> None:
    """The handler gets the error before the next message, and can continue."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            try:
                name = await websocket.receive_text()
            except DBAPIError as exc:
                await websocket.send_text(type(exc).__name__)
                continue
            except WebSocketDisconnect:
                return
            await add(database, kind, name=name, owner_id=NO_OWNER if name == "bad" else None)

    with Server(SQLAlchemyMiddleware(application(endpoint), database)) as server:
        with client(server) as conversation:
            conversation.send("bad")
            told = conversation.recv(10)
            conversation.send("good")
        out = server.out(database)

    assert (told, out, backend.names()) == (backend.commit_error.__name__, 0, ["good"])


@pytest.mark.parametrize("reader_uses_it", [False, True], ids=["writer alone", "reader too"])
@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_where_another_task_reads_nothing_is_committed_in_the_middle_of_the_work(
    database: Database, backend: Backend, kind: str, reader_uses_it: bool
) -> None:
    """A reader that reads ahead says nothing about the writer's work, which commits when the application returns."""
    seen: list[list[str]] = []

    async def read_ahead(websocket: WebSocket, queue: "asyncio.Queue[str | None]") -> None:
        async for name in websocket.iter_text():
            await queue.put(name)
        await queue.put(None)

    async def write(websocket: WebSocket, queue: "asyncio.Queue[str | None]") -> None:
        while (name := await queue.get()) is not None:
            await add(database, kind, name=f"{name}, first half")
            await websocket.send_text("half")
            await asyncio.sleep(0)
            seen.append(backend.names())
            await add(database, kind, name=f"{name}, second half")
            await websocket.send_text("done")

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        if reader_uses_it:
            await add(database, kind, name="hello")
        async with asyncio.TaskGroup() as group:
            group.create_task(read_ahead(websocket, queue))
            group.create_task(write(websocket, queue))

    with Server(SQLAlchemyMiddleware(application(endpoint), database)) as server:
        with client(server) as conversation:
            for name in ("a", "b", "c"):
                conversation.send(name)
            answers = [conversation.recv(10) for _ in range(6)]
        out = server.out(database)

    halves = [f"{name}, {half} half" for name in "abc" for half in ("first", "second")]
    assert (answers, seen, out) == (["half", "done"] * 3, [[]] * 3, 0)
    assert backend.names() == halves + (["hello"] if reader_uses_it else [])


@on_one
def test_a_writer_task_that_opens_its_own_scopes_commits_each(database: Database, backend: Backend) -> None:
    """If one task reads and another writes, the README advises a scope for each message."""
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    async def write(websocket: WebSocket) -> None:
        while (name := await queue.get()) is not None:
            async with session_scope(database) as session:
                session.add(Item(name=name))
            await websocket.send_text("done")

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        async with asyncio.TaskGroup() as group:
            group.create_task(write(websocket))
            async for name in websocket.iter_text():
                await queue.put(name)
            await queue.put(None)

    with Server(SQLAlchemyMiddleware(application(endpoint), database)) as server, client(server) as conversation:
        for name in ("a", "b"):
            conversation.send(name)
            assert conversation.recv(10) == "done"
            assert backend.names()[-1] == name
        assert server.out_now(database) == 0


@pytest.mark.parametrize(
    ("status", "seen", "kept"), [(403, 403, []), (303, 303, ["a"])], ids=["an error", "a redirect"]
)
@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_a_denial_response_is_judged_by_its_status(
    database: Database, backend: Backend, kind: str, status: int, seen: int, kept: list[str]
) -> None:
    """A websocket that is refused with a response is treated like a request."""

    async def endpoint(websocket: WebSocket) -> None:
        await add(database, kind, name="a")
        await websocket.send_denial_response(PlainTextResponse("no", status))

    assert denial_of(endpoint, database) == (seen, b"no", 0)
    assert backend.names() == kept


@on_one
def test_a_failed_commit_before_a_denial_response_is_answered_as_over_http(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets our error instead of the redirect, and the log has it once."""

    async def endpoint(websocket: WebSocket) -> None:
        await add(database, "async", name="a", owner_id=NO_OWNER)
        await websocket.send_denial_response(PlainTextResponse("there", 303))

    assert denial_of(endpoint, database) == (500, b"Internal Server Error", 0)
    assert backend.names() == []
    assert errors(caplog.records) == [backend.commit_error.__name__]


def denial_of(endpoint: Endpoint, database: Database) -> tuple[int, bytes, int]:
    """Return status and body of the refusal, and how many connections are out after it."""
    with Server(SQLAlchemyMiddleware(application(endpoint), database)) as server:
        with pytest.raises(InvalidStatus) as refused:
            client(server)
        out = server.out(database)
    return refused.value.response.status_code, bytes(refused.value.response.body), out


@pytest.mark.parametrize(("code", "kept"), [(1000, ["a", "b"]), (1001, ["a", "b"]), (1011, ["a"]), (4000, ["a"])])
@pytest.mark.parametrize("how", ["close()", "WebSocketException"])
@on_one
def test_a_close_is_judged_by_its_code(
    database: Database, backend: Backend, how: str, code: int, kept: list[str]
) -> None:
    """A close with an error code rolls back the last message, and no other."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await add(database, "async", name=await websocket.receive_text())
        await add(database, "async", name=await websocket.receive_text())
        if how == "close()":
            await websocket.close(code)
        else:
            raise WebSocketException(code)

    with Server(SQLAlchemyMiddleware(application(endpoint), database)) as server:
        with client(server) as conversation:
            conversation.send("a")
            conversation.send("b")
            with pytest.raises(ConnectionClosed) as closed:
                conversation.recv(10)
        out = server.out(database)

    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, out, backend.names()) == (code, 0, kept)


@on_one
def test_a_refused_handshake_keeps_nothing(database: Database, backend: Backend) -> None:
    """A close before the accept is answered 403, which is an error like any other."""

    async def endpoint(websocket: WebSocket) -> None:
        await add(database, "async", name="a")
        await websocket.close()

    status, _, out = denial_of(endpoint, database)
    assert (status, out, backend.names()) == (403, 0, [])


@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_a_task_that_outlives_its_message_gets_an_error(database: Database, backend: Backend, kind: str) -> None:
    """Its unit has ended by then, and the error says so and what to write."""

    async def later(websocket: WebSocket, go: asyncio.Event) -> None:
        await go.wait()
        try:
            await add(database, kind, name="later")
        except UnitOfWorkEndedError as exc:
            await websocket.send_text(str(exc))

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        go = asyncio.Event()
        tasks = []
        async for name in websocket.iter_text():
            if name == "go":
                go.set()
                continue
            await add(database, kind, name=name)
            tasks.append(asyncio.create_task(later(websocket, go)))
        await asyncio.gather(*tasks)

    with Server(SQLAlchemyMiddleware(application(endpoint), database)) as server:
        with client(server) as conversation:
            conversation.send("a")
            conversation.send("go")
            told = conversation.recv(10)
        out = server.out(database)

    assert told == (
        "<UnitOfWork WEBSOCKET / ended> has ended, and its sessions with it; a task, thread or callback that outlives "
        "its request must open its own unit of work: async with session_scope() as session: ..."
    )
    assert (out, backend.names()) == (0, ["a"])


@on_server
def test_a_scope_around_messages_stays_the_current_unit(database: Database, backend: Backend) -> None:
    """Asking for a message inside a scope ends nothing: the scope shadows the websocket's unit until its end."""
    same: list[bool] = []

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await add(database, "async", name="before")
        async with session_scope(database) as session:
            session.add(Item(name=await websocket.receive_text()))
            same.append(database.async_session is session)
        await add(database, "async", name=await websocket.receive_text())
        await websocket.send_text("done")

    with Server(SQLAlchemyMiddleware(application(endpoint), database)) as server:
        with client(server) as conversation:
            conversation.send("inside")
            conversation.send("outside")
            assert conversation.recv(10) == "done"
        out = server.out(database)

    assert (same, out, backend.names()) == ([True], 0, ["before", "inside", "outside"])


@on_one
def test_fastapi_dependencies_share_the_unit_of_the_first_message(database: Database, backend: Backend) -> None:
    """A dependency's writes are committed when the endpoint first asks for a message."""
    api = FastAPI()

    async def greet() -> None:
        database.async_session.add(Item(name="greeting"))

    @api.websocket("/")
    async def endpoint(websocket: WebSocket, _: Annotated[None, Depends(greet)]) -> None:
        await websocket.accept()
        async for name in websocket.iter_text():
            seen = await database.async_session.scalar(text("SELECT count(*) FROM item"))
            await websocket.send_text(f"{name}: {seen}")

    with Server(SQLAlchemyMiddleware(api, database)) as server:
        with client(server) as conversation:
            assert wait_until(lambda: backend.names() == ["greeting"])
            conversation.send("rows")
            assert conversation.recv(10) == "rows: 1"
        out = server.out(database)

    assert out == 0
