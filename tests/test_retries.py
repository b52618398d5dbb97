"""Retries: a request or function that met a transient error is run again, and nothing is done twice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anyio import to_thread
from sqlalchemy import event, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from support.asgi import Call, Message, http_scope, respond
from support.databases import Backend, Item, backend_names
from support.failing import engine_of, lose_network, until
from support.marks import KINDS, on_one, on_postgresql
from support.rivals import EVERY, Trouble, join_rivals, perform, rows, trouble

from asgi_sqla import ConfigurationError, Database, ErrorKind, SQLAlchemyMiddleware, current_unit, session_scope
from asgi_sqla.session.listeners import IN_DOUBT
from asgi_sqla.session.transient import FIRST_PAUSE, LONGEST_OUTAGE_PAUSE, LONGEST_PAUSE, is_transient, pause

on_every_trouble = pytest.mark.parametrize(("backend", "failing"), EVERY, indirect=["backend"])


@pytest.fixture(autouse=True)
def _rivals() -> Iterator[None]:
    yield
    join_rivals()


class Posting(Call):
    """A request whose body comes in chunks; the client disconnects after the last if it ``leaves``."""

    def __init__(self, app: Any, *chunks: bytes, leaves: bool = False, scope: Message | None = None) -> None:
        super().__init__(app, scope or http_scope(method="POST"))
        self._requests = [
            {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
            for number, chunk in enumerate(chunks or (b"",), 1)
        ]
        if leaves:
            self._requests.append({"type": "http.disconnect"})
        self._requests.reverse()


async def read(receive: Any) -> bytes:
    """Return the whole body of a request."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    return body


class Handler:
    """An application that meets an error in its first attempts, and writes one row in each."""

    def __init__(
        self, database: Database, backend: Backend, kind: str = "async", *, fails: int = 1, failing: Trouble = trouble
    ) -> None:
        self.database = database
        self.backend = backend
        self.kind = kind
        self.fails = fails
        self.failing = failing
        self.attempts: list[int] = []
        self.before = rows(backend)

    async def work(self) -> None:
        """Meet an error, or write."""
        attempt = current_unit().attempt
        self.attempts.append(attempt)

        def work(session: Session) -> None:
            if attempt <= self.fails:
                self.failing(self.backend, session)
            session.execute(insert(Item).values(name=f"attempt {attempt}"))

        await perform(self.database, self.kind, work)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Work, and answer 201."""
        await self.work()
        await respond(send, 201)

    def written(self) -> list[str]:
        """Return the names of the new rows."""
        return [name for name in self.backend.names() if name not in self.before]


# What is done again.


@pytest.mark.parametrize("kind", KINDS)
@on_every_trouble
async def test_a_request_with_a_transient_error_is_retried(
    database: Database, backend: Backend, kind: str, failing: Trouble
) -> None:
    """The client sees only the answer of the second attempt, and the first attempt left nothing."""
    handler = Handler(database, backend, kind, failing=failing)

    call = await Call(SQLAlchemyMiddleware(handler, database, retries=1))()

    assert (call.raised, call.starts) == (None, [201])
    assert handler.attempts == [1, 2]
    assert handler.written() == ["attempt 2"]


@on_every_trouble
async def test_an_async_function_with_a_transient_error_is_retried(
    database: Database, backend: Backend, failing: Trouble
) -> None:
    """The caller gets the result of the second call, in a separate scope."""
    handler = Handler(database, backend, failing=failing)
    units: list[object] = []

    @session_scope(database, retries=1)
    async def work(argument: str) -> str:
        units.append(current_unit())
        await handler.work()
        return argument

    assert await work("done") == "done"
    assert handler.attempts == [1, 2]
    assert len(set(units)) == 2
    assert handler.written() == ["attempt 2"]


@on_every_trouble
async def test_a_function_with_a_transient_error_is_retried(
    database: Database, backend: Backend, failing: Trouble
) -> None:
    """Sync functions are retried too."""
    before = rows(backend)
    attempts: list[int] = []

    @session_scope(database, retries=1)
    def work() -> str:
        attempt = current_unit().attempt
        attempts.append(attempt)
        if attempt == 1:
            failing(backend, database.session)
        database.session.add(Item(name=f"attempt {attempt}"))
        return "done"

    assert work() == "done"
    assert attempts == [1, 2]
    assert [name for name in backend.names() if name not in before] == ["attempt 2"]


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_commit_with_a_transient_error_is_retried(database: Database, backend: Backend, kind: str) -> None:
    """Only the COMMIT of a SERIALIZABLE transaction may show that another one was faster."""
    before = rows(backend)
    attempts: list[int] = []
    serializable = Database(backend.url, engine_options={"isolation_level": "SERIALIZABLE"})

    def work(session: Session) -> None:
        attempts.append(current_unit().attempt)
        session.execute(text("SELECT count(*) FROM item"))
        session.add(Item(name=f"ours {current_unit().attempt}"))
        session.flush()
        if current_unit().attempt == 1:
            with backend.witness.connect().execution_options(isolation_level="SERIALIZABLE") as rival:
                rival.execute(text("SELECT count(*) FROM item"))
                rival.execute(insert(Item).values(name="theirs"))
                rival.commit()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(serializable, kind, work)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, serializable, retries=1))()
    await serializable.async_dispose()

    assert (call.raised, call.starts) == (None, [201])
    assert attempts == [1, 2]
    assert [name for name in backend.names() if name not in before] == ["ours 2", "theirs"]


class OwnError(Exception):
    """An exception that an application makes from another one."""


async def caused(handler: Handler, send: Any) -> None:
    try:
        await handler.work()
    except DBAPIError as exc:
        raise OwnError from exc


async def hidden(handler: Handler, send: Any) -> None:
    try:
        await handler.work()
    except DBAPIError:
        raise OwnError from None


async def in_a_group(handler: Handler, send: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(handler.work())


async def answered_500(handler: Handler, send: Any) -> None:
    try:
        await handler.work()
    except DBAPIError:
        await respond(send, 500)


async def answered_409_after_a_rollback(handler: Handler, send: Any) -> None:
    try:
        await handler.work()
    except DBAPIError:
        await handler.database.async_session.rollback()
        await respond(send, 409)


async def answered_200(handler: Handler, send: Any) -> None:
    try:
        await handler.work()
    except DBAPIError:
        await respond(send, 200)


async def asked_on(handler: Handler, send: Any) -> None:
    try:
        await handler.work()
    except DBAPIError:
        await handler.database.async_session.execute(text("SELECT 1"))  # which fails in turn on PostgreSQL
        await respond(send, 500)


SHAPES = [caused, hidden, in_a_group, answered_500, answered_409_after_a_rollback, answered_200, asked_on]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_transient_error_is_found_however_it_is_wrapped(
    database: Database, backend: Backend, shape: Callable[..., Any]
) -> None:
    """The original error counts if it is wrapped, in a group, or turned into an answer."""
    handler = Handler(database, backend)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await shape(handler, send)
        if handler.attempts[-1] > handler.fails:
            await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database, retries=1))()

    assert (call.raised, call.starts) == (None, [201])
    assert handler.written() == ["attempt 2"]


async def test_an_error_on_the_connection_is_found_too(database: Database, backend: Backend) -> None:
    """A statement may use the session's connection, and the application may answer its error."""
    attempts: list[int] = []
    rows(backend)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempts.append(current_unit().attempt)
        connection = await database.async_session.connection()
        if attempts == [1]:
            try:
                await connection.run_sync(lambda sync: trouble(backend, _OnConnection(sync)))  # type: ignore[arg-type]  # all it asks for
            except DBAPIError:
                await respond(send, 500)
        else:
            await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database, retries=1))()

    assert (call.starts, attempts) == ([201], [1, 2])


class _OnConnection:
    """An object like a session that uses a connection."""

    def __init__(self, connection: Any) -> None:
        self.execute = connection.execute
        self.scalar = connection.scalar
        self._connection = connection

    def connection(self, execution_options: Any) -> None:
        """Set what must be set before the transaction begins, in other words, because it has begun."""
        self._connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))


@on_postgresql
async def test_an_error_rolled_back_to_a_savepoint_is_not_retried(database: Database, backend: Backend) -> None:
    """It rolled the failed work back, continued, and answered below 400: that is committed."""
    rows(backend)
    calls = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        session = database.async_session
        await session.execute(text("SET LOCAL lock_timeout = 0"))
        try:
            async with session.begin_nested():
                await session.execute(text("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$"))
        except DBAPIError:
            session.add(Item(name="healed"))
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database, retries=3))()

    assert (call.starts, calls) == ([201], 1)
    assert "healed" in backend.names()


@pytest.mark.parametrize("backend", [name for name in backend_names() if name != "sqlite"], indirect=True)
async def test_a_suppressed_deadlock_is_not_committed(database: Database, backend: Backend) -> None:
    """The database has rolled the transaction back, and without retries the answer is an error."""
    handler = Handler(database, backend)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answered_200(handler, send)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert call.starts == [500]
    assert handler.written() == []


# The request is the same each time.


@pytest.mark.parametrize("chunks", [(b"",), (b"whole",), (b"in ", b"three ", b"chunks")])
async def test_the_body_is_replayed(database: Database, backend: Backend, chunks: tuple[bytes, ...]) -> None:
    """Each attempt receives the whole body, chunk by chunk."""
    handler = Handler(database, backend)
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies.append(await read(receive))
        await handler(scope, receive, send)

    call = await Posting(SQLAlchemyMiddleware(app, database, retries=1), *chunks)()

    assert call.starts == [201]
    assert bodies == [b"".join(chunks)] * 2


async def test_a_body_that_was_read_in_part_is_replayed(database: Database, backend: Backend) -> None:
    """The first attempt failed after one chunk, and the second one gets that chunk and the rest."""
    handler = Handler(database, backend)
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if not handler.attempts:
            bodies.append((await receive())["body"])
        else:
            bodies.append(await read(receive))
        await handler(scope, receive, send)

    call = await Posting(SQLAlchemyMiddleware(app, database, retries=1), b"one ", b"two")()

    assert call.starts == [201]
    assert bodies == [b"one ", b"one two"]


@pytest.mark.parametrize("limit", [0, 5])
async def test_a_body_over_the_limit_is_not_replayed(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture, limit: int
) -> None:
    """The application receives all of it, the failure is raised, and a debug line gives the reason."""
    handler = Handler(database, backend)
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies.append(await read(receive))
        await handler(scope, receive, send)

    with caplog.at_level(logging.DEBUG, "asgi_sqla"):
        call = await Posting(SQLAlchemyMiddleware(app, database, retries=3, replay_limit=limit), b"123", b"456")()

    assert isinstance(call.raised, DBAPIError)
    assert bodies == [b"123456"]
    debug = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert debug == [f"a body of more than {limit} bytes is not kept, so its request is not retried"]


async def test_a_body_of_just_the_limit_is_replayed(database: Database, backend: Backend) -> None:
    """The limit is the size of the largest body that is kept."""
    handler = Handler(database, backend)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await read(receive) == b"12345"
        await handler(scope, receive, send)

    call = await Posting(SQLAlchemyMiddleware(app, database, retries=1, replay_limit=5), b"123", b"45")()

    assert (call.starts, handler.attempts) == ([201], [1, 2])


async def test_nothing_is_retried_after_a_disconnect(database: Database, backend: Backend) -> None:
    """No client waits for the answer any more."""
    handler = Handler(database, backend)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read(receive)
        assert (await receive())["type"] == "http.disconnect"
        await handler(scope, receive, send)

    call = await Posting(SQLAlchemyMiddleware(app, database, retries=3), b"", leaves=True)()

    assert isinstance(call.raised, DBAPIError)
    assert handler.attempts == [1]


async def test_each_attempt_has_a_scope_and_a_unit_of_its_own(database: Database, backend: Backend) -> None:
    """The next attempt does not see changes of the ASGI scope, and outer layers see those of the last one."""
    handler = Handler(database, backend, fails=2)
    seen: list[tuple[object, object]] = []
    units: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope.get("route"), scope["state"].get("user")))
        units.append(current_unit())
        scope["route"] = scope["state"]["user"] = current_unit().attempt
        await handler(scope, receive, send)

    scope = http_scope(method="POST", state={})
    call = await Call(SQLAlchemyMiddleware(app, database, retries=2), scope)()

    assert call.starts == [201]
    assert seen == [(None, None)] * 3
    assert len(set(units)) == 3
    assert (scope["route"], scope["state"], "asgi_sqla" in scope) == (3, {"user": 3}, False)


@on_one
async def test_a_mounted_route_is_found_again(database: Database, backend: Backend) -> None:
    """Starlette's Mount rewrites the path in the scope, and the next attempt must not see that."""
    handler = Handler(database, backend)

    async def create(request: Request) -> JSONResponse:
        await handler.work()
        return JSONResponse(await request.json(), 201)

    routes = [Mount("/api", routes=[Mount("/v1", routes=[Route("/items", create, methods=["POST"])])])]
    app = SQLAlchemyMiddleware(Starlette(routes=routes), database, retries=1)
    call = await Posting(app, b'{"a": 1}', scope=http_scope("/api/v1/items", "POST"))()

    assert (call.raised, call.starts, call.body) == (None, [201], b'{"a":1}')
    assert handler.attempts == [1, 2]


# Fences.


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_retried_after_the_start(database: Database, backend: Backend, kind: str) -> None:
    """The client has its answer already, so a failure in the body is raised to the server."""
    handler = Handler(database, backend, kind)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await handler.work()

    call = await Call(SQLAlchemyMiddleware(app, database, retries=3))()

    assert isinstance(call.raised, DBAPIError)
    assert (call.starts, handler.attempts) == ([200], [1])


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_retried_after_a_commit_in_the_middle(database: Database, backend: Backend, kind: str) -> None:
    """A retry would repeat what the application has committed itself."""
    handler = Handler(database, backend, kind)

    def committing(session: Session) -> None:
        session.add(Item(name="kept"))
        session.commit()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, committing)
        await handler(scope, receive, send)

    call = await Call(SQLAlchemyMiddleware(app, database, retries=3))()

    assert isinstance(call.raised, DBAPIError)
    assert handler.attempts == [1]
    assert handler.written() == ["kept"]


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_retried_after_a_scope_inside_has_committed(
    database: Database, backend: Backend, kind: str
) -> None:
    """In a request and in a function, a retry would repeat what a unit inside has committed."""
    handler = Handler(database, backend, kind)

    def in_thread() -> None:
        with session_scope(database) as session:
            session.add(Item(name="kept"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if kind == "sync":
            await to_thread.run_sync(in_thread)
        else:
            async with session_scope(database) as session:
                session.add(Item(name="kept"))
        await handler(scope, receive, send)

    call = await Call(SQLAlchemyMiddleware(app, database, retries=3))()

    assert isinstance(call.raised, DBAPIError)
    assert handler.attempts == [1]
    assert handler.written() == ["kept"]

    with pytest.raises(IntegrityError):
        await session_scope(database, retries=3)(app)(None, None, None)


async def test_a_scope_inside_that_only_reads_allows_a_retry(database: Database, backend: Backend) -> None:
    """A retry repeats nothing of it."""
    handler = Handler(database, backend)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with session_scope(database, read_only=True) as session:
            await session.execute(text("SELECT 1"))
        await handler(scope, receive, send)

    call = await Call(SQLAlchemyMiddleware(app, database, retries=1))()

    assert (call.starts, handler.attempts) == ([201], [1, 2])


async def test_nothing_is_retried_after_callbacks_have_run(database: Database, backend: Backend) -> None:
    """Callbacks run just before the start, and both forbid a retry."""
    called: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_unit().on_commit(called.append, current_unit().attempt)
        await respond(send, 201)

    call = Call(SQLAlchemyMiddleware(app, database, retries=3))

    async def on_start(_message: Message) -> None:
        raise PASSING["deadlock_detected"]

    call.on_start = on_start
    await call()

    assert call.raised is PASSING["deadlock_detected"]
    assert called == [1]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_savepoint_is_no_commit(database: Database, backend: Backend, kind: str) -> None:
    """A released savepoint is rolled back with the rest, so the request is retried."""
    handler = Handler(database, backend, kind)

    def releasing(session: Session) -> None:
        with session.begin_nested():
            session.scalar(text("SELECT 1"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if backend.is_postgresql and current_unit().attempt == 1:
            await perform(database, kind, lambda session: session.connection(execution_options=REPEATABLE))
        await perform(database, kind, releasing)
        await handler(scope, receive, send)

    handler.failing = _without_asking_for_a_level
    call = await Call(SQLAlchemyMiddleware(app, database, retries=1))()

    assert (call.raised, call.starts, handler.attempts) == (None, [201], [1, 2])


REPEATABLE = {"isolation_level": "REPEATABLE READ"}


def _without_asking_for_a_level(backend: Backend, session: Session) -> None:
    trouble(backend, _OnSession(session))  # type: ignore[arg-type]  # all it asks for


class _OnSession:
    """A session that has its isolation level already."""

    def __init__(self, session: Session) -> None:
        self.execute = session.execute
        self.scalar = session.scalar

    def connection(self, execution_options: Any) -> None:
        """Do nothing."""


@pytest.mark.parametrize("who", ["middleware", "application", "begin block"])
@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_nothing_is_retried_when_a_commit_is_in_doubt(
    database: Database, backend: Backend, kind: str, who: str
) -> None:
    """The connection is lost during COMMIT, and nobody can know whether it was applied."""
    calls = 0

    def doom(session: Session) -> None:
        session.execute(insert(Item).values(name="doubtful"))

    def work(session: Session) -> None:
        if who == "begin block":
            with session.begin():
                doom(session)
        else:
            doom(session)
            if who == "application":
                session.commit()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        await perform(database, kind, work)
        await respond(send, 201)

    event.listen(engine_of(database, kind), "commit", lose_network)
    call = await Call(SQLAlchemyMiddleware(app, database, retries=3))()

    assert isinstance(call.raised, DBAPIError)
    assert call.raised.__notes__ == [IN_DOUBT]
    assert calls == 1
    assert backend.names() == []


async def test_an_error_that_is_not_transient_is_not_retried(database: Database, backend: Backend) -> None:
    """A duplicate name would be a duplicate in the next attempt too."""
    rows(backend)
    calls = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        database.async_session.add(Item(name="row 1"))
        await database.async_session.flush()

    call = await Call(SQLAlchemyMiddleware(app, database, retries=3))()

    assert isinstance(call.raised, IntegrityError)
    assert calls == 1


async def test_a_second_layer_retries_nothing(database: Database, backend: Backend) -> None:
    """A second layer of the middleware retries nothing: there are 3 attempts, not 9."""
    handler = Handler(database, backend, fails=9)
    inner = SQLAlchemyMiddleware(handler, database, retries=2)

    call = await Call(SQLAlchemyMiddleware(inner, database, retries=2))()

    assert isinstance(call.raised, DBAPIError)
    assert handler.attempts == [1, 2, 3]


# The end of it.


@pytest.mark.parametrize("kind", KINDS)
async def test_the_last_failure_goes_through_unchanged(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """After N retries the error is raised as without retries, and each retry is a line at INFO."""
    handler = Handler(database, backend, kind, fails=9)
    raised: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await handler.work()
        except Exception as exc:
            raised.append(exc)
            raise

    with caplog.at_level(logging.INFO, "asgi_sqla"):
        call = await Call(SQLAlchemyMiddleware(app, database, retries=2))()

    assert call.raised is raised[2]
    assert (call.starts, handler.attempts) == ([], [1, 2, 3])
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.INFO] == [
        f"GET /: attempt {number} is retried after {type(one).__name__}: {str(one).splitlines()[0]}"
        for number, one in enumerate(raised[:2], 1)
    ]


async def test_the_last_failure_of_a_function_goes_through_unchanged(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the same exception object that the last call raised."""
    handler = Handler(database, backend, fails=9)
    raised: list[BaseException] = []

    @session_scope(database, retries=2)
    async def work() -> None:
        try:
            await handler.work()
        except Exception as exc:
            raised.append(exc)
            raise

    with caplog.at_level(logging.INFO, "asgi_sqla"), pytest.raises(DBAPIError) as info:
        await work()

    assert info.value is raised[2]
    assert handler.attempts == [1, 2, 3]
    names = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert names == [work.__qualname__] * 2


async def test_the_last_answer_of_the_application_goes_through(database: Database, backend: Backend) -> None:
    """If the application answers the error, the answer of the last attempt is sent."""
    handler = Handler(database, backend, fails=9)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await handler.work()
        except DBAPIError:
            await respond(send, 409, b"%d" % current_unit().attempt)

    call = await Call(SQLAlchemyMiddleware(app, database, retries=2))()

    assert (call.raised, call.starts, call.body) == (None, [409], b"3")


async def test_an_error_response_is_for_the_last_failure(database: Database, backend: Backend) -> None:
    """The mapping error_responses is used only after the last attempt."""
    handler = Handler(database, backend, fails=9)
    app = SQLAlchemyMiddleware(handler, database, retries=2, error_responses={DBAPIError: 503})

    call = await Call(app)()

    assert (call.raised, call.starts, handler.attempts) == (None, [503], [1, 2, 3])


async def test_callbacks_run_once(database: Database, backend: Backend) -> None:
    """The on_commit callbacks run for the attempt that succeeded, and on_rollback ones for each that did not."""
    handler = Handler(database, backend, fails=2)
    called: list[tuple[str, int]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        unit = current_unit()
        unit.on_commit(called.append, ("commit", unit.attempt))
        unit.on_rollback(called.append, ("rollback", unit.attempt))
        await handler(scope, receive, send)

    call = await Call(SQLAlchemyMiddleware(app, database, retries=2))()

    assert call.starts == [201]
    assert called == [("rollback", 1), ("rollback", 2), ("commit", 3)]


async def test_cancellation_ends_the_pause(
    database: Database, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is cancelled between two attempts ends at once."""
    monkeypatch.setattr("asgi_sqla.asgi.retry.pause", lambda attempt, kind: 60.0)
    handler = Handler(database, backend)
    task = asyncio.create_task(Call(SQLAlchemyMiddleware(handler, database, retries=1))())
    pool: Any = database.async_engine.pool
    await until(lambda: bool(handler.attempts) and pool.checkedout() == 0)

    task.cancel()
    call = await asyncio.wait_for(task, 5)

    assert isinstance(call.raised, asyncio.CancelledError)
    assert handler.attempts == [1]


async def test_cancellation_ends_the_pause_of_a_function(
    database: Database, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decorated function that is cancelled between two attempts ends at once."""
    monkeypatch.setattr("asgi_sqla.unit.scope.pause", lambda attempt, kind: 60.0)
    handler = Handler(database, backend)
    task = asyncio.create_task(session_scope(database, retries=1)(handler.work)())
    pool: Any = database.async_engine.pool
    await until(lambda: bool(handler.attempts) and pool.checkedout() == 0)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)

    assert handler.attempts == [1]


def test_pauses_grow_to_a_bound_and_differ() -> None:
    """They are exponential, jittered, and never longer than a second."""
    first = [pause(1, ErrorKind.CONTENTION) for _ in range(200)]
    late = [pause(5000, ErrorKind.CONNECTION_LOST) for _ in range(200)]

    assert 0 <= min(first) < max(first) <= 2 * FIRST_PAUSE
    assert LONGEST_PAUSE / 2 < max(late) <= LONGEST_PAUSE
    assert len(set(late)) > 100


@pytest.mark.parametrize("kind", [ErrorKind.UNAVAILABLE, ErrorKind.POOL_EXHAUSTED, ErrorKind.STANDBY])
def test_three_pauses_are_longer_than_a_restart(kind: ErrorKind) -> None:
    """The first attempt lost its connection, which costs one retry; two more outlive a second and a half."""
    waits = [[pause(attempt, kind) for attempt in (2, 3, 4, 5000)] for _ in range(200)]

    assert min(second + third for second, third, *_ in waits) >= 1.5
    assert max(max(one) for one in waits) <= LONGEST_OUTAGE_PAUSE
    assert len({one[-1] for one in waits}) > 100


@on_postgresql
async def test_no_request_fails_after_a_restart(database: Database, backend: Backend) -> None:
    """Every pooled connection is lost between two requests, and none is tested before its use."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await database.async_session.execute(insert(Item).values(name=scope["path"]))
        await respond(send, 201)

    middleware = SQLAlchemyMiddleware(app, database, retries=1)
    await asyncio.gather(*(Call(middleware, http_scope(f"/before/{number}"))() for number in range(5)))
    assert backend.terminate() >= 5
    calls = [await Call(middleware, http_scope(f"/after/{number:02}"))() for number in range(20)]

    assert [call.starts for call in calls] == [[201]] * 20
    assert [name for name in backend.names() if name.startswith("/after")] == [f"/after/{n:02}" for n in range(20)]


# Wrong uses.


async def test_a_with_block_cannot_be_retried(database: Database, backend: Backend) -> None:
    """Its body cannot be run again, and the error says to decorate a function."""
    with pytest.raises(ConfigurationError, match=r"retries=2 cannot run a with block again; .* @session_scope"):
        async with session_scope(database, retries=2):
            pass
    with (
        pytest.raises(ConfigurationError, match="retries=2 cannot run a with block again"),
        session_scope(database, retries=2),
    ):
        pass


@pytest.mark.parametrize("wrong", [-1, 1.5, "2", True, None])
def test_retries_is_a_count(wrong: Any, sqlite: Backend) -> None:
    """Any other value is refused at once."""
    database = Database(sqlite.url)
    with pytest.raises(ConfigurationError, match="is not a count"):
        session_scope(database, retries=wrong)
    with pytest.raises(ConfigurationError, match="retries="):
        SQLAlchemyMiddleware(respond, database, retries=wrong)
    with pytest.raises(ConfigurationError, match="replay_limit="):
        SQLAlchemyMiddleware(respond, database, replay_limit=wrong)


def test_autocommit_is_not_retried(sqlite: Backend) -> None:
    """Each statement commits by itself, so a retry would repeat it; reads may be repeated."""
    database = Database(sqlite.url)
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        session_scope(database, isolation_level="AUTOCOMMIT", retries=1)
    session_scope(database, isolation_level="AUTOCOMMIT", retries=1, read_only=True)


# What passes, and what does not, for drivers that are not here.


class _FakeError(Exception):
    def __init__(self, *args: object, **fields: object) -> None:
        super().__init__(*args)
        self.__dict__.update(fields)


def _of(module: str, *args: object) -> Exception:
    error: Exception = type("Error", (Exception,), {"__module__": module})(*args)
    return error


PASSING = {
    "serialization_failure": _FakeError(sqlstate="40001"),
    "deadlock_detected": _FakeError(sqlstate="40P01"),
    "psycopg2": _FakeError(pgcode="40001"),
    "SQLite busy": _FakeError(sqlite_errorcode=5),
    "SQLite locked": _FakeError(sqlite_errorcode=6),
    "SQLite busy snapshot": _FakeError(sqlite_errorcode=517),
    "SQLite locked shared cache": _FakeError(sqlite_errorcode=262),
    "MySQL deadlock": _of("pymysql.err", 1213, "Deadlock found"),
    "MySQL lock wait": _of("asyncmy.errors", 1205, "Lock wait timeout exceeded"),
    "a lost connection": OperationalError("SELECT 1", {}, _FakeError(), connection_invalidated=True),
}
LASTING = {
    "unique violation": _FakeError(sqlstate="23505"),
    "SQLite constraint": _FakeError(sqlite_errorcode=19),
    "MySQL duplicate": _of("pymysql.err", 1062),
    "a number of somebody else's": _FakeError(1213),
    "no argument": _of("pymysql.err"),
    "an error of the database": OperationalError("SELECT 1", {}, _FakeError()),
}


@pytest.mark.parametrize("error", PASSING.values(), ids=PASSING)
def test_which_errors_are_transient(error: Exception) -> None:
    """SQLSTATE or number count, on the original error, in DBAPIErrors, causes, contexts and groups."""
    wrapped = OperationalError("SELECT 1", {}, error)
    caused = ValueError()
    caused.__cause__ = wrapped
    in_context = ValueError()
    in_context.__context__ = caused
    group = ExceptionGroup("several", [KeyError(), ExceptionGroup("more", [in_context])])

    assert [is_transient(one) for one in (error, wrapped, caused, in_context, group)] == [True] * 5


@pytest.mark.parametrize("error", LASTING.values(), ids=LASTING)
def test_which_errors_are_not_transient(error: Exception) -> None:
    """Any other error would be raised by the next attempt too."""
    assert is_transient(error) is False
