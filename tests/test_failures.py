"""What the client sees, what is kept and what is returned to the pools, wherever and however a request fails."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from anyio import to_thread
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from support.asgi import App, Call, http_scope, respond
from support.databases import NO_OWNER, Backend, Base, Item, backend_names, connections_out
from support.failing import BrokenError, Patient, Trouble, engine_of, execute, insert, ticks, until

from asgi_sqla import Database, SessionInUseError, SQLAlchemyMiddleware, UnitOfWorkEndedError
from asgi_sqla.asgi.answers import ErrorResponses

Messages = list[tuple[Any, ...]]

NOTHING: Messages = []
HALF: Messages = [("start", 201), ("body", b"one", True)]
WHOLE: Messages = [*HALF, ("body", b"two", False)]
REFUSED: Messages = [("start", 422), *WHOLE[1:]]
LATER = ["background", "stream"]
"""What is written after the start, and committed if the application returns, whatever the status."""
ALL = ["background", "handler", "stream"]
FAILED: Messages = [("start", 500), ("body", b"Internal Server Error", False)]

KINDS = ["sync", "async", "both"]
CANCELLED = ["cancelled", "cancelled twice", "cancelled by anyio"]
HOWS = ["exception", *CANCELLED, "terminated", "status"]
WHERES = ["handler", "flush", "commit", "rollback", "close", "stream", "background", "last commit"]


class Outcome(NamedTuple):
    """What must follow from a failure: all ASGI messages, all rows, and what is raised to the server."""

    messages: Messages
    rows: list[str]
    raised: type[BaseException] | None


def cancelled(messages: Messages, rows: list[str]) -> dict[str, Outcome]:
    return dict.fromkeys(CANCELLED, Outcome(messages, rows, asyncio.CancelledError))


MATRIX: dict[str, dict[str, Outcome]] = {
    "handler": {
        "exception": Outcome(NOTHING, [], BrokenError),
        "terminated": Outcome(NOTHING, [], DBAPIError),
        "status": Outcome(REFUSED, LATER, None),
        **cancelled(NOTHING, []),
    },
    "flush": {
        "exception": Outcome(NOTHING, [], BrokenError),
        "terminated": Outcome(NOTHING, [], DBAPIError),
        **cancelled(NOTHING, []),
    },
    "commit": {
        "exception": Outcome(FAILED, [], BrokenError),
        "terminated": Outcome(FAILED, [], DBAPIError),
        "status": Outcome(WHOLE, ALL, None),
        **cancelled(NOTHING, ["handler"]),  # a COMMIT that has begun is waited for
    },
    "rollback": {
        # The connection is in doubt, so it is invalidated, and the session with it: the body cannot use it.
        "exception": Outcome(REFUSED[:2], [], InvalidRequestError),
        "terminated": Outcome(REFUSED[:2], [], InvalidRequestError),
        **cancelled(NOTHING, []),
    },
    "close": {
        "exception": Outcome(WHOLE, ALL, BrokenError),
    },
    "stream": {
        "exception": Outcome(HALF, ["handler"], BrokenError),
        "terminated": Outcome(HALF, ["handler"], DBAPIError),
        **cancelled(HALF, ["handler"]),
    },
    "background": {
        "exception": Outcome(WHOLE, ["handler"], BrokenError),
        "terminated": Outcome(WHOLE, ["handler"], DBAPIError),
        **cancelled(WHOLE, ["handler"]),
    },
    "last commit": {
        "exception": Outcome(WHOLE, ["handler"], BrokenError),
        "terminated": Outcome(WHOLE, ["handler"], DBAPIError),
        **cancelled(WHOLE, ALL),
        "cancelled by anyio": Outcome(WHOLE, ALL, None),  # nothing is awaited after it
    },
}
NOT_APPLICABLE = {
    ("flush", "status"): "a flush returns no status",
    ("rollback", "status"): "the status that rolls back is handler/status",
    ("close", "terminated"): "a session that has settled has no connection when it is closed",
    **dict.fromkeys([("close", how) for how in CANCELLED], "closing a session that has settled awaits nothing"),
    **dict.fromkeys(
        [(where, "status") for where in ("close", "stream", "background", "last commit")], "the status has been sent"
    ),
}
NO_TERMINATION = "SQLite has no server, and so no backend to terminate"


def cases() -> list[Any]:
    """Return every cell of the matrix that applies, for every backend."""
    return [
        pytest.param(backend, where, how, id=f"{backend}-{where}-{how}")
        for backend in backend_names()
        for where, outcomes in MATRIX.items()
        for how in outcomes
        if not (backend == "sqlite" and how == "terminated")  # NO_TERMINATION
    ]


def test_the_matrix_is_complete() -> None:
    """Each place and each way is in the matrix, or the matrix says why it does not apply."""
    cells = {(where, how) for where, outcomes in MATRIX.items() for how in outcomes}

    assert cells | NOT_APPLICABLE.keys() == {(where, how) for where in WHERES for how in HOWS}
    assert cells & NOT_APPLICABLE.keys() == set()


def seen(call: Call) -> Messages:
    """Return the parts of each message that the matrix mentions."""
    return [
        ("start", message["status"])
        if message["type"] == "http.response.start"
        else ("body", message["body"], message.get("more_body", False))
        for message in call.messages
    ]


@pytest.fixture(scope="module", autouse=True)
def young_garbage() -> Iterator[None]:
    """Keep the objects of imports out of the collection after each test, which takes 50 ms otherwise."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class BreaksOnClose(Session):
    """A user's session whose close() fails after closing."""

    breaks = False

    def close(self) -> None:
        super().close()
        if BreaksOnClose.breaks:
            raise BrokenError


def application(database: Database, kind: str, status: int, trouble: Trouble) -> App:
    """Return an application that writes in its handler, in mid-stream and after its body."""
    writer = "async" if kind == "both" else kind

    async def app(scope: Any, receive: Any, send: Any) -> None:
        trouble.watch(engine_of(database, writer))
        if kind == "both":
            await execute(database, "sync", "SELECT 1")
        await insert(database, writer, name="handler")
        await trouble.at("handler", database, writer)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await insert(database, writer, name="stream")
        await trouble.at("stream", database, writer)
        await send({"type": "http.response.body", "body": b"two", "more_body": False})
        await insert(database, writer, name="background")
        await trouble.at("background", database, writer)

    return app


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("backend", "where", "how"), cases(), indirect=["backend"])
async def test_a_failure(
    database: Database, backend: Backend, where: str, how: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client, the table and the pools are as the matrix says, and the next request is served."""
    database.configure(backend.url, session_options={"class_": BreaksOnClose})
    monkeypatch.setattr(BreaksOnClose, "breaks", where == "close")
    trouble = Trouble(backend, where, how)
    status = 422 if where == "rollback" or (where, how) == ("handler", "status") else 201
    call = Patient(SQLAlchemyMiddleware(application(database, kind, status, trouble), database))

    await trouble.suffer(call)

    await until(
        lambda: (out(database), idle_in_transaction(backend)) == (0, 0)
    )  # a closed backend ends in its own time
    expected = MATRIX[where][how]
    assert seen(call) == expected.messages
    assert backend.names() == expected.rows
    assert isinstance(call.raised, expected.raised or type(None))
    assert idle_in_transaction(backend) == 0
    monkeypatch.setattr(BreaksOnClose, "breaks", False)
    assert await next_requests(database, kind, 2) == [201, 201]


def out(database: Database) -> int:
    """Return how many connections of both pools are checked out."""
    pools = [database.engine.pool, database.async_engine.pool]
    return sum(pool.checkedout() for pool in pools)  # type: ignore[attr-defined]  # both are queue pools


def idle_in_transaction(backend: Backend) -> int:
    """Return how many backends the server reports as idle in transaction; SQLite has none."""
    return 0 if backend.name == "sqlite" else backend.backends("idle in transaction%")


async def next_requests(database: Database, kind: str, count: int) -> list[int]:
    """Return the statuses of ``count`` writing requests, one after the other."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "sync" if kind == "sync" else "async", name=scope["path"])
        await respond(send, 201)

    middleware = SQLAlchemyMiddleware(app, database)
    calls = [await Call(middleware, http_scope(f"/next/{number}"))() for number in range(count)]
    return [status for call in calls for status in call.starts]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_verdict_that_raises(database: Database, backend: Backend, kind: str) -> None:
    """Its exception is handled like any failure before the start: rolled back, answered, raised."""
    failure = BrokenError()

    def verdict(scope: Any, message: Any) -> bool:
        raise failure

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, kind, name="a")
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database, commit_on=verdict))()

    assert (seen(call), backend.names()) == (FAILED, [])
    assert call.raised is failure


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_failing_commit_is_reported_once(
    database: Database, backend: Backend, kind: str, mapped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A mapped one is logged with its traceback and not raised; an unmapped one is raised, and the server logs it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, kind, name="a", owner_id=NO_OWNER)
        await respond(send, 201)

    mapping: ErrorResponses | None = {backend.commit_error: 409} if mapped else None
    call = await Call(SQLAlchemyMiddleware(app, database, error_responses=mapping))()

    told = [record.exc_info[1] for record in caplog.records if record.exc_info] + [call.raised]
    assert [type(one) for one in told if one is not None] == [backend.commit_error]
    assert call.status == (409 if mapped else 500)


async def swallow_execute(database: Database, kind: str) -> None:
    with suppress(DBAPIError):
        await execute(database, kind, "SELECT no_such_column")


async def swallow_on_connection(database: Database, kind: str) -> None:
    statement = text("SELECT no_such_column")
    with suppress(DBAPIError):
        if kind == "sync":
            await to_thread.run_sync(lambda: database.session.connection().execute(statement))
        else:
            await (await database.async_session.connection()).execute(statement)


async def swallow_stream(database: Database, kind: str) -> None:
    statement = text("SELECT 1 / (2 - number) FROM generate_series(1, 2) AS number")
    options = {"yield_per": 1}
    with suppress(Exception):  # while fetching, SQLAlchemy lets asyncpg's own exceptions through
        if kind == "sync":
            await to_thread.run_sync(lambda: database.session.execute(statement, execution_options=options).all())
        else:
            result = await database.async_session.stream(statement, execution_options=options)
            await result.all()


async def swallow_in_savepoint(database: Database, kind: str) -> None:
    def with_savepoint(session: Session) -> None:
        with suppress(DBAPIError), session.begin_nested(), suppress(DBAPIError):
            session.execute(text("SELECT no_such_column"))

    if kind == "sync":
        await to_thread.run_sync(lambda: with_savepoint(database.session))
    else:
        await database.async_session.run_sync(with_savepoint)


async def swallow_savepoint_statement(database: Database, kind: str) -> None:
    await swallow_execute(database, kind)
    with suppress(DBAPIError):
        if kind == "sync":
            await to_thread.run_sync(lambda: database.session.begin_nested())
        else:
            await database.async_session.begin_nested()


ABORTING = ("asyncpg", "psycopg", "psycopg2")
SWALLOWED = [
    swallow_execute,
    swallow_on_connection,
    swallow_stream,
    swallow_in_savepoint,
    swallow_savepoint_statement,
]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("swallow", SWALLOWED)
@pytest.mark.parametrize(
    "backend", [n for n in backend_names() if n in ABORTING], indirect=True
)  # others abort nothing
async def test_an_aborted_transaction_is_never_a_success(
    database: Database, backend: Backend, swallow: Any, kind: str
) -> None:
    """A handler that suppresses a failed statement, and with it the transaction, is not answered 201."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, kind, name="a")
        await swallow(database, kind)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    healed = swallow is swallow_in_savepoint  # its rollback is to before the failure
    assert (call.starts, backend.names()) == (([201], ["a"]) if healed else ([500], []))
    assert isinstance(call.raised, type(None) if healed else DBAPIError)
    assert idle_in_transaction(backend) == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_rollback_that_fails_hides_nothing(
    database: Database, backend: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler's exception is raised unchanged, every session is ended, and the failed ROLLBACK is logged."""
    failure = ValueError("no")
    trouble = Trouble(backend, "rollback", "exception")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for each in ["sync", "async"] if kind == "both" else [kind]:
            await execute(database, each, "SELECT count(*) FROM item")
            trouble.watch(engine_of(database, each))
        raise failure

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (seen(call), out(database)) == (NOTHING, 0)
    assert call.raised is failure
    told = [type(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert told == [BrokenError] * (2 if kind == "both" else 1)
    assert idle_in_transaction(backend) == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_close_that_fails_hides_nothing(
    database: Database,
    backend: Backend,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The handler's exception is raised unchanged, every session is ended, and the failures are logged."""
    failure = ValueError("no")
    database.configure(backend.url, session_options={"class_": BreaksOnClose})
    monkeypatch.setattr(BreaksOnClose, "breaks", True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for each in ["sync", "async"] if kind == "both" else [kind]:
            await execute(database, each, "SELECT count(*) FROM item")
        raise failure

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (seen(call), out(database)) == (NOTHING, 0)
    assert call.raised is failure
    told = [type(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert told == [BrokenError] * (2 if kind == "both" else 1)
    assert idle_in_transaction(backend) == 0


def second_database(folder: Path) -> tuple[Database, Engine]:
    """Return a second database with the tables, and a witness of it."""
    witness = create_engine(f"sqlite:///{folder / 'second.db'}", poolclass=NullPool)
    Base.metadata.create_all(witness)
    return Database(f"sqlite:///{folder / 'second.db'}"), witness


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_the_second_commit_of_two_fails(
    database: Database, backend: Backend, sqlite: Backend, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets the error; exception and log say that something was committed, and the first says where."""
    second, witness = second_database(tmp_path)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, kind, name="first")
        await insert(second, kind, name="second", owner_id=NO_OWNER)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, (database, second)))()
    await second.async_dispose()

    assert (seen(call), backend.names()) == (FAILED, ["first"])
    assert isinstance(call.raised, IntegrityError)
    (note,) = call.raised.__notes__
    assert f"these had been committed: {database!r}; these are rolled back: {second!r}" in note
    assert "some of its work had already been committed by the unit of work at its end" in caplog.text
    with witness.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM item")) == 0


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("fault", ["flush", "undone"])
async def test_an_error_known_before_the_second_commit_stops_the_first(
    database: Database, backend: Backend, tmp_path: Path, kind: str, fault: str
) -> None:
    """A failing flush, or a lost transaction, is found before the first COMMIT is sent."""
    second, witness = second_database(tmp_path)

    def spoil(session: Session) -> None:
        if fault == "flush":
            session.add(Item(id=1, name="a"))
            session.flush()
            session.expunge_all()
            session.add(Item(id=1, name="the same key"))
        else:
            session.execute(text("INSERT INTO item (id, name) VALUES (1, 'a')"))
            with suppress(IntegrityError):
                session.execute(text("INSERT OR ROLLBACK INTO item (id, name) SELECT id, name FROM item"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, kind, name="first")
        if kind == "sync":
            await to_thread.run_sync(lambda: spoil(second.session))
        else:
            await second.async_session.run_sync(spoil)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, (database, second)))()
    await second.async_dispose()

    assert (seen(call), backend.names()) == (FAILED, [])
    with witness.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM item")) == 0


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_application_that_returns_without_a_response(database: Database, backend: Backend, kind: str) -> None:
    """Frameworks do so after they cancelled a handler, and nothing is committed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def handler() -> None:
            await insert(database, kind, name="a")
            task.cancel()
            await asyncio.Event().wait()

        task = asyncio.create_task(handler())
        with suppress(asyncio.CancelledError):
            await task

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (seen(call), call.raised, backend.names()) == (NOTHING, None, [])


async def cold(database: Database) -> None:
    """Leave the session without a connection."""


async def warm(database: Database) -> None:
    """Give the session a connection and a transaction."""
    await insert(database, "async", name="warm")


async def executing(session: AsyncSession) -> None:
    for _ in range(100):
        await session.execute(text(SLOW))


async def streaming(session: AsyncSession) -> None:
    result = await session.stream(text(SLOW_ROWS), execution_options={"yield_per": 1})
    async for _ in result:
        pass


async def in_savepoints(session: AsyncSession) -> None:
    for _ in range(1000):
        async with session.begin_nested():
            pass


SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) SELECT count(*) FROM n"
SLOW_ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000) SELECT i FROM n"


@pytest.mark.parametrize("end", ["raises", "201", "422"])
@pytest.mark.parametrize("busy", [executing, streaming, in_savepoints])
@pytest.mark.parametrize("temperature", [cold, warm])
@pytest.mark.parametrize("turns", [1, 10])
@pytest.mark.filterwarnings("ignore:.*ServerCursor.*:ResourceWarning")  # psycopg's, of the one cut short
@pytest.mark.filterwarnings("ignore:.*ServerCursor.*:pytest.PytestUnraisableExceptionWarning")
async def test_a_sibling_that_is_still_busy(
    database: Database, backend: Backend, temperature: Any, busy: Any, end: str, turns: int
) -> None:
    """A task that still uses the session at the end breaks no connection, and every 201 is true."""
    tasks = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await temperature(database)
        tasks.append(asyncio.create_task(busy(database.async_session)))
        await ticks(turns)
        if end == "raises":
            raise BrokenError
        await respond(send, int(end))

    call = await Call(SQLAlchemyMiddleware(app, database))()
    tasks[0].cancel()
    await asyncio.wait(tasks)
    await until(
        lambda: (out(database), idle_in_transaction(backend)) == (0, 0)
    )  # a closed backend ends in its own time

    kept = ["warm"] if temperature is warm and call.starts == [201] else []
    assert backend.names() == kept
    allowed: dict[str, list[list[int]]] = {"raises": [[]], "201": [[201], [500]], "422": [[422]]}
    assert call.starts in allowed[end]
    assert (call.raised is None) <= (call.starts != [500])
    assert idle_in_transaction(backend) == 0
    assert await next_requests(database, "async", 4) == [201] * 4
    assert idle_in_transaction(backend) == 0
    gc.collect()  # here, where psycopg's complaint of a cursor cut short is expected


async def all_returned(database: Database) -> None:
    """Wait until every task that was left behind has returned its connection."""
    async with asyncio.timeout(20):
        while connections_out(database):  # noqa: ASYNC110  # a pool tells nobody
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("temperature", [cold, warm])
async def test_gather_with_a_failing_sibling(database: Database, backend: Backend, temperature: Any) -> None:
    """The handler's own error names the task that it left behind, and the pool serves all later requests."""
    failure = ValueError("no")
    slow = "SELECT sleep(0.02)" if backend.is_mariadb else SLOW  # MariaDB ends a recursion after 1000 rows

    async def raises() -> None:
        raise failure

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await temperature(database)
        await asyncio.gather(database.async_session.execute(text(slow)), raises())

    call = await Call(SQLAlchemyMiddleware(app, database))()
    statuses = await next_requests(database, "async", 16)
    await all_returned(database)

    assert call.raised is failure
    assert "a task or thread was still using one of its sessions when it ended" in failure.__notes__[0]
    assert (call.starts, statuses) == ([], [201] * 16)
    assert idle_in_transaction(backend) == 0
    assert backend.names() == sorted(f"/next/{number}" for number in range(16))


@pytest.mark.parametrize("temperature", [cold, warm])
async def test_a_sibling_that_executes_when_the_response_starts(
    database: Database, backend: Backend, temperature: Any
) -> None:
    """Nothing is committed during its call: the client gets a 500, the server the error that names the cause."""
    tasks = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await temperature(database)
        tasks.append(asyncio.create_task(executing(database.async_session)))
        await ticks(2)
        await respond(send, 200, sized=True)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    (done,), _ = await asyncio.wait(tasks)

    assert (seen(call), type(call.raised), backend.names()) == (FAILED, SessionInUseError, [])
    assert "GET /" in str(call.raised)
    assert isinstance(done.exception(), UnitOfWorkEndedError)
    assert await next_requests(database, "async", 16) == [201] * 16
    assert idle_in_transaction(backend) == 0


@pytest.mark.parametrize("end", ["raises", "cancelled", "201"])
async def test_a_thread_that_outlives_its_request(database: Database, backend: Backend, end: str) -> None:
    """Its transaction is rolled back when its call returns, its next call raises, and nothing leaks."""
    going, go_on, late = threading.Event(), threading.Event(), []

    def pause(*_arguments: Any) -> None:
        going.set()
        go_on.wait(5)

    def handler() -> None:
        session = database.session
        session.add(Item(name="a"))
        session.flush()
        event.listen(engine_of(database, "sync"), "before_execute", pause)
        for _ in range(2):
            try:
                session.execute(text("SELECT 1"))
            except UnitOfWorkEndedError as exc:
                late.append(exc)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        thread = asyncio.get_running_loop().run_in_executor(None, copy_context().run, handler)
        threads.append(thread)
        await until(going.is_set)
        if end == "raises":
            raise BrokenError
        if end == "cancelled":
            raise asyncio.CancelledError
        await respond(send, 201, sized=True)

    threads: list[asyncio.Future[None]] = []
    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert backend.names() == []
    go_on.set()
    await threads[0]

    raised = {"raises": BrokenError, "cancelled": asyncio.CancelledError, "201": SessionInUseError}
    assert (call.starts, type(call.raised)) == ([500] if end == "201" else [], raised[end])
    assert [type(exc) for exc in late] == [UnitOfWorkEndedError]
    assert (backend.names(), out(database), idle_in_transaction(backend)) == ([], 0, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_cancelled_at_random(
    database: Database, backend: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No connection stays checked out or in a transaction, whenever a cancellation comes."""
    caplog.set_level(logging.WARNING, "sqlalchemy.pool")
    chance = random.Random(kind)
    each = ["sync", "async"] if kind == "both" else [kind]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, each[-1], name=scope["path"])
        for one in each:
            await execute(database, one, "SELECT count(*) FROM item")
        await respond(send, 201)

    middleware = SQLAlchemyMiddleware(app, database)
    told: list[str] = []
    cut_short: list[str] = []

    async def client(number: int) -> None:
        for request in range(REQUESTS // CLIENTS // len(KINDS)):
            path = f"/{number}/{request}"
            call = Call(middleware, http_scope(path))
            task = asyncio.create_task(call())
            for _ in range(chance.choice([1, 1, 2])):
                await asyncio.sleep(chance.random() * 0.008)
                task.cancel()
            await asyncio.wait((task,))
            assert isinstance(call.raised, asyncio.CancelledError | None)
            (told if call.starts else cut_short).append(path)

    async with asyncio.TaskGroup() as clients:
        for number in range(CLIENTS):
            clients.create_task(client(number))
    await until(
        lambda: (out(database), idle_in_transaction(backend)) == (0, 0)
    )  # a closed backend ends in its own time
    gc.collect()

    assert (out(database), idle_in_transaction(backend)) == (0, 0)
    assert set(told) <= set(backend.names())
    assert len(cut_short) > 0
    assert [record for record in caplog.records if record.name.startswith("sqlalchemy.pool")] == []
    assert await next_requests(database, each[-1], 4) == [201] * 4


REQUESTS = 1002
"""For each backend, a third of each kind."""
CLIENTS = 6
