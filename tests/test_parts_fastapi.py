"""Event streams under FastAPI and a real server, and bodies that another task makes while their response starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from sqlalchemy import text
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from support.databases import Backend, Item
from support.marks import KINDS, on_one, on_one_postgresql
from support.servers import Server, wait_until

from asgi_sqla import Database, SessionInUseError, SQLAlchemyMiddleware

CallNext = Callable[[Request], Awaitable[Response]]


class PassOn(BaseHTTPMiddleware):
    """The base class unchanged: it runs the application in a separate task, its response through a queue."""

    async def dispatch(self, request: Request, call_next: CallNext) -> Response:
        """Pass the request on."""
        return await call_next(request)


def events_of(client: httpx.Client, path: str) -> Iterator[str]:
    """Yield the events of a stream, as they come."""
    with client.stream("GET", path) as answer:
        assert answer.status_code == 200
        yield from (line.partition(": ")[2] for line in answer.iter_lines() if line.startswith("data"))


def streaming_api(database: Database) -> FastAPI:
    """Return an application that writes and tells three events, in each way."""
    api = FastAPI()

    async def events() -> AsyncIterator[str]:
        for name in "abc":
            database.async_session.add(Item(name=name))
            await database.async_session.flush()
            yield f"data: {name}\n\n"

    def sync_events() -> Iterator[str]:
        for name in "abc":
            database.session.add(Item(name=name))
            database.session.flush()
            yield f"data: {name}\n\n"

    @api.get("/async")
    async def stream() -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    @api.get("/sync")
    def sync_stream() -> Response:
        return StreamingResponse(sync_events(), media_type="text/event-stream")

    return api


@pytest.mark.parametrize("between", [None, PassOn, GZipMiddleware])
@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_a_reader_finds_each_event_in_the_database(
    database: Database, backend: Backend, kind: str, between: Any
) -> None:
    """It may find later ones too, as the generator goes on; at the end no connection is out."""
    api = streaming_api(database)
    if between is not None:
        api.add_middleware(between)
    with Server(SQLAlchemyMiddleware(api, database)) as server, httpx.Client(base_url=server.url) as client:
        found = [(name, name in backend.names()) for name in events_of(client, f"/{kind}")]
        out = server.out(database)

    assert (found, backend.names(), out) == ([(name, True) for name in "abc"], ["a", "b", "c"], 0)


@pytest.mark.parametrize("kind", KINDS)
@on_one_postgresql
def test_a_generator_that_fastapi_runs_in_a_task_of_its_own(database: Database, backend: Backend, kind: str) -> None:
    """It has begun to write when the response starts, and is ahead of what is sent."""
    sse = pytest.importorskip("fastapi.sse")
    api = FastAPI()

    async def work(name: str) -> None:
        statement = text("INSERT INTO item (name) SELECT :name FROM pg_sleep(0.02)")
        await database.async_session.execute(statement, {"name": name})

    if kind == "async":

        @api.get("/", response_class=sse.EventSourceResponse)
        async def stream() -> AsyncIterator[str]:
            for name in "abc":
                await work(name)
                yield name
    else:

        @api.get("/", response_class=sse.EventSourceResponse)
        def sync_stream() -> Iterator[str]:
            for name in "abc":
                database.session.add(Item(name=name))
                database.session.flush()
                yield name

    with Server(SQLAlchemyMiddleware(api, database)) as server, httpx.Client(base_url=server.url) as client:
        found = [(name.strip('"'), name.strip('"') in backend.names()) for name in events_of(client, "/")]
        out = server.out(database)

    assert (found, backend.names(), out) == ([(name, True) for name in "abc"], ["a", "b", "c"], 0)


@on_one
def test_a_reader_that_disconnects(database: Database, backend: Backend) -> None:
    """What it was told is kept, what it was not is rolled back, and the connection is back in the pool."""
    api = FastAPI()

    async def events() -> AsyncIterator[str]:
        for name in ("told", "not told"):
            database.async_session.add(Item(name=name))
            await database.async_session.flush()
            if name == "not told":
                await asyncio.Event().wait()
            yield f"data: {name}\n\n"

    @api.get("/")
    async def stream() -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    with Server(SQLAlchemyMiddleware(api, database)) as server:
        with httpx.Client(base_url=server.url) as client:
            assert next(events_of(client, "/")) == "told"
        out = server.out(database)
        assert wait_until(lambda: server.running == 0)

    assert (out, backend.names()) == (0, ["told"])


@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_idle_streams_hold_no_connection(database: Database, backend: Backend, kind: str) -> None:
    """Many more are open than the pool has connections, and a new request is served at once."""
    small = Database(backend.url, engine_options={"pool_size": 1, "max_overflow": 0, "pool_timeout": 10})
    over = asyncio.Event()
    api = FastAPI()

    async def events(name: str) -> AsyncIterator[str]:
        if kind == "async":
            await small.async_session.execute(text("SELECT count(*) FROM item"))
            small.async_session.add(Item(name=name))
        else:
            small.session.add(Item(name=name))
        yield f"data: {name}\n\n"
        await over.wait()

    @api.get("/{name}")
    async def stream(name: str) -> Response:
        return StreamingResponse(events(name), media_type="text/event-stream")

    async def finish() -> None:
        over.set()

    with Server(SQLAlchemyMiddleware(api, small)) as server, httpx.Client(base_url=server.url) as client:
        streams = [events_of(client, f"/{name}") for name in "abcdefgh"]
        told = [next(one) for one in streams]
        out = server.out_now(small)
        running, kept = server.running, backend.names()
        server.call(finish())
        assert [list(one) for one in streams] == [[]] * 8
        server.call(small.async_dispose())

    assert (told, kept, out, running) == (list("abcdefgh"), list("abcdefgh"), 0, 8)


@pytest.mark.parametrize("before", ["nothing", "reads", "writes"])
@pytest.mark.parametrize("kind", KINDS)
@on_one_postgresql
def test_a_body_that_reads_while_its_response_starts(
    database: Database, backend: Backend, kind: str, before: str
) -> None:
    """Inside a ``BaseHTTPMiddleware`` it runs in another task: its call is waited for, and the handler's work kept."""
    api = FastAPI()
    slow = text("SELECT name FROM item, pg_sleep(0.05)")

    async def rows() -> AsyncIterator[str]:
        for name in await database.async_session.scalars(slow):
            yield name
        database.async_session.add(Item(name="streamed"))

    def sync_rows() -> Iterator[str]:
        yield from database.session.scalars(slow)
        database.session.add(Item(name="streamed"))

    @api.post("/")
    async def endpoint() -> Response:
        if before == "reads":
            await database.async_session.execute(text("SELECT 1"))
        elif before == "writes":
            database.async_session.add(Item(name="now"))
            await database.async_session.flush()
        return StreamingResponse(rows() if kind == "async" else sync_rows())

    api.add_middleware(PassOn)
    with Server(SQLAlchemyMiddleware(api, database)) as server, httpx.Client(base_url=server.url) as client:
        answer = client.post("/")
        out = server.out(database)

    kept = ["now"] if before == "writes" else []
    assert (answer.status_code, out) == (200, 0)
    assert backend.names() == [*kept, "streamed"]


@on_one_postgresql
def test_a_result_that_a_body_reads_in_parts_while_its_response_starts(database: Database, backend: Backend) -> None:
    """It is read on, as nothing has to be committed."""
    api = FastAPI()

    async def rows() -> AsyncIterator[str]:
        numbers = await database.async_session.stream(text("SELECT generate_series(1, 2000) FROM pg_sleep(0.05)"))
        async for number in numbers.scalars():
            yield f"{number} "

    @api.post("/")
    async def endpoint() -> Response:
        await database.async_session.execute(text("SELECT 1"))
        return StreamingResponse(rows())

    api.add_middleware(PassOn)
    with Server(SQLAlchemyMiddleware(api, database)) as server, httpx.Client(base_url=server.url) as client:
        answer = client.post("/")
        out = server.out(database)

    assert (answer.status_code, len(answer.text.split()), out) == (200, 2000, 0)


@on_one_postgresql
def test_a_body_that_writes_while_its_response_starts_is_refused(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can tell its work from the handler's: nothing is kept, and the error names the two ways out."""
    api = FastAPI()

    async def rows() -> AsyncIterator[str]:
        await database.async_session.execute(text("INSERT INTO item (name) SELECT 'half' FROM pg_sleep(0.05)"))
        yield "half"

    @api.post("/")
    async def endpoint() -> Response:
        database.async_session.add(Item(name="now"))
        await database.async_session.flush()
        return StreamingResponse(rows())

    api.add_middleware(PassOn)
    with Server(SQLAlchemyMiddleware(api, database)) as server:
        with httpx.Client(base_url=server.url) as client:
            answer = client.post("/")
        out = server.out(database)

    raised = [one.exc_info[1] for one in caplog.records if one.exc_info]
    assert (answer.status_code, out, backend.names()) == (500, 0, [])
    assert [type(one) for one in raised if isinstance(one, SessionInUseError)] == [SessionInUseError]
    for told in ("A BaseHTTPMiddleware inside this middleware", "Add it outside of this middleware", "session_scope()"):
        assert any(told in str(one) for one in raised)
