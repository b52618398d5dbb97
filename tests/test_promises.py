"""The two promises on a real socket: a client told "done" finds its data, and no client waits for a slow one."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import trio
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from support.asgi import Call, http_scope, respond
from support.databases import NO_OWNER, Backend, Item, backend_names
from support.marks import KINDS, on_one, on_postgresql
from support.servers import Server, request_bytes, statuses, wait_until

from asgi_sqla import ERROR_RESPONSES, Database, SQLAlchemyMiddleware, UnitOfWorkEndedError, WrongEventLoopError

Handler = Callable[[Request], Awaitable[Response]]


async def add(database: Database, kind: str, *, flush: bool = True, **fields: Any) -> None:
    """Add an item to the session of ``kind``, and flush it unless told not to."""
    if kind == "async":
        database.async_session.add(Item(**fields))
        if flush:
            await database.async_session.flush()
    else:
        database.session.add(Item(**fields))
        if flush:
            await asyncio.to_thread(database.session.flush)


async def read(database: Database, kind: str) -> list[str]:
    """Return the names of the items through the session of ``kind``."""
    if kind == "async":
        return list(await database.async_session.scalars(select(Item.name)))
    return list(await asyncio.to_thread(lambda: list(database.session.scalars(select(Item.name)))))


def one_route(handler: Handler) -> Starlette:
    """Return an application that does one thing, whatever the path and method are."""
    return Starlette(routes=[Route("/{path:path}", handler, methods=["GET", "POST"])])


SLOW_FUNCTION = """
CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END'
"""
SLOW_TRIGGER = """
CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION slow()
"""


@pytest.fixture
def slow_commit(backend: Backend) -> Iterator[None]:
    """Make every COMMIT of an inserted item take 20 ms."""
    with backend.witness.begin() as connection:
        connection.execute(text(SLOW_FUNCTION))
        connection.execute(text(SLOW_TRIGGER))
    yield
    with backend.witness.begin() as connection:
        connection.execute(text("DROP TRIGGER slow_commit ON item"))


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("slow_commit")
async def test_a_client_told_done_can_read_its_row(database: Database, backend: Backend, kind: str) -> None:
    """All 300 reads on another connection, each after a POST with a COMMIT of 20 ms, find the row."""

    async def handler(request: Request) -> Response:
        await add(database, kind, name=request.path_params["path"])
        return Response(status_code=201)

    reader = create_async_engine(database.async_engine.url, isolation_level="AUTOCOMMIT", pool_size=20)
    found: list[tuple[int, int]] = []
    turns = asyncio.Semaphore(20)

    async def pair(client: httpx.AsyncClient, name: str) -> None:
        async with turns:
            answer = await client.post(f"/{name}")
            async with reader.connect() as connection:
                rows = await connection.scalar(text("SELECT count(*) FROM item WHERE name = :name"), {"name": name})
        found.append((answer.status_code, int(rows or 0)))

    with Server(SQLAlchemyMiddleware(one_route(handler), database)) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            await asyncio.gather(*(pair(client, f"item{number}") for number in range(300)))
    await reader.dispose()

    assert found == [(201, 1)] * 300


FAILURES = ["deferred constraint", "unflushed duplicate"]


async def fail_at_commit(database: Database, backend: Backend, kind: str, failure: str) -> None:
    """Do work whose COMMIT fails."""
    if failure == "deferred constraint":
        await add(database, kind, name="new", owner_id=NO_OWNER)
    elif failure == "unflushed duplicate":
        await add(database, kind, name="taken", flush=False)
    else:
        await add(database, kind, name="new")
        await asyncio.to_thread(backend.terminate)


def check_failed_commit(
    database: Database, backend: Backend, kind: str, failure: str, mapped_status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with backend.witness.begin() as connection:
        connection.execute(text("INSERT INTO item (name) VALUES ('taken')"))
    done: list[str] = []

    async def handler(_request: Request) -> Response:
        await fail_at_commit(database, backend, kind, failure)
        return PlainTextResponse("done", 201, background=BackgroundTask(done.append, "background task"))

    app = one_route(handler)
    unmapped = SQLAlchemyMiddleware(app, database)
    mapped = SQLAlchemyMiddleware(app, database, error_responses=ERROR_RESPONSES)

    async def both(scope: Any, receive: Any, send: Any) -> None:
        await (mapped if scope.get("path") == "/mapped" else unmapped)(scope, receive, send)

    with Server(both) as server:
        wire = [server.raw("/unmapped"), server.raw("/mapped")]
        out = server.out(database)

    assert [statuses(each) for each in wire] == [[500], [mapped_status]]
    # The server logs its own affairs at INFO, if a test before this one has let it.
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [about(record) for record in told] == ["a failure, with its traceback"] * 2
    assert (done, out, backend.names()) == ([], 0, ["taken"])


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_commit_is_one_error_on_the_wire_and_one_in_the_log(
    database: Database, backend: Backend, kind: str, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A constraint fails at COMMIT: one error response, one traceback, no background task, no connection out."""
    mapped_status = 409 if failure == "unflushed duplicate" or backend.commit_error is IntegrityError else 503
    check_failed_commit(database, backend, kind, failure, mapped_status, caplog)


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_lost_before_commit_is_one_error_on_the_wire_and_one_in_the_log(
    database: Database, backend: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A backend terminated between handler and COMMIT is a failed COMMIT, the same with every driver."""
    check_failed_commit(database, backend, kind, "terminated backend", 503, caplog)


def about(record: logging.LogRecord) -> str:
    """Return the parts of a record that do not depend on the driver."""
    if record.exc_info and isinstance(record.exc_info[1], DBAPIError) and record.exc_info[2] is not None:
        return "a failure, with its traceback"
    return f"{record.name}: {record.getMessage()}"


@on_one
def test_a_failed_commit_loses_no_later_request_of_its_client(database: Database, backend: Backend) -> None:
    """The server drops the connection after an exception, and a client that keeps connections is told before."""

    async def handler(request: Request) -> Response:
        path = request.path_params["path"]
        await add(database, "async", name=path, owner_id=NO_OWNER if path.startswith("bad") else None)
        return Response(status_code=201)

    paths = [f"{word}{number}" for number in range(10) for word in ("bad", "good")]
    app = SQLAlchemyMiddleware(one_route(handler), database)
    with Server(app) as server, httpx.Client(base_url=server.url) as client:
        answers = [client.post(path).status_code for path in paths]

    assert answers == [500, 201] * 10


KEPT = {"/201": 201, "/303": 303}
LOST = {"/400": 400, "/404": 404, "/422": 422, "/500": 500, "/HTTPException": 409, "/ValueError": 500}


def answer(path: str) -> Response:
    """Return or raise what the path says."""
    if path == "ValueError":
        raise ValueError(path)
    if path == "HTTPException":
        raise HTTPException(409)
    return RedirectResponse("/", 303) if path == "303" else Response(status_code=int(path))


def post_each(server: Server, paths: dict[str, int]) -> dict[str, int]:
    """Return the status that each path gets."""
    with httpx.Client(base_url=server.url) as client:
        return {path: client.post(path).status_code for path in paths}


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_leaves_no_row_and_a_redirect_does(database: Database, backend: Backend, kind: str) -> None:
    """Returned errors, raised HTTPExceptions and raised errors roll back; a success and a 303 commit."""

    async def handler(request: Request) -> Response:
        path = request.path_params["path"]
        await add(database, kind, name=f"/{path}")
        return answer(path)

    with Server(SQLAlchemyMiddleware(one_route(handler), database)) as server:
        assert post_each(server, KEPT | LOST) == KEPT | LOST
        assert server.out(database) == 0

    assert backend.names() == list(KEPT)


def test_commit_on_narrows_what_is_kept(database: Database, backend: Backend) -> None:
    """With commit_on=range(200, 300) a 303 leaves no row, and a 201 still leaves one."""

    async def handler(request: Request) -> Response:
        path = request.path_params["path"]
        await add(database, "async", name=f"/{path}")
        return answer(path)

    with Server(SQLAlchemyMiddleware(one_route(handler), database, commit_on=range(200, 300))) as server:
        assert post_each(server, KEPT) == KEPT

    assert backend.names() == ["/201"]


CHUNK = bytes(1_000_000)


def chunks() -> Iterator[bytes]:
    for _ in range(20):
        yield CHUNK


async def async_chunks() -> AsyncIterator[bytes]:
    for chunk in chunks():
        yield chunk


@contextmanager
def stalled(server: Server, path: str) -> Iterator[socket.socket]:
    """Open a request, read the first byte of its answer, and then nothing more."""
    with server.connect(small_window=True) as client:
        client.sendall(request_bytes(path, "GET"))
        client.recv(1)
        yield client


@pytest.mark.parametrize(("body", "waiting"), [("plain", 0), ("streamed", 4)])  # uvicorn takes a plain body whole
@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_slow_readers_hold_no_connection(backend: Backend, kind: str, body: str, waiting: int) -> None:
    """With a pool of 2 and four stalled readers of 20 MB that used the database, a fifth request is answered."""
    database = Database(backend.url, engine_options={"pool_size": 2, "max_overflow": 0, "pool_timeout": 2})

    async def handler(request: Request) -> Response:
        await read(database, kind)
        if request.path_params["path"] == "fifth":
            return PlainTextResponse("at once")
        if body == "plain":
            return Response(CHUNK * 20)
        return StreamingResponse(chunks() if kind == "sync" else async_chunks())

    with Server(SQLAlchemyMiddleware(one_route(handler), database)) as server, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(stalled(server, "/slow"))
        fifth = server.raw("/fifth", "GET")
        still = (server.running, server.out_now(database))
        stack.close()
        out = server.out(database)

    assert (statuses(fifth), fifth[-7:]) == ([200], b"at once")
    assert (still, out) == ((waiting, 0), 0)


def test_a_request_without_a_query_runs_nothing_of_sqlalchemy_and_never_waits(sqlite: Backend) -> None:
    """It calls no function of sessions, statements or threads, and no await suspends it."""
    database = Database(sqlite.url)
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, 200, b"hello")

    def note(frame: Any, what: str, _argument: Any) -> None:
        if what == "call":
            called.append(frame.f_globals["__name__"].partition(".")[0])

    async def request() -> str:
        call = Call(app)
        coroutine: Any = SQLAlchemyMiddleware(app, database)(http_scope(), call.receive, call.send)
        sys.setprofile(note)
        try:
            coroutine.send(None)
        except StopIteration:
            return f"never suspended, answered {call.status}"
        finally:
            sys.setprofile(None)
        return "suspended"

    assert asyncio.run(request()) == "never suspended, answered 200"
    assert "asgi_sqla" in called
    assert {"anyio", "asyncio", "concurrent", "sqlalchemy", "threading"}.isdisjoint(called)


class Lingering:
    """An ASGI middleware that awaits something before a response starts."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def linger(message: Any) -> None:
            await asyncio.sleep(0)
            await send(message)

        await self.app(scope, receive, linger)


@pytest.mark.parametrize(("cancelled", "kept"), [("before the start", []), ("in the body", ["a"])])
@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_a_stream_cancelled_before_its_start_keeps_nothing(
    database: Database, backend: Backend, kind: str, cancelled: str, kept: list[str]
) -> None:
    """Starlette cancels the stream of a disconnected client and returns, and without a response that is a rollback."""

    async def handler(request: Request) -> Response:
        await add(database, kind, name="a")
        while not await request.is_disconnected():  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.005)
        return StreamingResponse(async_chunks())

    app: Any = one_route(handler)
    if cancelled == "before the start":
        app = Lingering(app)
    with Server(SQLAlchemyMiddleware(app, database)) as server:
        with server.connect() as client:
            client.sendall(request_bytes())
            wait_until(lambda: server.running)
        out = server.out(database)

    assert (out, backend.names()) == (0, kept)


@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_a_stream_cancelled_in_the_middle_of_its_work_keeps_none_of_it(
    database: Database, backend: Backend, kind: str
) -> None:
    """A client disconnects while the body writes, and Starlette cancels it: half of the work is not committed."""
    wrote = threading.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await add(database, kind, name="half")
        wrote.set()
        await asyncio.sleep(30)
        yield b"second"

    async def handler(_request: Request) -> Response:
        await add(database, kind, name="whole")
        return StreamingResponse(body())

    with Server(SQLAlchemyMiddleware(one_route(handler), database)) as server:
        with server.connect() as client:
            client.sendall(request_bytes())
            assert wrote.wait(10)
        out = server.out(database)

    assert (out, backend.names()) == (0, ["whole"])


@pytest.mark.parametrize("at", ["idle", "in a statement"])
@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
def test_a_handler_cancelled_on_disconnect_keeps_nothing(
    database: Database, backend: Backend, kind: str, at: str
) -> None:
    """A framework cancels the handler of a disconnected client and returns normally, and nothing is kept."""
    wrote = threading.Event()

    async def handler(send: Any) -> None:
        await add(database, kind, name="a")
        wrote.set()
        if at == "idle":
            await asyncio.sleep(30)
        elif kind == "async":
            await database.async_session.execute(text("SELECT pg_sleep(30)"))
        else:  # a thread cannot be cancelled: it outlives its request
            await asyncio.to_thread(database.session.execute, text("SELECT pg_sleep(0.3)"))
        await respond(send, 201)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        task = asyncio.create_task(handler(send))
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()
        await asyncio.wait([task])

    with Server(SQLAlchemyMiddleware(app, database)) as server:
        with server.connect() as client:
            client.sendall(request_bytes())
            assert wrote.wait(10)
        server.idle()
        returned = wait_until(lambda: server.out_now(database) == 0)
        left = backend.backends("idle in transaction")

    assert (returned, left, backend.names()) == (True, 0, [])


TOLD = (
    "<UnitOfWork POST /orders ended> has ended, and its sessions with it; a task, thread or callback that outlives "
    "its request must open its own unit of work: async with session_scope() as session: ..."
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_that_outlives_its_request_gets_an_error(sqlite: Backend, kind: str) -> None:
    """Neither the Database nor a kept session serves it, and the error says to open a scope."""
    database = Database(sqlite.url)
    told: list[str] = []

    async def outlive(session: Any, over: asyncio.Event) -> None:
        await over.wait()
        try:
            await read(database, kind)
        except UnitOfWorkEndedError as exc:
            told.append(str(exc))
        try:
            await read_with(session)
        except UnitOfWorkEndedError as exc:
            told.append(str(exc))

    async def read_with(session: Any) -> None:
        result = session.execute(text("SELECT 1"))
        if kind == "async":
            await result

    async def main() -> None:
        over = asyncio.Event()
        tasks: list[asyncio.Task[None]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await add(database, kind, name="a")
            session = database.async_session if kind == "async" else database.session
            tasks.append(asyncio.create_task(outlive(session, over)))
            await respond(send, 201)

        await Call(SQLAlchemyMiddleware(app, database), http_scope("/orders", "POST"))()
        over.set()
        await asyncio.gather(*tasks)
        await database.async_dispose()

    asyncio.run(main())

    assert told == [TOLD, TOLD]


@pytest.mark.parametrize("status", [201, 400])
@pytest.mark.parametrize("backend", [b for b in backend_names() if b in ("sqlite", "psycopg")], indirect=True)
def test_sync_sessions_work_under_trio(backend: Backend, status: int) -> None:
    """The middleware needs no asyncio: db.session commits and rolls back, and db.async_session says why it cannot."""
    database = Database(backend.url)
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        database.session.add(Item(name="a"))
        await trio.to_thread.run_sync(database.session.flush)
        with pytest.raises(WrongEventLoopError) as caught:
            _ = database.async_session
        told.append(str(caught.value))
        await respond(send, status)

    call = trio.run(Call(SQLAlchemyMiddleware(app, database)))

    assert (call.raised, call.starts) == (None, [status])
    assert backend.names() == (["a"] if status == 201 else [])
    assert "requested where no asyncio event loop runs; use the sync session" in told[0]
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a queue pool
    database.dispose()


def test_a_request_cancelled_under_trio_keeps_nothing(sqlite: Backend) -> None:
    """A cancelled trio scope rolls back, inside a shield, and returns the connection."""
    database = Database(sqlite.url)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        database.session.add(Item(name="a"))
        database.session.flush()
        await trio.sleep_forever()

    async def main() -> bool:
        with trio.move_on_after(0.01) as scope:
            await SQLAlchemyMiddleware(app, database)(http_scope(), None, None)
        return scope.cancelled_caught

    assert trio.run(main) is True
    assert (sqlite.names(), database.engine.pool.checkedout()) == ([], 0)  # type: ignore[attr-defined]
    database.dispose()
