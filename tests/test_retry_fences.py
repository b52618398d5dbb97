"""A retry never writes twice: everything that was committed, or may have been, forbids it."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from anyio import to_thread
from sqlalchemy import Connection, Engine, event, insert, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session
from support.asgi import Call, Message, http_scope, respond
from support.databases import Backend, Item, connections_out
from support.failing import engine_of, lose_network
from support.marks import KINDS, on_postgresql
from support.rivals import perform

from asgi_sqla import Database, SQLAlchemyMiddleware, current_unit, session_scope
from asgi_sqla.asgi import retry

TRANSIENT = text("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
"""A statement that fails as a serialization failure does."""


def row() -> Any:
    """Return the INSERT of a row that says which attempt wrote it."""
    return insert(Item).values(name=f"attempt {current_unit().attempt}")


async def fail(database: Database, kind: str) -> None:
    """Meet a transient error."""
    await perform(database, kind, lambda session: session.execute(TRANSIENT))


# How something is committed, or may have been.

Commit = Callable[[Database, str, Backend], Awaitable[None]]


async def own_commit(database: Database, kind: str, backend: Backend) -> None:
    """Commit with the session's own commit()."""

    def work(session: Session) -> None:
        session.execute(row())
        session.commit()

    await perform(database, kind, work)


async def begin_block(database: Database, kind: str, backend: Backend) -> None:
    """Commit with a ``with session.begin()`` block."""

    def work(session: Session) -> None:
        with session.begin():
            session.execute(row())

    await perform(database, kind, work)


async def connection_commit(database: Database, kind: str, backend: Backend) -> None:
    """Commit with commit() on the session's connection."""

    def work(session: Session) -> None:
        connection = session.connection()
        connection.execute(row())
        connection.commit()

    await perform(database, kind, work)


async def textual_commit(database: Database, kind: str, backend: Backend) -> None:
    """Commit with a statement."""

    def work(session: Session) -> None:
        session.execute(row())
        session.execute(text("  commit"))

    await perform(database, kind, work)
    await perform(database, kind, lambda session: session.rollback())


def lose_next_commit(engine: Engine) -> None:
    """Apply the next COMMIT on ``engine``, and lose its connection before the answer."""
    left = [1]

    def on_commit(connection: Connection) -> None:
        if not left:
            return
        left.clear()
        cursor = connection.connection.cursor()  # past every event
        cursor.execute("COMMIT")
        cursor.execute("SELECT 1")  # or psycopg would have nothing to send at the COMMIT that follows
        lose_network(connection)

    event.listen(engine, "commit", on_commit)


async def commit_in_doubt(database: Database, kind: str, backend: Backend) -> None:
    """Commit without getting an answer, and catch the error."""
    lose_next_commit(engine_of(database, kind))
    with pytest.raises(DBAPIError):
        await own_commit(database, kind, backend)
    await perform(database, kind, lambda session: session.rollback())


async def commit_in_doubt_after_a_failure(database: Database, kind: str, backend: Backend) -> None:
    """Commit without getting an answer, after a transient error that was rolled back."""
    with pytest.raises(DBAPIError):
        await fail(database, kind)
    await perform(database, kind, lambda session: session.rollback())
    await commit_in_doubt(database, kind, backend)


async def scope_inside(database: Database, kind: str, backend: Backend) -> None:
    """Commit in a scope inside."""
    if kind == "async":
        async with session_scope(database) as session:
            await session.execute(insert(Item).values(name="attempt 1"))
    else:
        await to_thread.run_sync(in_sync_scope, database)


def in_sync_scope(database: Database) -> None:
    with session_scope(database) as session:
        session.execute(insert(Item).values(name="attempt 1"))


async def scope_inside_in_doubt(database: Database, kind: str, backend: Backend) -> None:
    """Commit in a scope inside without getting an answer, and catch the error."""
    lose_next_commit(engine_of(database, kind))
    with pytest.raises(DBAPIError):
        await scope_inside(database, kind, backend)


async def scope_in_a_scope(database: Database, kind: str, backend: Backend) -> None:
    """Commit in a scope inside a scope that only reads."""
    async with session_scope(database) as session:
        await session.execute(text("SELECT 1"))
        await scope_inside(database, kind, backend)


async def engine_begin(database: Database, kind: str, backend: Backend) -> None:
    """Commit in a transaction on the engine of the same database."""
    if kind == "async":
        async with database.async_engine.begin() as connection:
            await connection.execute(row())
    else:
        await to_thread.run_sync(in_engine_begin, database, row())


def in_engine_begin(database: Database, statement: Any) -> None:
    with database.engine.begin() as connection:
        connection.execute(statement)


async def on_engine(database: Database, kind: str, statement: Any, **options: Any) -> None:
    """Execute a statement on the engine, with options of the connection, and without a commit."""

    def work(engine: Engine) -> None:
        with engine.connect().execution_options(**options) as connection:
            connection.execute(statement)

    if kind == "sync":
        await to_thread.run_sync(work, database.engine)
        return
    engine: AsyncEngine = database.async_engine
    async with engine.connect() as connection:
        await connection.execution_options(**options)
        await connection.execute(statement)


def autocommit_on_engine(level: str) -> Commit:
    async def commit(database: Database, kind: str, backend: Backend) -> None:
        await on_engine(database, kind, row(), isolation_level=level)

    return commit


def autocommit_in_session(level: str) -> Commit:
    async def commit(database: Database, kind: str, backend: Backend) -> None:
        def work(session: Session) -> None:
            session.connection(execution_options={"isolation_level": level})
            session.execute(row())

        await perform(database, kind, work)

    return commit


def autocommit_scope_inside(level: str) -> Commit:
    async def commit(database: Database, kind: str, backend: Backend) -> None:
        with suppress(DBAPIError):
            async with session_scope(database, isolation_level=level):
                await perform(database, kind, lambda session: session.execute(insert(Item).values(name="attempt 1")))
                await fail(database, kind)

    return commit


async def request_inside(database: Database, kind: str, backend: Backend) -> None:
    """Commit in a request that is served in process, as by httpx's ASGITransport."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, lambda session: session.execute(insert(Item).values(name="attempt 1")))
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert call.status == 201


async def websocket_inside(database: Database, kind: str, backend: Backend) -> None:
    """Commit in a message of a websocket that is served in process."""
    incoming: list[Message] = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "a"}]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await perform(database, kind, lambda session: session.execute(insert(Item).values(name="attempt 1")))
        await send({"type": "websocket.close", "code": 1000})

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        return None

    await SQLAlchemyMiddleware(app, database)({"type": "websocket", "path": "/"}, receive, send)


COMMITS: dict[str, Commit] = {
    "own commit": own_commit,
    "begin block": begin_block,
    "commit on the connection": connection_commit,
    "textual COMMIT": textual_commit,
    "COMMIT in doubt": commit_in_doubt,
    "COMMIT in doubt after a failure": commit_in_doubt_after_a_failure,
    "scope": scope_inside,
    "scope in doubt": scope_inside_in_doubt,
    "scope in a scope": scope_in_a_scope,
    "engine.begin()": engine_begin,
    "autocommit on the engine": autocommit_on_engine("AUTOCOMMIT"),
    "autocommit on the engine, in lower case": autocommit_on_engine("autocommit"),
    "autocommit in the session": autocommit_in_session("AUTOCOMMIT"),
    "autocommit in the session, in lower case": autocommit_in_session("autocommit"),
    "autocommit scope": autocommit_scope_inside("AUTOCOMMIT"),
    "autocommit scope, in mixed case": autocommit_scope_inside("AutoCommit"),
    "request": request_inside,
    "websocket": websocket_inside,
}
on_every_commit = pytest.mark.parametrize("commit", COMMITS.values(), ids=COMMITS)


async def run(database: Database, kind: str, form: str, body: Callable[[], Awaitable[None]]) -> list[int]:
    """Run ``body`` in a request or a function with retries, and return its attempts."""
    attempts: list[int] = []

    async def once() -> None:
        attempts.append(current_unit().attempt)
        await body()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await once()
        await respond(send, 201)

    if form == "request":
        call = await Call(SQLAlchemyMiddleware(app, database, retries=3))()
        assert isinstance(call.raised, SQLAlchemyError | None)
    else:
        with suppress(SQLAlchemyError):
            await session_scope(database, retries=3)(once)()
    return attempts


@pytest.mark.parametrize("form", ["request", "function"])
@pytest.mark.parametrize("kind", KINDS)
@on_every_commit
@on_postgresql
async def test_what_was_committed_is_not_done_again(
    database: Database, backend: Backend, commit: Commit, kind: str, form: str
) -> None:
    """A transient error after it is raised: there is one attempt, and one row."""

    async def body() -> None:
        await commit(database, kind, backend)
        await fail(database, kind)

    assert await run(database, kind, form, body) == [1]
    assert backend.names() == ["attempt 1"]
    assert connections_out(database) == 0


ENGINE_OPTIONS: list[dict[str, Any]] = [
    {"isolation_level": "AUTOCOMMIT"},
    {"execution_options": {"isolation_level": "AUTOCOMMIT"}},
    {"execution_options": {"isolation_level": "autocommit"}},
]


@pytest.mark.parametrize("options", ENGINE_OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_an_engine_in_autocommit(
    database: Database, backend: Backend, kind: str, options: dict[str, Any]
) -> None:
    """Each of its statements is committed at once, whichever option says so."""
    own = Database(backend.url, engine_options=options)

    async def body() -> None:
        await perform(own, kind, lambda session: session.execute(row()))
        await fail(own, kind)

    attempts = await run(own, kind, "request", body)
    await own.async_dispose()

    assert (attempts, backend.names()) == ([1], ["attempt 1"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["psycopg"], indirect=True)
async def test_a_driver_in_autocommit(database: Database, backend: Backend, kind: str) -> None:
    """The driver's own switch, which SQLAlchemy does not know, counts too."""
    own = Database(backend.url, engine_options={"connect_args": {"autocommit": True}})

    async def body() -> None:
        await perform(own, kind, lambda session: session.execute(row()))
        await fail(own, kind)

    attempts = await run(own, kind, "request", body)
    await own.async_dispose()

    assert (attempts, backend.names()) == ([1], ["attempt 1"])


@pytest.mark.parametrize("existing", [True, False], ids=["engine there", "engine made by it"])
@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_transaction_outside_every_session(
    database: Database, backend: Backend, kind: str, existing: bool
) -> None:
    """It is noticed on an engine made before the middleware, and on one made during the request."""
    own = Database(backend.url)
    if existing:
        await engine_begin_select(own, kind)

    async def body() -> None:
        await engine_begin(own, kind, backend)
        await fail(own, kind)

    attempts = await run(own, kind, "request", body)
    await own.async_dispose()

    assert (attempts, backend.names()) == ([1], ["attempt 1"])


async def engine_begin_select(database: Database, kind: str) -> None:
    if kind == "sync":
        await to_thread.run_sync(in_engine_begin, database, text("SELECT 1"))
    else:
        async with database.async_engine.begin() as connection:
            await connection.execute(text("SELECT 1"))


# What is no commit.


async def released_savepoint(database: Database, kind: str) -> None:
    def work(session: Session) -> None:
        with session.begin_nested():
            session.execute(row())

    await perform(database, kind, work)


async def rolled_back(database: Database, kind: str) -> None:
    def work(session: Session) -> None:
        session.execute(row())
        session.rollback()

    await perform(database, kind, work)


async def rolled_back_on_the_connection(database: Database, kind: str) -> None:
    def work(session: Session) -> None:
        session.execute(row())
        session.connection().rollback()
        session.rollback()

    await perform(database, kind, work)


async def rolled_back_by_text(database: Database, kind: str) -> None:
    def work(session: Session) -> None:
        session.execute(row())
        session.execute(text("ROLLBACK"))
        session.rollback()

    await perform(database, kind, work)


async def scope_rolled_back(database: Database, kind: str) -> None:
    with suppress(LookupError):
        async with session_scope(database):
            await perform(database, kind, lambda session: session.execute(insert(Item).values(name="lost")))
            raise LookupError


async def read_past_the_session(database: Database, kind: str) -> None:
    await on_engine(database, kind, text("SELECT 1"))


@pytest.mark.filterwarnings("ignore:transaction already deassociated from connection")
@pytest.mark.parametrize(
    "harmless",
    [released_savepoint, rolled_back, rolled_back_on_the_connection, rolled_back_by_text, scope_rolled_back]
    + [read_past_the_session],
)
@pytest.mark.parametrize("form", ["request", "function"])
@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_work_that_was_not_committed_allows_a_retry(
    database: Database, backend: Backend, kind: str, form: str, harmless: Any
) -> None:
    """Nothing of it is in the database, so the second attempt does everything."""

    async def body() -> None:
        await harmless(database, kind)
        if current_unit().attempt == 1:
            await fail(database, kind)
        await perform(database, kind, lambda session: session.execute(insert(Item).values(name="kept")))

    assert await run(database, kind, form, body) == [1, 2]
    assert "kept" in backend.names()
    assert set(backend.names()) <= {"kept", "attempt 2"}


@pytest.mark.parametrize("form", ["request", "function"])
@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_begin_hook_that_fails_transiently(database: Database, backend: Backend, kind: str, form: str) -> None:
    """It is retried like a statement."""

    def hook(connection: Connection) -> None:
        if len(attempts) == 1:
            connection.execute(TRANSIENT)

    attempts: list[int] = []

    async def body() -> None:
        attempts.append(current_unit().attempt)
        current_unit().on_begin(hook)
        await perform(database, kind, lambda session: session.execute(row()))

    assert await run(database, kind, form, body) == [1, 2]
    assert backend.names() == ["attempt 2"]


# The body of a request that is retried.


class Posting(Call):
    """A request whose body comes in the given messages, each when the application asks for it."""

    def __init__(self, app: Any, *messages: Message) -> None:
        super().__init__(app, http_scope(method="POST"))
        self._requests = list(reversed(messages))

    async def receive(self) -> Message:
        """Give one turn to the event loop, as a socket does."""
        await asyncio.sleep(0)
        return await super().receive()


def chunks(*bodies: bytes | bytearray) -> list[Message]:
    """Return the messages of a body in chunks."""
    last = len(bodies) - 1
    return [{"type": "http.request", "body": one, "more_body": number < last} for number, one in enumerate(bodies)]


async def read(receive: Any) -> bytes:
    """Return the rest of a body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    return body


def failing_once(database: Database, consume: Callable[[Any], Awaitable[bytes]], bodies: list[bytes]) -> Any:
    """Return an application that reads its body by ``consume``, and meets a transient error in its first attempt."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies.append(await consume(receive))
        if current_unit().attempt == 1:
            await fail(database, "async")
        await respond(send, 201)

    return SQLAlchemyMiddleware(app, database, retries=1)


async def popping(receive: Any) -> bytes:
    message = await receive()
    body = message.pop("body")
    message.clear()
    return bytes(body)


async def unzipping(receive: Any) -> bytes:
    message = await receive()
    message["body"] = gzip.decompress(message["body"])
    return bytes(message["body"])


async def overwriting(receive: Any) -> bytes:
    message = await receive()
    body = bytes(message["body"])
    if isinstance(message["body"], bytearray):
        message["body"][:] = b"overwritten"
    return body


@pytest.mark.parametrize("consume", [popping, unzipping, overwriting])
@pytest.mark.parametrize("kind_of_body", [bytes, bytearray])
@on_postgresql
async def test_each_attempt_has_messages_of_its_own(
    database: Database, backend: Backend, consume: Any, kind_of_body: Any
) -> None:
    """The next attempt does not see changes that the application makes to a message."""
    bodies: list[bytes] = []
    sent = kind_of_body(gzip.compress(b"payload"))

    call = await Posting(failing_once(database, consume, bodies), *chunks(sent))()

    assert call.starts == [201]
    assert bodies[0] == bodies[1]


@on_postgresql
async def test_a_buffer_that_the_server_uses_again(database: Database, backend: Backend) -> None:
    """A bytearray is kept as it was when it was received."""
    bodies: list[bytes] = []
    buffer = bytearray(b"payload")

    async def consume(receive: Any) -> bytes:
        body = bytes((await receive())["body"])
        buffer[:] = b"another"
        return body

    call = await Posting(failing_once(database, consume, bodies), *chunks(buffer))()

    assert (call.starts, bodies) == ([201], [b"payload", b"payload"])


@on_postgresql
async def test_a_reader_that_an_attempt_left_behind(database: Database, backend: Backend) -> None:
    """A message that it takes from the server is kept for the next attempt, and the reader gets a disconnect."""
    bodies: list[bytes] = []
    left: list[asyncio.Task[Message]] = []
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    one, two, three = chunks(b"one ", b"two ", b"three")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if current_unit().attempt == 1:
            assert (await receive())["body"] == b"one "
            left.append(asyncio.create_task(receive()))
            await asyncio.sleep(0)
            await fail(database, "async")
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, incoming.put_nowait, two)
        loop.call_later(0.1, incoming.put_nowait, three)
        bodies.append(await read(receive))
        await respond(send, 201)

    call = Call(SQLAlchemyMiddleware(app, database, retries=1), http_scope(method="POST"))
    call.receive = incoming.get  # type: ignore[method-assign]  # a client that sends in its own time
    incoming.put_nowait(one)
    await call()
    seen = await left[0]

    assert (call.starts, bodies) == ([201], [b"one two three"])
    assert seen["type"] == "http.disconnect"


@on_postgresql
async def test_two_readers_of_one_attempt(database: Database, backend: Backend) -> None:
    """They share its position: each message goes to one of them, in each attempt."""
    bodies: list[bytes] = []

    async def consume(receive: Any) -> bytes:
        both = await asyncio.gather(receive(), receive())
        return bytes(both[0]["body"] + both[1]["body"])

    call = await Posting(failing_once(database, consume, bodies), *chunks(b"a", b"b"))()

    assert (call.starts, bodies) == ([201], [b"ab", b"ab"])


@pytest.mark.parametrize(("more", "retried"), [(0, True), (1, False)])
@on_postgresql
async def test_the_number_of_messages_is_bounded(
    database: Database,
    backend: Backend,
    more: int,
    retried: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A client can send any number of empty messages: beyond the bound none is kept, and nothing is retried."""
    monkeypatch.setattr(retry, "MOST_MESSAGES", 10)
    bodies: list[bytes] = []
    messages = chunks(*[b""] * (9 + more), b"x")

    with caplog.at_level(logging.DEBUG, "asgi_sqla"):
        call = await Posting(failing_once(database, read, bodies), *messages)()

    assert bodies == ([b"x", b"x"] if retried else [b"x"])
    assert call.starts == ([201] if retried else [])
    assert any("is not retried" in one for one in caplog.messages) is not retried
