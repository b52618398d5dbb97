"""Answers in parts: nobody is told an event before the database has it, and an idle stream holds nothing."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import warnings
from collections import Counter
from contextlib import suppress
from typing import Any

import anyio
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only
from support.asgi import Call
from support.databases import NO_OWNER, Backend, Item, connections_out
from support.failing import BrokenError, engine_of, execute, insert, until
from support.marks import KINDS, on_deferring, on_postgresql

from asgi_sqla import BlockingSessionWarning, Database, SessionInUseError, SQLAlchemyMiddleware, current_unit
from asgi_sqla.unit import parts

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


async def start(send: Any, headers: Any = EVENTS, **more: Any) -> None:
    """Start a response of unknown length."""
    await send({"type": "http.response.start", "status": 200, "headers": headers, **more})


async def part(send: Any, body: bytes, more: bool = True) -> None:
    """Send a part of a body."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


class Watching(Call):
    """A request whose client looks at the database, and at the connections that are out, at each message."""

    def __init__(self, app: Any, backend: Backend, database: Database) -> None:
        super().__init__(app)
        self.seen: list[tuple[bytes, list[str], int]] = []
        self._backend = backend
        self._database = database

    async def send(self, message: Any) -> None:
        """Keep the message, and what its reader finds in the database."""
        if message["type"] != "http.response.start":
            told = message.get("body", message["type"].encode())
            self.seen.append((told, self._backend.names(), connections_out(self._database)))
        await super().send(message)


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_each_event_is_committed_before_its_reader_has_it(
    database: Database, backend: Backend, kind: str, used_before: bool
) -> None:
    """Its connection is back in the pool by then, and objects of earlier events stay usable."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if used_before:
            await insert(database, kind, name="0")
        await start(send)
        for number in "123":
            await insert(database, kind, name=number)
            await part(send, number.encode(), more=number != "3")

    call = Watching(SQLAlchemyMiddleware(app, database), backend, database)
    await call()

    first = ["0"] if used_before else []
    assert call.raised is None
    assert call.seen == [(b"1", [*first, "1"], 0), (b"2", [*first, "1", "2"], 0), (b"3", [*first, "1", "2", "3"], 0)]


@pytest.mark.parametrize("kind", KINDS)
async def test_objects_of_earlier_events_stay_usable(database: Database, backend: Backend, kind: str) -> None:
    """The session is the same one for the whole stream, and a changed object is written again."""
    used: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        session: Any = database.async_session if kind == "async" else database.session
        item = Item(name="first")
        session.add(item)
        await part(send, b"1")
        item.name = f"{item.name}, changed"
        used.extend((session, database.async_session if kind == "async" else database.session))
        await part(send, b"2", more=False)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.body, backend.names()) == (None, b"12", ["first, changed"])
    assert used[0] is used[1]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_part_of_a_read_only_unit_holds_nothing(database: Database, backend: Backend, kind: str) -> None:
    """Neither in autocommit nor with a savepoint, which needs a transaction, is a connection out at a part."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        for number in "12":
            await execute(database, kind, "SELECT count(*) FROM item")
            await part(send, number.encode())
        if kind == "async":
            async with database.async_session.begin_nested():
                await execute(database, kind, "SELECT count(*) FROM item")
        await part(send, b"3", more=False)

    call = Watching(SQLAlchemyMiddleware(app, database, read_only={"GET"}), backend, database)
    await call()

    assert (call.raised, call.seen) == (None, [(b"1", [], 0), (b"2", [], 0), (b"3", [], 0)])


@pytest.mark.parametrize("last", ["part", "last part", "trailers"])
@pytest.mark.parametrize("kind", KINDS)
@on_deferring
async def test_a_failed_commit_ends_the_stream_without_its_part(
    database: Database, backend: Backend, kind: str, last: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier events stay, the failed one is neither told nor kept, and the server gets the error."""
    after: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send, trailers=last == "trailers")
        await insert(database, kind, name="good")
        await part(send, b"good", more=last != "trailers")
        await insert(database, kind, name="bad", owner_id=NO_OWNER)
        if last == "trailers":
            await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"bad")]})
        else:
            await part(send, b"bad", more=last == "part")
        after.append("sent")

    call = await Call(SQLAlchemyMiddleware(app, database))()
    statuses = [await _one(database, name) for name in ("next", "and next")]

    assert (call.body, len(call.messages), type(call.raised), after) == (b"good", 2, backend.commit_error, [])
    told = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert [": its stream ends without the next part" in one for one in told] == [True]
    assert (statuses, backend.names()) == ([200, 200], ["and next", "good", "next"])


async def _one(database: Database, name: str) -> int:
    """Make a request that writes, and return its status."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "async", name=name)
        await start(send, [])
        await part(send, b"", more=False)

    return (await Call(SQLAlchemyMiddleware(app, database))()).status


@on_deferring
async def test_an_application_that_swallows_the_failure_can_send_nothing_more(
    database: Database, backend: Backend
) -> None:
    """The failed event is never told, whatever the application makes of it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await insert(database, "async", name="bad", owner_id=NO_OWNER)
        for body in (b"bad", b"sorry", b"sorry again"):
            with suppress(BaseException):
                await part(send, body)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.body, type(call.raised), backend.names()) == (b"", backend.commit_error, [])


@on_postgresql
async def test_a_connection_that_is_killed_ends_the_stream(database: Database, backend: Backend) -> None:
    """The next stream gets another connection."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await insert(database, "async", name="kept")
        await part(send, b"1")
        await insert(database, "async", name="lost")
        pid = await execute(database, "async", "SELECT pg_backend_pid()")
        with backend.witness.connect() as connection:
            assert connection.scalar(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid}) is True
        await part(send, b"2")

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.body, isinstance(call.raised, DBAPIError), backend.names()) == (b"1", True, ["kept"])
    assert await _one(database, "next") == 200
    assert connections_out(database) == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_callbacks_run_before_the_part_that_tells_of_their_work(
    database: Database, backend: Backend, kind: str
) -> None:
    """Each is called once, also one that was registered without a transaction."""
    order: list[bytes | str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        for number in "12":
            await insert(database, kind, name=number)
            current_unit().on_commit(order.append, f"committed {number}")
            current_unit().on_rollback(order.append, f"rolled back {number}")
            await part(send, number.encode())
        current_unit().on_commit(order.append, "idle")
        await part(send, b"3", more=False)

    class Client(Call):
        async def send(self, message: Any) -> None:
            order.append(message.get("body", b"start"))

    await Client(SQLAlchemyMiddleware(app, database))()

    assert order == [b"start", "committed 1", b"1", "committed 2", b"2", "idle", b"3"]


@on_postgresql
async def test_a_statement_of_another_task_is_waited_for(database: Database, backend: Backend) -> None:
    """It is neither cut nor committed in its middle, and the next one of that task waits for the commit."""
    answers: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def beside() -> None:
            answers.append(await execute(database, "async", "SELECT 1 FROM pg_sleep(0.1)"))
            for number in range(20):  # without a pause between two of them
                answers.append(await execute(database, "async", f"SELECT {number}"))  # noqa: PERF401  # seen meanwhile

        await start(send)
        await insert(database, "async", name="a")
        async with asyncio.TaskGroup() as group:
            task = group.create_task(beside())
            await until(lambda: _is_in_use(database.async_session))
            await part(send, b"1")
            answers.append(f"sent, {backend.names()}")
            await task
        await part(send, b"2", more=False)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.body) == (None, b"12")
    assert answers[:2] == [1, "sent, ['a']"] or answers[:3] == [1, 0, "sent, ['a']"]
    assert len(answers) == 22


def _is_in_use(session: Any) -> bool:
    return bool(session.sync_session.guard_lock.locked())


@on_postgresql
async def test_a_statement_that_lasts_too_long_ends_the_stream(
    database: Database, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to write, and the statement itself is not cut."""
    monkeypatch.setattr(parts, "IN_USE_LIMIT", 0.02)
    tasks: list[asyncio.Task[Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await insert(database, "async", name="a")
        tasks.append(asyncio.create_task(execute(database, "async", "SELECT 1 FROM pg_sleep(0.3)")))
        await until(lambda: _is_in_use(database.async_session))
        await part(send, b"1")

    call = await Call(SQLAlchemyMiddleware(app, database))()
    (slept,) = await asyncio.gather(*tasks)
    await until(lambda: connections_out(database) == 0)

    assert (call.body, type(call.raised), slept, backend.names()) == (b"", SessionInUseError, 1, [])
    assert str(call.raised).endswith(
        "Let that task open its own unit of work: async with session_scope() as session: ..."
    )


async def test_a_ping_from_another_task_commits_no_half_of_an_event(database: Database, backend: Backend) -> None:
    """A comment tells its reader nothing; one that the writer sends itself releases the connection as any part does."""
    seen: list[tuple[str, list[str]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await insert(database, "async", name="first")
        await part(send, b"data: first\r\n\r\n")
        await insert(database, "async", name="half")
        await asyncio.create_task(part(send, b": ping - 12:00\r\n\r\n"))
        seen.append(("pinged", backend.names()))
        await insert(database, "async", name="whole")
        await part(send, b": mine\n\n")
        seen.append(("pinged myself", backend.names()))
        await part(send, b"", more=False)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert call.raised is None
    assert seen == [("pinged", ["first"]), ("pinged myself", ["first", "half", "whole"])]


NDJSON = [(b"content-type", b"application/x-ndjson")]


@pytest.mark.parametrize(
    ("commit_parts", "headers", "in_parts"),
    [
        (None, EVENTS, True),
        (None, [(b"Content-Type", b"Text/Event-Stream")], True),
        (None, ((b"content-type", b"text/event-stream-no"),), False),
        (None, NDJSON, False),
        (None, [], False),
        ((), EVENTS, False),
        (lambda scope, message: scope["path"] == "/" and message["status"] == 200, NDJSON, True),
        (lambda scope, message: False, EVENTS, False),
    ],
)
@pytest.mark.parametrize("used_before", [False, True])
async def test_commit_parts_chooses_the_responses(
    sqlite: Backend, commit_parts: Any, headers: Any, in_parts: bool, used_before: bool
) -> None:
    """Other streams commit at their end, as before."""
    database = Database(sqlite.url)
    seen: list[list[str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if used_before:
            await insert(database, "async", name="0")
        await start(send, headers)
        await insert(database, "async", name="1")
        await part(send, b"1")
        seen.append(sqlite.names())
        await part(send, b"", more=False)

    options = {} if commit_parts is None else {"commit_parts": commit_parts}
    call = await Call(SQLAlchemyMiddleware(app, database, **options))()
    await database.async_dispose()

    first = ["0"] if used_before else []
    assert (call.raised, seen) == (None, [[*first, "1"] if in_parts else first])
    assert sqlite.names() == [*first, "1"]


@pytest.mark.parametrize("used", [False, True])
async def test_a_response_that_is_no_event_stream_calls_nothing_more(sqlite: Backend, used: bool) -> None:
    """It enters the same functions of ours as if there were no answers in parts, however many parts it has."""
    database = Database(sqlite.url)
    names = iter("abcd")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if used:
            await insert(database, "async", name=next(names))
        await start(send, [(b"content-type", b"application/json")])
        for _ in range(3):
            await part(send, b"[]")
        await part(send, b"", more=False)

    async def entered(**options: Any) -> Counter[str]:
        functions: Counter[str] = Counter()

        def profile(frame: Any, what: str, _argument: Any) -> None:
            if what == "call" and "asgi_sqla" in frame.f_globals.get("__name__", ""):
                functions[frame.f_code.co_qualname] += 1

        call = Call(SQLAlchemyMiddleware(app, database, **options))
        await call()
        call = Call(SQLAlchemyMiddleware(app, database, **options))
        sys.setprofile(profile)
        try:
            await call()
        finally:
            sys.setprofile(None)
        return functions

    without, ours = await entered(commit_parts=()), await entered()
    await database.async_dispose()

    assert ours == without
    assert (ours["Arrival.send"], ours["Request.send"]) == (5, 5 if used else 0)


@pytest.mark.parametrize("used_before", [False, True])
async def test_a_broken_commit_parts_is_an_error_of_the_application(sqlite: Backend, used_before: bool) -> None:
    """Before the start it is answered, and nothing is kept; later it ends the response."""
    database = Database(sqlite.url)

    def broken(scope: Any, message: Any) -> bool:
        raise BrokenError

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if used_before:
            await insert(database, "async", name="0")
        await start(send)
        await insert(database, "async", name="1")
        await part(send, b"1")

    call = await Call(SQLAlchemyMiddleware(app, database, commit_parts=broken))()
    await database.async_dispose()

    assert (call.starts, type(call.raised), sqlite.names()) == ([500 if used_before else 200], BrokenError, [])


@pytest.mark.parametrize("where", ["before the start", "in the body"])
async def test_rollback_only_counts_for_the_response_or_for_the_next_part(
    database: Database, backend: Backend, where: str
) -> None:
    """A dry run keeps nothing; an event that says no keeps nothing of its own."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if where == "before the start":
            current_unit().rollback_only()
        await start(send)
        for number in "123":
            await insert(database, "async", name=number)
            if where == "in the body" and number == "2":
                current_unit().rollback_only()
            await part(send, number.encode(), more=number != "3")

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.body) == (None, b"123")
    assert backend.names() == ([] if where == "before the start" else ["1", "3"])


@pytest.mark.parametrize("how", ["raises", "returns"])
async def test_what_no_part_has_told_is_rolled_back(
    database: Database, backend: Backend, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream that ends in its middle keeps what was told and nothing else."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await insert(database, "async", name="told")
        await part(send, b"1")
        await insert(database, "async", name="not told")
        if how == "raises":
            raise BrokenError

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (type(call.raised), backend.names()) == (BrokenError if how == "raises" else type(None), ["told"])
    assert ("the work after its last part is rolled back" in caplog.text) is (how == "returns")


async def test_work_after_the_last_part_commits_when_the_application_returns(
    database: Database, backend: Backend
) -> None:
    """A background task after an event stream is like one after any response."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await insert(database, "async", name="1")
        await part(send, b"1", more=False)
        await insert(database, "async", name="in the background")

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, backend.names()) == (None, ["1", "in the background"])


@pytest.mark.parametrize("how", ["task", "anyio"])
@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_during_the_commit_of_a_part(
    database: Database, backend: Backend, kind: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The COMMIT is waited for; the part is not sent, and the log says that its work is committed."""
    committing, go_on = threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    scope = anyio.CancelScope()

    def stop(connection: Any) -> None:
        committing.set()
        if connection.dialect.is_async:
            await_only(loop.run_in_executor(None, go_on.wait, 10))
        else:
            go_on.wait(10)

    event.listen(engine_of(database, kind), "commit", stop)

    async def app(asgi: Any, receive: Any, send: Any) -> None:
        await start(send)
        await insert(database, kind, name="a")
        with scope:
            await part(send, b"1")
        raise BrokenError

    call = Call(SQLAlchemyMiddleware(app, database))
    task = asyncio.create_task(call())
    await until(committing.is_set)
    if how == "task":
        task.cancel()
    else:
        scope.cancel()
    await asyncio.sleep(0.01)
    go_on.set()
    await asyncio.wait((task,))

    assert (backend.names(), connections_out(database)) == (["a"], 0)
    if how == "task":
        assert (call.body, type(call.raised)) == (b"", asyncio.CancelledError)
        assert "cancelled during COMMIT, so a part was not sent although its work is committed" in caplog.text
    else:  # anyio repeats its cancellation at the next await
        assert type(call.raised) is BrokenError


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_result_that_is_read_in_parts_is_read_on(database: Database, backend: Backend, kind: str) -> None:
    """It keeps its connection until it has been read, and no longer."""
    out: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        numbers = text("SELECT generate_series(1, 30)")
        if kind == "async":
            async_rows = await database.async_session.stream(numbers, execution_options={"yield_per": 10})
            async for number in async_rows.scalars():
                await part(send, b"%d " % number)
        else:
            rows = database.session.execute(numbers, execution_options={"yield_per": 10}).scalars()
            for number in rows:
                await part(send, b"%d " % number)
        await part(send, b"read")
        out.append(connections_out(database))
        await part(send, b"", more=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BlockingSessionWarning)
        call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, out) == (None, [0])
    assert call.body == b"".join(b"%d " % number for number in range(1, 31)) + b"read"


@on_postgresql
async def test_a_retry_ends_with_the_start_of_the_stream(database: Database, backend: Backend) -> None:
    """Before it the request is retried, after it a transient error ends the stream."""
    attempts: list[int] = []
    fails = text("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempts.append(current_unit().attempt)
        await insert(database, "async", name=f"attempt {attempts[-1]}")
        if attempts[-1] == 1:
            await database.async_session.execute(fails)
        await start(send)
        await insert(database, "async", name="told")
        await part(send, b"1")
        await insert(database, "async", name="not told")
        await database.async_session.execute(fails)

    call = await Call(SQLAlchemyMiddleware(app, database, retries=3))()

    assert (call.starts, call.body, isinstance(call.raised, DBAPIError)) == ([200], b"1", True)
    assert (attempts, backend.names()) == ([1, 2], ["attempt 2", "told"])


@on_postgresql
async def test_both_sessions_of_a_unit_are_committed_before_a_part(database: Database, backend: Backend) -> None:
    """So are those of several databases, in the order of first use."""
    other = Database(backend.url)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        for number in "12":
            await insert(database, "async", name=f"{number} async")
            await insert(database, "sync", name=f"{number} sync")
            await insert(other, "async", name=f"{number} other")
            await part(send, number.encode())
        await part(send, b"", more=False)

    call = Watching(SQLAlchemyMiddleware(app, database), backend, database)
    await call()
    out = connections_out(other)
    await other.async_dispose()

    first, second = ([f"{number} {kind}" for kind in ("async", "other", "sync")] for number in "12")
    assert (call.raised, out) == (None, 0)
    assert call.seen == [(b"1", first, 0), (b"2", first + second, 0), (b"", first + second, 0)]


@on_postgresql
async def test_a_cancelled_wait_for_another_task_does_nothing(database: Database, backend: Backend) -> None:
    """A time limit around a part that waits leaves the stream as it was."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await insert(database, "async", name="a")
        task = asyncio.create_task(execute(database, "async", "SELECT 1 FROM pg_sleep(0.3)"))
        await until(lambda: _is_in_use(database.async_session))
        with anyio.move_on_after(0.05) as limit:
            await part(send, b"late")
        assert limit.cancelled_caught
        assert backend.names() == []
        await task
        await part(send, b"told", more=False)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.body, backend.names()) == (None, b"told", ["a"])
