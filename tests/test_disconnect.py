"""``cancel_on_disconnect=``: what the application of a client that has gone still gets, and its work's fate."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import trio
from anyio import to_thread
from sqlalchemy import event, text
from support.asgi import App, Call, Message, http_scope, respond
from support.dark import dark
from support.databases import Backend, Item
from support.failing import BrokenError, engine_of, execute, insert, until
from support.hang_ups import sleeps
from support.marks import KINDS, POSTGRESQL, on_one, on_one_postgresql, on_postgresql

from asgi_sqla import Database, SQLAlchemyMiddleware, UnitOfWorkEndedError, current_unit, session_scope
from asgi_sqla.asgi import disconnect
from asgi_sqla.unit import calls, threads

GONE = "its client has gone before its response started"
NOTHING: Message = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT: Message = {"type": "http.disconnect"}


class Leaver(Call):
    """A client in process that sends its body when it likes, and leaves."""

    def __init__(self, app: Any, *messages: Message, **scope: Any) -> None:
        super().__init__(app, http_scope(**scope))
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.task: asyncio.Task[Call] | None = None
        self.reads = 0
        """How many messages the server was asked for."""
        self.read = 0
        """How many of them it gave."""
        for message in messages or (NOTHING,):
            self._inbox.put_nowait(message)

    async def receive(self) -> Message:
        """Give the next message; the last one again and again, as servers do."""
        self.reads += 1
        message = await self._inbox.get()
        self.read += 1
        if message == DISCONNECT:
            self._inbox.put_nowait(message)
        return dict(message)

    def leave(self) -> None:
        """Hang up."""
        self._inbox.put_nowait(DISCONNECT)

    async def until(self, condition: Callable[[], bool]) -> Leaver:
        """Send the request, and return when ``condition()`` is true."""
        self.task = asyncio.create_task(self())
        await until(condition)
        return self

    async def end(self) -> Call:
        """Hang up, and return when the request has ended."""
        self.leave()
        assert self.task is not None
        async with asyncio.timeout(10):
            return await self.task


def cancelling(app: Any, database: Database, **options: Any) -> SQLAlchemyMiddleware:
    """Return the middleware with the switch on."""
    return SQLAlchemyMiddleware(app, database, cancel_on_disconnect=True, **options)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged."""
    return [one.getMessage() for one in caplog.records if one.name == "asgi_sqla" and one.levelno >= logging.INFO]


def waiting(events: list[Any]) -> Callable[[Any, Any, Any], Coroutine[Any, Any, None]]:
    """Return an application that waits until it is cancelled, and notes that."""

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        events.append("waits")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("cancelled")

    return app


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_is_cancelled_and_its_work_rolled_back(
    backend: Backend, database: Database, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its statement ends in the server, its connection is back, nothing is sent or raised, and one line is logged."""
    seen: list[str] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await insert(database, kind, name="lost")
        current_unit().on_rollback(seen.append, "rolled back")
        seen.append("waits")
        await execute(database, kind, sleeps(backend))
        await respond(send, 201)

    caplog.set_level(logging.INFO)
    call = await Leaver(cancelling(app, database), method="POST").until(lambda: "waits" in seen)
    await asyncio.sleep(2 * disconnect.WATCH_AFTER)
    began = time.monotonic()
    await call.end()

    assert time.monotonic() - began < 10  # of 30
    assert (call.messages, call.raised, seen) == ([], None, ["waits", "rolled back"])
    assert backend.names() == []
    if backend.name != "sqlite":
        await until(lambda: backend.asleep() == 0)
    assert told(caplog) == [f"POST /: {GONE}, so it is cancelled"]
    assert [one for one in caplog.records if one.levelno > logging.INFO and one.name != "psycopg"] == []


async def test_without_the_switch_the_application_has_the_servers_own_functions(sqlite: Backend) -> None:
    """So it costs nothing, and the handler of a client that has gone runs to its end."""
    database = Database(sqlite.url)
    received: list[Any] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(2 * disconnect.WATCH_AFTER)
        received.append(receive)
        await respond(send, 201)

    call = Leaver(SQLAlchemyMiddleware(app, database))
    call.leave()
    await call()

    assert (call.status, call.reads) == (201, 0)
    assert received == [call.receive]


async def test_a_short_request_is_not_watched(sqlite: Backend) -> None:
    """It starts no task, and nothing is read from the server that it does not ask for."""
    tasks: list[int] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        tasks.append(len(asyncio.all_tasks()))
        assert await receive() == NOTHING
        await respond(send, 201)
        tasks.append(len(asyncio.all_tasks()))

    call = Leaver(cancelling(app, Database(sqlite.url)))
    await call()

    assert (call.status, call.reads, tasks) == (201, 1, [1, 1])


async def test_a_handler_without_a_database_is_cancelled_too(sqlite: Backend) -> None:
    """Whatever it waits for; at a second call of ``receive()`` as well as at none."""
    events: list[str] = []
    call = await Leaver(cancelling(waiting(events), Database(sqlite.url))).until(lambda: bool(events))
    await call.end()

    assert (events, call.messages, call.raised) == (["waits", "cancelled"], [], None)


async def test_a_body_that_was_not_received_stays_receivable(sqlite: Backend) -> None:
    """In order, and then the message that the client has gone, as often as it is asked for."""
    parts: list[Message] = [
        {"type": "http.request", "body": part, "more_body": part != b"c"} for part in (b"a", b"b", b"c")
    ]
    parts[1]["body"] = bytearray(b"b")  # some servers reuse it
    received: list[Message] = []
    events: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        received.append(await receive())
        try:
            await waiting(events)(_scope, receive, send)
        finally:
            received.extend([await receive() for _ in range(4)])

    call = await Leaver(cancelling(app, Database(sqlite.url)), *parts).until(lambda: bool(events))
    await until(lambda: call.read == 3)
    parts[1]["body"][:] = b"x"
    await call.end()

    assert [one.get("body") for one in received] == [b"a", b"b", b"c", None, None]
    assert received[3:] == [DISCONNECT, DISCONNECT]


@pytest.mark.parametrize(("size", "most"), [(16 * 1024, 4), (2**20, 1), (0, 64)])
async def test_a_body_is_read_ahead_only_so_far(sqlite: Backend, size: int, most: int) -> None:
    """64 KiB and 64 messages: the rest stays with the server until the application takes some."""
    parts = [{"type": "http.request", "body": bytes(size), "more_body": number < 99} for number in range(100)]
    go, received = asyncio.Event(), []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        while True:
            received.append(await receive())
            if not received[-1]["more_body"]:
                break
        await respond(send)

    call = await Leaver(cancelling(app, Database(sqlite.url)), *parts).until(lambda: True)
    await until(lambda: call.read >= most)
    await asyncio.sleep(0.05)
    read = call.read
    go.set()
    assert call.task is not None
    await call.task

    assert (read, call.status) == (most, 200)
    assert received == parts


async def test_a_body_that_waits_for_a_100_continue_is_not_asked_for(sqlite: Backend) -> None:
    """The server would ask the client for it; once the application has done so, the client is watched."""
    go = asyncio.Event()
    events: list[str] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await go.wait()
        await receive()
        await waiting(events)(None, None, None)

    headers = [(b"Expect", b"100-continue")]
    call = await Leaver(cancelling(app, Database(sqlite.url)), headers=headers).until(lambda: True)
    await asyncio.sleep(2 * disconnect.WATCH_AFTER)
    assert call.reads == 0
    go.set()
    await until(lambda: bool(events))
    await call.end()

    assert (events, call.raised) == (["waits", "cancelled"], None)


@pytest.mark.parametrize("pause", [0.0, 2 * disconnect.WATCH_AFTER])
async def test_a_cancelled_receive_loses_no_message(sqlite: Backend, pause: float) -> None:
    """Frameworks ask whether the client is still there by a call that they cancel at once."""
    received: list[Message] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        for wait in (pause, 0.0, 0.0):
            await asyncio.sleep(wait)
            with anyio.CancelScope() as scope:
                scope.cancel()
                received.append(await receive())
        try:
            received.append(await receive())
            await asyncio.Event().wait()
        finally:
            received.append(await receive())

    call = await Leaver(cancelling(app, Database(sqlite.url))).until(lambda: True)
    await asyncio.sleep(0.05 + pause)
    await call.end()

    assert received in ([NOTHING, DISCONNECT], [NOTHING, DISCONNECT, DISCONNECT])


async def test_an_application_that_waits_for_the_message_may_end_by_itself(
    sqlite: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not cancelled; so Quart and Django cancel their handlers as they do without us."""
    received: list[Message] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        received.extend([await receive(), await receive()])
        await asyncio.sleep(0)

    caplog.set_level(logging.INFO)
    call = await Leaver(cancelling(app, Database(sqlite.url))).until(lambda: len(received) == 0)
    await asyncio.sleep(2 * disconnect.WATCH_AFTER)
    await call.end()

    assert (received, call.messages, call.raised) == ([NOTHING, DISCONNECT], [], None)
    assert told(caplog) == []


@pytest.mark.parametrize("pause", [0.0, 2 * disconnect.WATCH_AFTER])
async def test_one_that_only_hears_of_it_is_cancelled(sqlite: Backend, pause: float) -> None:
    """A task of its own receives, and nothing follows from that."""
    received: list[Message] = []
    events: list[str] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        async def hear() -> None:
            while not received or received[-1] != DISCONNECT:
                received.append(await receive())

        hearing = asyncio.create_task(hear())
        await waiting(events)(None, None, None)
        await hearing

    call = await Leaver(cancelling(app, Database(sqlite.url))).until(lambda: bool(events))
    await asyncio.sleep(pause)
    await call.end()
    await until(lambda: len(received) == 2)

    assert (events, received, call.raised) == (["waits", "cancelled"], [NOTHING, DISCONNECT], None)


class SlowCommit:
    """A COMMIT that waits for the test, after the client has gone."""

    def __init__(self, database: Database, kind: str) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        event.listen(engine_of(database, kind), "commit", self._wait)

    def _wait(self, connection: Any) -> None:
        self.begun.set()
        if connection.dialect.is_async:
            from sqlalchemy.util import await_only

            await_only(to_thread.run_sync(self.go_on.wait, 10))
        else:
            assert self.go_on.wait(10)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_commit_that_has_begun_goes_on(
    backend: Backend, database: Database, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its outcome decides, and the response starts."""
    commit = SlowCommit(database, kind)

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await insert(database, kind, name="kept")
        await asyncio.sleep(2 * disconnect.WATCH_AFTER)
        await respond(send, 201)
        assert [await receive(), await receive()] == [NOTHING, DISCONNECT]

    caplog.set_level(logging.INFO)
    call = await Leaver(cancelling(app, database)).until(commit.begun.is_set)
    call.leave()
    await asyncio.sleep(0.1)
    commit.go_on.set()
    await call.end()

    assert (call.status, call.raised, told(caplog)) == (201, None, [])
    assert backend.names() == ["kept"]


def is_closing(*_: Any) -> Any:
    """Fail as a driver whose connection is being closed."""
    raise OSError("the connection is closed")


def no_thread(_request: Any) -> Any:
    """Start no thread."""
    raise threads.NoThreadError("can't start new thread")


@on_one_postgresql
@pytest.mark.parametrize(
    ("name", "instead", "level", "reason"),
    [
        ("interruption", is_closing, "DEBUG", "its server is not asked to end its statement: OSError("),
        ("interruption", lambda *_: is_closing, "WARNING", "its server was not asked to end its statement: OSError("),
        ("submit", no_thread, "WARNING", "no thread can ask the server to end its statement: can't start new thread"),
    ],
    ids=["the driver refuses", "the request fails", "no thread starts"],
)
async def test_a_server_that_cannot_be_asked_has_its_connection_cut(
    backend: Backend,
    database: Database,
    name: str,
    instead: Any,
    level: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log says why it was not asked; the thread gets an error, and the request ends long before its statement."""
    if name == "submit":
        mine = SimpleNamespace(submit=instead, future_of=threads.future_of, NoThreadError=threads.NoThreadError)
        monkeypatch.setattr(calls, "threads", mine)
    else:
        monkeypatch.setattr(calls, name, instead)
    monkeypatch.setattr(disconnect, "CUT_AFTER", 0.3)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await execute(database, "sync", sleeps(backend))
        await respond(send, 201)

    caplog.set_level(logging.DEBUG, "asgi_sqla")
    call = await Leaver(cancelling(app, database)).until(lambda: backend.asleep() == 1)
    await call.end()

    assert (call.messages, call.raised) == ([], None)
    logged = [(one.levelname, one.getMessage()) for one in caplog.records if one.name == "asgi_sqla"]
    assert any(one == level and reason in message for one, message in logged), logged
    assert any(one == "ERROR" and message.endswith("so its connection is cut") for one, message in logged), logged
    backend.terminate()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_commit_of_the_application_goes_on_too(
    backend: Backend, database: Database, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is cancelled after that, and the log says what was committed."""
    commit, events = SlowCommit(database, kind), []

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        await insert(database, kind, name="kept")
        await asyncio.sleep(2 * disconnect.WATCH_AFTER)
        if kind == "sync":
            await to_thread.run_sync(lambda: database.session.commit())
        else:
            await database.async_session.commit()
        events.append("committed")
        await insert(database, kind, name="lost")
        await waiting(events)(None, None, None)

    caplog.set_level(logging.INFO)
    call = await Leaver(cancelling(app, database)).until(commit.begun.is_set)
    call.leave()
    await asyncio.sleep(0.1)
    assert told(caplog) == []
    commit.go_on.set()
    await call.end()

    assert (call.messages, call.raised) == ([], None)
    assert events[0] == "committed"
    assert backend.names() == ["kept"]
    assert ["has gone" in one or "committed by the application" in one for one in told(caplog)] == [True, True]


@on_one
async def test_a_response_that_has_started_is_not_cancelled(backend: Backend, database: Database) -> None:
    """The application hears that the client has gone, and its work counts as ever."""
    started = asyncio.Event()

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "async", name="before")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        started.set()
        while (await receive()) != DISCONNECT:
            pass
        await asyncio.sleep(2 * disconnect.TOLD)
        await insert(database, "async", name="after")
        await send({"type": "http.response.body", "body": b"whole"})

    call = await Leaver(cancelling(app, database)).until(started.is_set)
    await call.end()

    assert (call.status, call.body, call.raised) == (200, b"whole", None)
    assert backend.names() == ["after", "before"]


@on_one
async def test_a_handler_that_goes_on_cannot_commit(backend: Backend, database: Database) -> None:
    """It caught its cancellation; its response is refused, and its work is rolled back."""
    events: list[str] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await insert(database, "async", name="lost")
        try:
            await waiting(events)(None, None, None)
        except asyncio.CancelledError:
            await insert(database, "async", name="lost too")
            await respond(send, 201)

    call = await Leaver(cancelling(app, database)).until(lambda: bool(events))
    await call.end()

    assert (call.messages, call.raised, backend.names()) == ([], None, [])


async def test_a_cancellation_by_somebody_else_is_let_through(sqlite: Backend) -> None:
    """A server that shuts down cancels the same task; that one is not ours to end."""
    events: list[str] = []
    middleware = cancelling(waiting(events), Database(sqlite.url))

    async def both(scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.05, task.cancel)
        try:
            await middleware(scope, receive, send)
        finally:
            events.append(str(task.cancelling()))

    first = await Leaver(both).until(lambda: bool(events))
    await asyncio.wait([first.task] if first.task else [])
    assert (events, type(first.raised)) == (["waits", "cancelled", "1"], asyncio.CancelledError)

    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        try:
            await waiting(events)(scope, receive, send)
        finally:
            asyncio.current_task().cancel()  # type: ignore[union-attr]  # there is one
            await asyncio.sleep(1)

    events.clear()
    second = await Leaver(cancelling(stubborn, Database(sqlite.url))).until(lambda: bool(events))
    await second.end()
    assert (events, type(second.raised)) == (["waits", "cancelled"], asyncio.CancelledError)


def serving(middleware: Any, seen: list[int]) -> App:
    """Return a server that notes, after each request, how many cancellations its task still has to take."""

    async def server(scope: Any, receive: Any, send: Any) -> None:
        await middleware(scope, receive, send)
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0.01)
        seen.append(task.cancelling())

    return server


async def test_after_our_cancellation_the_task_is_as_before(sqlite: Backend) -> None:
    """A server may serve the next request of the connection in the same task."""
    events: list[str] = []
    seen: list[int] = []
    middleware = cancelling(waiting(events), Database(sqlite.url))

    call = await Leaver(serving(middleware, seen)).until(lambda: bool(events))
    await call.end()

    assert (seen, call.raised) == ([0], None)


async def test_what_a_cancelled_handler_raises_is_logged(sqlite: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """It is not raised to the server, which would log it as an error of a request that nobody waits for."""
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await waiting(events)(scope, receive, send)
        except asyncio.CancelledError:
            raise BrokenError from None

    caplog.set_level(logging.INFO)
    call = await Leaver(cancelling(app, Database(sqlite.url))).until(lambda: bool(events))
    await call.end()

    assert (call.raised, told(caplog)) == (
        None,
        [f"GET /: {GONE}, so it is cancelled", "GET /: raised when its client had gone"],
    )


@on_postgresql
async def test_a_retry_reads_the_body_again_and_ends_with_the_client(backend: Backend, database: Database) -> None:
    """What was read ahead for an attempt is kept for the next; after the client has gone there is none."""
    bodies: list[bytes] = []
    parts = [{"type": "http.request", "body": part, "more_body": part == b"a"} for part in (b"a", b"b")]

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await asyncio.sleep(2 * disconnect.WATCH_AFTER)
        bodies.append((await receive())["body"] + (await receive())["body"])
        await insert(database, "async", name="lost")
        if len(bodies) == 1:
            await execute(database, "async", "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
        await execute(database, "async", sleeps(backend))

    call = await Leaver(cancelling(app, database, retries=5), *parts).until(lambda: len(bodies) == 2)
    await call.end()

    assert (bodies, call.messages, call.raised, backend.names()) == ([b"ab", b"ab"], [], None, [])


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
async def test_the_statement_of_a_scope_inside_is_ended(backend: Backend, database: Database, kind: str) -> None:
    """The scope has a session of its own, in the handler's thread or task."""
    begun = asyncio.Event()

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        begun.set()
        if kind == "sync":
            await to_thread.run_sync(in_thread)
        else:
            async with session_scope(database) as session, anyio.create_task_group() as tasks:
                await session.execute(text("SELECT 1"))
                tasks.start_soon(session.execute, text(sleeps(backend)))  # cancelled again and again, by anyio

    def in_thread() -> None:
        with session_scope(database) as session:
            session.execute(text(sleeps(backend)))

    call = await Leaver(cancelling(app, database)).until(begun.is_set)
    await until(lambda: backend.asleep() == 1)
    await call.end()
    await until(lambda: backend.asleep() == 0)

    assert (call.messages, call.raised) == ([], None)


@on_postgresql
async def test_a_thread_that_tries_again_is_interrupted_again(backend: Backend, database: Database) -> None:
    """It has caught the error of its first statement; it ends when it does not try any more."""
    errors: list[str] = []

    def in_thread() -> None:
        for _ in range(3):
            try:
                database.session.execute(text(sleeps(backend)))
            except Exception as exc:
                errors.append(type(exc).__name__)
                database.session.rollback()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await to_thread.run_sync(in_thread)
        await respond(send, 200)

    call = await Leaver(cancelling(app, database)).until(lambda: backend.asleep() == 1)
    await call.end()

    assert (len(errors), call.messages, call.raised) == (3, [], None)


@on_one
async def test_a_thread_between_two_statements_is_left_behind(backend: Backend, database: Database) -> None:
    """Python cannot end it; its connection is back in the pool at once, and its next statement is refused."""
    go, ended = threading.Event(), []

    def in_thread() -> None:
        session = database.session
        session.add(Item(name="lost"))
        session.flush()
        ended.append("waits")
        assert go.wait(10)
        try:
            session.execute(text("SELECT 1"))
        except UnitOfWorkEndedError:
            ended.append("refused")

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(None, anyio_context(in_thread))

    call = await Leaver(cancelling(app, database)).until(lambda: bool(ended))
    await call.end()
    pool: Any = database.engine.pool
    assert (call.messages, call.raised, pool.checkedout()) == ([], None, 0)
    go.set()
    await until(lambda: len(ended) == 2)

    assert (ended, backend.names()) == (["waits", "refused"], [])


def anyio_context(function: Callable[[], None]) -> Callable[[], None]:
    """Return ``function`` in a copy of this context, as ``to_thread`` runs it."""
    from contextvars import copy_context

    context = copy_context()
    return lambda: context.run(function)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_was_interrupted_is_not_used_again(
    backend: Backend, database: Database, kind: str
) -> None:
    """A request to end a statement may arrive late, and must not end one of the next user."""
    pool: Any = engine_of(database, kind).pool
    seen: list[Any] = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        session = database.session if kind == "sync" else database.async_session.sync_session
        await execute(database, kind, "SELECT 1")
        seen.append(session.connection().connection.driver_connection if kind == "sync" else await raw(database))
        if scope["path"] == "/sleeps":
            await execute(database, kind, sleeps(backend))
        await respond(send)

    call = await Leaver(cancelling(app, database), path="/sleeps").until(lambda: bool(seen))
    await asyncio.sleep(2 * disconnect.WATCH_AFTER)
    await call.end()
    assert pool.checkedout() == 0
    again = await Call(cancelling(app, database))()

    assert again.status == 200
    assert seen[0] is not seen[1]


async def raw(database: Database) -> Any:
    """Return the driver's connection of this unit's ``AsyncSession``."""
    return (await (await database.async_session.connection()).get_raw_connection()).driver_connection


def test_under_trio_nothing_is_watched(sqlite: Backend) -> None:
    """There is no task to cancel; the application gets the server's own functions."""
    received: list[Any] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        received.append(receive)
        await respond(send, 204)

    async def main() -> list[Message]:
        sent: list[Message] = []

        async def receive() -> Message:
            return NOTHING

        async def send(message: Message) -> None:
            sent.append(message)

        await cancelling(app, Database(sqlite.url))(http_scope(), receive, send)
        assert received == [receive]
        return sent

    assert [one["type"] for one in trio.run(main)] == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_other_conversations_are_untouched(sqlite: Backend, kind: str) -> None:
    """A websocket tells its application itself, and a lifespan has no client."""
    seen: list[Message] = []
    messages: list[Message] = [{"type": "websocket.disconnect", "code": 1001}, {"type": "lifespan.startup"}]

    async def receive() -> Message:
        return messages[kind == "lifespan"]

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await asyncio.sleep(2 * disconnect.WATCH_AFTER)
        seen.append(await receive())
        if kind == "lifespan":
            await _send({"type": "lifespan.startup.failed", "message": ""})

    async def send(_message: Message) -> None:
        pass

    scope = {"type": kind, "path": "/", "asgi": {"version": "3.0", "spec_version": "2.3"}}
    await cancelling(app, Database(sqlite.url))(scope, receive, send)

    assert [one["type"] for one in seen] == [messages[kind == "lifespan"]["type"]]


async def test_a_server_that_repeats_its_messages_is_not_asked_for_ever(sqlite: Backend) -> None:
    """In-process clients give the same empty body again and again; they never leave, and the application reads on."""
    reads: list[int] = []

    async def receive() -> Message:
        reads.append(1)
        return NOTHING

    received: list[Message] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3 * disconnect.WATCH_AFTER)
        assert len(reads) == 2
        received.extend([await receive(), await receive(), await receive()])
        await respond(send)

    call = Call(cancelling(app, Database(sqlite.url)))
    call.receive = receive  # type: ignore[method-assign]  # a client of its own
    await call()

    assert (call.status, len(reads), received) == (200, 3, [NOTHING] * 3)


async def test_a_server_that_raises_tells_the_application(sqlite: Backend) -> None:
    """Not the reader ahead."""
    raised: list[BaseException] = []

    async def receive() -> Message:
        raise BrokenError

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3 * disconnect.WATCH_AFTER)
        try:
            await receive()
        except BrokenError as exc:
            raised.append(exc)
        await respond(send)

    call = Call(cancelling(app, Database(sqlite.url)))
    call.receive = receive  # type: ignore[method-assign]  # a client of its own
    await call()

    assert (call.status, len(raised)) == (200, 1)


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_unit_that_only_reads_is_interrupted_too(backend: Backend, database: Database, kind: str) -> None:
    """Its statements run in autocommit."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await execute(database, kind, sleeps(backend))
        await respond(send)

    middleware = cancelling(app, database, read_only={"GET"})
    call = await Leaver(middleware).until(lambda: backend.asleep() == 1)
    await call.end()
    await until(lambda: backend.asleep() == 0)

    assert (call.messages, call.raised) == ([], None)


@pytest.mark.parametrize("backend", POSTGRESQL[:1], indirect=True)
async def test_a_server_that_does_not_end_the_statement_is_cut(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The network is gone, so that the thread would wait for ever."""
    monkeypatch.setattr(disconnect, "CUT_AFTER", 0.5)
    with dark(backend) as (proxy, url):
        database = Database(url)

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            await execute(database, "sync", sleeps(backend))
            await respond(send)

        call = await Leaver(cancelling(app, database)).until(lambda: backend.asleep() == 1)
        proxy.go_dark()
        await call.end()
        pool: Any = database.engine.pool
        assert (call.messages, call.raised, pool.checkedout()) == ([], None, 0)
        assert [one for one in told(caplog) if one.endswith("so its connection is cut")] != []
        database.dispose()
    backend.terminate()


async def test_a_task_that_outlives_the_application_asks_the_server(sqlite: Backend) -> None:
    """As it would without us; what was read ahead it gets first."""
    tasks: list[asyncio.Task[Message]] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(2 * disconnect.WATCH_AFTER)
        tasks.append(asyncio.create_task(receive()))
        tasks.append(asyncio.create_task(receive()))
        await asyncio.sleep(0)
        await respond(send)

    call = Leaver(cancelling(app, Database(sqlite.url)))
    await call()
    call.leave()
    async with asyncio.timeout(5):
        assert [await task for task in tasks] == [NOTHING, DISCONNECT]


async def test_a_task_group_leaves_the_task_as_before(sqlite: Backend) -> None:
    """Anyio cancels the tasks of a group again and again, and takes that back."""
    events: list[str] = []
    seen: list[int] = []

    async def grouped(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(waiting(events), scope, receive, send)

    middleware = cancelling(grouped, Database(sqlite.url))

    call = await Leaver(serving(middleware, seen)).until(lambda: bool(events))
    await call.end()

    assert (events, seen, call.raised) == (["waits", "cancelled"], [0], None)
