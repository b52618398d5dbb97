"""Reports of units: what they count, what they say of the end, and who receives them."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool
from sqlalchemy.sql import literal
from support.asgi import Call, http_scope, respond
from support.databases import NO_OWNER, Backend, Item, backend_names
from support.failing import BrokenError, engine_of, execute, insert, lose_network
from support.observing import (
    Reports,
    do,
    execute_many,
    fail_in_savepoint,
    flush_one,
    insert_many_values,
    locked,
    read_stream,
    select_one,
    textual,
    use_savepoint,
)
from support.spoken import spoken

from asgi_sqla import Database, SQLAlchemyMiddleware, current_unit, on_commit, session_scope
from asgi_sqla.observe import (
    Report,
    failed_log,
    idle_in_transaction,
    repeated_statements,
    server_timing,
    slow_log,
)
from asgi_sqla.session.recording import LONGEST_TEXT, MOST_TEXTS, MOST_UNREAD
from asgi_sqla.unit import observation, parts
from asgi_sqla.unit.measured import MOST_REPEATED, report_of

KINDS = ["sync", "async"]
SERVERS = [name for name in backend_names() if name != "sqlite"]
WORKS = (select_one, flush_one, insert_many_values, use_savepoint, read_stream, fail_in_savepoint, textual)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
async def observed(backend: Backend, reports: Reports) -> AsyncIterator[Database]:
    """Return a database of which every report is kept."""
    database = Database(backend.url, observe=[reports])
    yield database
    await database.async_dispose()


def answering(database: Database, kind: str, *works: Any, status: int = 200) -> Any:
    """Return an application that does some work and answers ``status``."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await do(database, kind, *works)
        await respond(send, status)

    return SQLAlchemyMiddleware(app, database)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", SERVERS, indirect=True)
async def test_it_counts_what_the_wire_shows(backend: Backend, kind: str, reports: Reports) -> None:
    """BEGIN and COMMIT do not count, savepoints do; an executemany() counts once, and each INSERT of many rows."""
    with spoken(backend) as (wire, url):
        database = Database(url, observe=[reports])
        await Call(answering(database, kind, select_one))()  # SQLAlchemy asks a server who it is when it first connects
        for work in (*WORKS, execute_many):
            for _ in range(2):  # the first one prepares
                wire.clear()
                reports.clear()
                await Call(answering(database, kind, work, status=400))()
                many = 2 if work is execute_many else 0
                assert (work.__name__, reports.only.statements) == (work.__name__, len(wire.statements) - many)
        await database.async_dispose()


class OwnConnection(Connection):
    """A connection of a tool's or of the application's own class."""


def test_connections_of_another_class_keep_it_and_report_their_ends(sqlite: Backend, reports: Reports) -> None:
    """Their class is still one of the application's, and each transaction on a connection is reported."""
    engine = create_engine(sqlite.url)
    engine._connection_cls = OwnConnection
    database = Database(engine=engine, observe=[reports])

    for work in (flush_one, select_one):
        with session_scope(database) as session:
            work(session)
            assert isinstance(session.connection(), OwnConnection)

    assert [[end.operation for end in report.databases[0].ends] for report in reports] == [["COMMIT"], ["COMMIT"]]
    database.dispose()
    engine.dispose()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", SERVERS, indirect=True)
async def test_each_attempt_counts_what_the_wire_shows(backend: Backend, kind: str, reports: Reports) -> None:
    """Each attempt has its own statements, and the whole has all of them."""
    heard: list[int] = []
    with spoken(backend) as (wire, url):
        database = Database(url, observe=[reports])
        await Call(answering(database, kind, select_one))()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            heard.append(len(wire.statements))
            await do(database, kind, *[select_one, flush_one, use_savepoint][: current_unit().attempt])
            if current_unit().attempt < 3:
                raise locked()
            await respond(send, 400)

        wire.clear()
        reports.clear()
        await Call(SQLAlchemyMiddleware(app, database, retries=2))()
        heard.append(len(wire.statements))
        await database.async_dispose()

    report = reports.only
    attempts = [sum(one.statements for one in each.databases) for each in (*report.attempts, report)]
    assert attempts == [later - before for before, later in pairwise(heard)] == [1, 2, 5]
    assert report.statements == heard[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", SERVERS, indirect=True)
async def test_eight_databases_count_what_eight_wires_show(backend: Backend, kind: str, reports: Reports) -> None:
    """Each of them has a wire of its own, and another number of statements."""
    with ExitStack() as stack:
        wires, urls = zip(*[stack.enter_context(spoken(backend)) for _ in range(8)], strict=True)
        databases = [Database(url, observe=[reports]) for url in urls]

        async def app(scope: Any, receive: Any, send: Any) -> None:
            for number, database in enumerate(databases, 1):
                await do(database, kind, *[select_one, textual, use_savepoint, select_one] * 2, *[textual] * number)
            await respond(send, 400)

        for _ in range(2):  # the first one connects
            for wire in wires:
                wire.clear()
            reports.clear()
            await Call(SQLAlchemyMiddleware(app, databases))()
        for database in databases:
            await database.async_dispose()

    counted = [one.statements for one in reports.only.databases]
    assert counted == [len(wire.statements) for wire in wires] == [12 + number for number in range(1, 9)]


@pytest.mark.parametrize("kind", KINDS)
async def test_it_counts_as_sqlalchemy_does(observed: Database, backend: Backend, kind: str, reports: Reports) -> None:
    """All in one unit, and the same on SQLite; no statement is lost between the sessions of a unit."""
    sent: list[str] = []
    engine = observed.engine if kind == "sync" else observed.async_engine.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))

    await Call(answering(observed, kind, *WORKS, execute_many, select_one))()

    (found,) = reports.only.databases
    assert (found.statements, found.sync) == (len(sent), kind == "sync")
    assert (found.dialect, found.driver) == (engine.dialect.name, engine.dialect.driver)
    again = {one.text: one.count for one in found.repeated}
    assert again == {one: sent.count(one) for one in sent if sent.count(one) > 1}


async def test_rows_are_counted_where_the_driver_tells(observed: Database, backend: Backend, reports: Reports) -> None:
    """SQLite does not tell of a SELECT, and no driver of a stream."""
    async with session_scope(observed) as session:
        session.add_all([Item(name=name) for name in ("a", "b", "c")])
        await session.flush()
        await session.execute(text("UPDATE item SET owner_id = NULL"))
    written, *_ = reports.only.databases
    reports.clear()
    async with session_scope(observed) as session:
        assert len((await session.scalars(select(Item))).all()) == 3
    read, *_ = reports.only.databases
    reports.clear()
    async with session_scope(observed) as session:
        await session.run_sync(read_stream)

    assert (written.rows, read.rows, reports.only.databases[0].rows) == (
        6,
        None if backend.name == "sqlite" else 3,
        None,
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_eight_databases_are_told_apart(tmp_path: Path, kind: str, reports: Reports) -> None:
    """Each has its own numbers, in the order of first use, and there is one report."""
    databases = [Database(f"sqlite:///{tmp_path / str(number)}.db", observe=[reports]) for number in range(8)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for number, database in enumerate(databases, 1):
            await do(database, kind, *[lambda session: session.execute(text("SELECT 1"))] * number)
        await respond(send)

    await Call(SQLAlchemyMiddleware(app, databases))()

    assert [one.statements for one in reports.only.databases] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [Path(one.database).name for one in reports.only.databases] == [f"{number}.db" for number in range(8)]
    assert reports.only.statements == 36
    for database in databases:
        await database.async_dispose()


async def test_both_sessions_of_a_database_are_told_apart(observed: Database, reports: Reports) -> None:
    """They are two transactions on two connections."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await do(observed, "sync", select_one)
        await do(observed, "async", select_one, select_one)
        await respond(send)

    await Call(SQLAlchemyMiddleware(app, observed))()

    assert [(one.sync, one.statements) for one in reports.only.databases] == [(True, 1), (False, 2)]


class TestRetries:
    """A request or function that is retried has one report, with those of the attempts before."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("uses", [True, False])
    async def test_of_a_request(self, sqlite: Backend, reports: Reports, kind: str, uses: bool) -> None:
        """The last attempt belongs to it even if it uses no database."""
        observed = Database(sqlite.url, observe=[reports])

        async def app(scope: Any, receive: Any, send: Any) -> None:
            attempt = current_unit().attempt
            if attempt < 3 or uses:
                await do(observed, kind, *[select_one] * attempt)
            if attempt < 3:
                raise locked()
            await respond(send, 201)

        await Call(SQLAlchemyMiddleware(app, observed, retries=2))()

        report = reports.only
        assert [(one.attempt, one.statements, one.outcome, one.reason) for one in report.attempts] == [
            (1, 1, "rolled back", "OperationalError (contention)"),
            (2, 2, "rolled back", "OperationalError (contention)"),
        ]
        last = 3 if uses else 0
        assert (report.attempt, report.status, report.statements) == (3, 201, 3 + last)
        assert (sum(one.statements for one in report.databases), report.outcome) == (
            (last, "committed" if uses else "nothing")
        )
        assert report.seconds < sum(one.seconds for one in report.attempts) + 60
        await observed.async_dispose()

    @pytest.mark.parametrize("kind", KINDS)
    async def test_of_a_function(self, sqlite: Backend, reports: Reports, kind: str) -> None:
        """The name is that of the function, and the pause between attempts belongs to none."""
        observed = Database(sqlite.url, observe=[reports])

        @session_scope(observed, retries=2)
        def work() -> None:
            select_one(observed.session)
            if current_unit().attempt < 3:
                raise locked()

        @session_scope(observed, retries=2)
        async def async_work() -> None:
            await observed.async_session.run_sync(select_one)
            if current_unit().attempt < 3:
                raise locked()

        await (async_work() if kind == "async" else asyncio.to_thread(work))

        report = reports.only
        assert report.name.endswith("work")
        assert (report.kind, report.attempt, report.outcome, report.statements) == ("scope", 3, "committed", 3)
        assert [one.attempt for one in report.attempts] == [1, 2]
        await observed.async_dispose()

    async def test_that_were_of_no_use(self, sqlite: Backend, reports: Reports) -> None:
        """The report of the last attempt says why it failed."""
        observed = Database(sqlite.url, observe=[reports])

        @session_scope(observed, retries=1)
        async def work() -> None:
            await observed.async_session.run_sync(select_one)
            raise locked()

        with pytest.raises(OperationalError):
            await work()

        assert (reports.only.attempt, reports.only.outcome) == (2, "rolled back")
        assert len(reports.only.attempts) == 1
        await observed.async_dispose()


class TestTimes:
    """Seconds are measured where they are spent; the clock of a busy machine gives only bounds."""

    @pytest.mark.parametrize("kind", KINDS)
    async def test_idle_time(self, observed: Database, reports: Reports, kind: str) -> None:
        """The longest wait is between the two statements around it."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await do(observed, kind, select_one)
            await asyncio.sleep(0.15)
            await execute(observed, kind, "SELECT 2")
            await asyncio.sleep(0.05)
            await respond(send)

        await Call(SQLAlchemyMiddleware(app, observed))()

        (found,) = reports.only.databases
        assert found.longest_idle is not None
        seconds, before, after = found.longest_idle
        assert before.startswith("SELECT item.name")
        assert after == "SELECT 2"
        assert 0.14 < seconds < found.idle < found.held < reports.only.seconds
        assert found.idle >= 0.19
        assert found.ending >= 0

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("word", ["COMMIT", "ROLLBACK"])
    async def test_the_last_wait(self, observed: Database, reports: Reports, kind: str, word: str) -> None:
        """It ends with COMMIT or ROLLBACK."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await do(observed, kind, select_one)
            await asyncio.sleep(0.1)
            await respond(send, 200 if word == "COMMIT" else 500)

        await Call(SQLAlchemyMiddleware(app, observed))()

        (found,) = reports.only.databases
        assert found.longest_idle is not None
        assert found.longest_idle[2] == word

    @pytest.mark.parametrize("kind", KINDS)
    async def test_waiting_for_the_pool(self, sqlite: Backend, reports: Reports, kind: str) -> None:
        """It counts as waiting, and not as held; the pool connects only once."""
        options = {"pool_size": 1, "max_overflow": 0}
        observed = Database(sqlite.url, observe=[reports], engine_options=options)
        begun, release = asyncio.Event(), asyncio.Event()

        async def hold(scope: Any, receive: Any, send: Any) -> None:
            await do(observed, kind, select_one)
            begun.set()
            await release.wait()
            await respond(send)

        first = asyncio.create_task(Call(SQLAlchemyMiddleware(hold, observed))())
        await begun.wait()
        second = asyncio.create_task(Call(answering(observed, kind, select_one))())
        await asyncio.sleep(0.2)
        release.set()
        await asyncio.gather(first, second)

        (one,), (two,) = (report.databases for report in reports)
        assert (one.new_connection, two.new_connection) == (True, False)
        assert two.waiting > 0.1 > one.waiting - one.held
        await observed.async_dispose()

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_connection_that_never_came(self, sqlite: Backend, reports: Reports, kind: str) -> None:
        """The wait counts, though nothing was held."""
        options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}
        observed = Database(sqlite.url, observe=[reports], engine_options=options)
        with ExitStack() as stack:
            async with AsyncExitStack() as async_stack:
                if kind == "sync":
                    stack.enter_context(observed.engine.connect())
                else:
                    await async_stack.enter_async_context(observed.async_engine.connect())
                await Call(answering(observed, kind, select_one))()

        (found,) = reports.only.databases
        assert (found.statements, found.held, found.longest_idle) == (0, 0, None)
        assert found.waiting >= 0.09
        assert (reports.only.outcome, reports.only.reason) == ("rolled back", "TimeoutError (pool exhausted)")
        await observed.async_dispose()

    async def test_a_reader_of_a_stream_is_not_idle(self, observed: Database, reports: Reports) -> None:
        """The server sends rows meanwhile, which nothing reports."""
        async with session_scope(observed) as session:
            result = await session.stream(select(literal(1)), execution_options={"yield_per": 1})
            await asyncio.sleep(0.1)
            assert [row async for row in result] == [(1,)]

        (found,) = reports.only.databases
        assert found.idle < 0.1 <= found.held


class TestOutcomes:
    """A report says what became of the work, and why."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("status", [201, 422])
    async def test_by_the_status(self, observed: Database, reports: Reports, kind: str, status: int) -> None:
        """A status from 400 on rolls back."""
        await Call(answering(observed, kind, flush_one, status=status), http_scope("/orders", "POST"))()

        report = reports.only
        assert (report.name, report.kind, report.status, report.attempt) == ("POST /orders", "request", status, 1)
        assert (report.outcome, report.reason) == (
            ("committed", None) if status == 201 else ("rolled back", "answered 422")
        )

    @pytest.mark.parametrize("kind", KINDS)
    async def test_of_an_exception(self, observed: Database, reports: Reports, kind: str) -> None:
        """Its class is the reason, without what it says."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await do(observed, kind, flush_one)
            raise BrokenError("of alice@example.org")

        await Call(SQLAlchemyMiddleware(app, observed))()

        assert (reports.only.outcome, reports.only.reason) == ("rolled back", "BrokenError")
        assert (reports.only.status, "alice" in repr(reports)) == (None, False)

    @pytest.mark.parametrize("kind", KINDS)
    async def test_of_a_refused_commit(self, observed: Database, backend: Backend, reports: Reports, kind: str) -> None:
        """The client got 500, and the report says both."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await insert(observed, kind, name="a", owner_id=NO_OWNER)
            await respond(send, 201)

        await Call(SQLAlchemyMiddleware(app, observed))()

        report = reports.only
        kinds = "connection lost" if backend.is_mariadb else "conflict"
        assert report.outcome == ("in doubt" if backend.is_mariadb else "failed")
        assert report.reason == f"{backend.commit_error.__name__} ({kinds})"
        assert (report.status, backend.names()) == (500, [])

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("backend", [name for name in SERVERS if name in ("asyncpg", "psycopg")], indirect=True)
    async def test_in_doubt(self, observed: Database, backend: Backend, reports: Reports, kind: str) -> None:
        """The connection was lost during COMMIT."""
        event.listen(engine_of(observed, kind), "commit", lose_network)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await insert(observed, kind, name="a")
            await respond(send, 201)

        await Call(SQLAlchemyMiddleware(app, observed))()

        assert (reports.only.outcome, reports.only.status) == ("in doubt", 500)
        assert "connection lost" in str(reports.only.reason)

    async def test_of_a_rollback_by_the_application(self, observed: Database, reports: Reports) -> None:
        """It is no failure, and neither is a dry run."""
        async with session_scope(observed) as session:
            await session.run_sync(flush_one)
            await session.rollback()
        async with session_scope(observed) as session:
            current_unit().rollback_only()
            await session.run_sync(flush_one)

        assert [(one.outcome, one.reason) for one in reports] == [
            ("rolled back", "the application rolled back"),
            ("rolled back", "rollback_only()"),
        ]

    async def test_of_nothing(self, observed: Database, reports: Reports) -> None:
        """A session was requested, and not used; a request that does not request one has no report."""
        await Call(answering(observed, "async"))()
        await Call(SQLAlchemyMiddleware(lambda scope, receive, send: respond(send), observed))()

        assert (reports.only.outcome, reports.only.reason, reports.only.statements) == ("nothing", None, 0)

    async def test_of_a_caught_failure(self, observed: Database, reports: Reports) -> None:
        """A framework makes a 500 of an error of the database: the reason names both."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            with suppress(DBAPIError):
                await execute(observed, "async", "SELECT * FROM nothing")
            await respond(send, 500)

        await Call(SQLAlchemyMiddleware(app, observed))()

        assert reports.only.reason is not None
        assert reports.only.reason.startswith("answered 500 after ")
        assert reports.only.reason.endswith("Error")

    async def test_of_work_after_the_start(self, observed: Database, reports: Reports) -> None:
        """It ends when the application returns, and the report is of all of it."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await do(observed, "async", flush_one)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await do(observed, "async", select_one)
            await send({"type": "http.response.body", "body": b""})

        await Call(SQLAlchemyMiddleware(app, observed))()

        assert (reports.only.outcome, reports.only.status, reports.only.statements) == ("committed", 200, 2)

    @pytest.mark.parametrize("waits", [True, False])
    async def test_of_a_commit_that_waited(
        self, observed: Database, reports: Reports, waits: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A read of another thread is waited for when the response starts: no failure, unless it takes too long."""
        monkeypatch.setattr(parts, "IN_USE_LIMIT", 10 if waits else 0.01)
        running, released = threading.Event(), threading.Event()

        def wait(*_arguments: Any) -> None:
            running.set()
            released.wait(10)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await do(observed, "sync", select_one)
            event.listen(observed.engine, "before_cursor_execute", wait)
            beside = asyncio.create_task(do(observed, "sync", select_one))
            await asyncio.to_thread(running.wait)
            if waits:
                asyncio.get_running_loop().call_later(0.05, released.set)
            try:
                await respond(send)
            finally:
                released.set()
                await asyncio.wait([beside])

        await Call(SQLAlchemyMiddleware(app, observed))()

        expected = ("committed", None, 200) if waits else ("failed", "SessionInUseError", 500)
        assert (reports.only.outcome, reports.only.reason, reports.only.status) == expected

    async def test_of_a_callback(self, observed: Database, reports: Reports) -> None:
        """It has a report of its own, before that of its unit."""

        async def later() -> None:
            await do(observed, "async", select_one)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await do(observed, "async", flush_one)
            on_commit(later)
            await respond(send)

        await Call(SQLAlchemyMiddleware(app, observed))()

        assert [(one.kind, one.outcome, one.statements) for one in reports] == [
            ("callback", "committed", 1),
            ("request", "committed", 1),
        ]

    async def test_of_messages(self, observed: Database, reports: Reports) -> None:
        """Each message that used the database has a report, which does not count the wait for it."""
        incoming = asyncio.Queue[Any]()
        for one in ("websocket.connect", "websocket.receive"):
            incoming.put_nowait({"type": one, "text": "x"})

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            for number in range(3):
                await receive()
                if number != 1:
                    await do(observed, "async", *[select_one] * (number + 1))
            await send({"type": "websocket.close", "code": 1000})

        socket = asyncio.create_task(
            SQLAlchemyMiddleware(app, observed)({**http_scope("/ws"), "type": "websocket"}, incoming.get, drop)
        )
        for _ in range(2):
            await asyncio.sleep(0.1)
            incoming.put_nowait({"type": "websocket.receive", "text": "x"})
        await socket

        assert [(one.kind, one.name, one.statements, one.outcome) for one in reports] == [
            ("message", "WEBSOCKET /ws", 1, "committed"),
            ("message", "WEBSOCKET /ws", 3, "committed"),
        ]

    async def test_of_a_read_only_unit(self, observed: Database, reports: Reports) -> None:
        """It reads in autocommit, and is measured as any other."""
        async with session_scope(observed, read_only=True) as session:
            await session.run_sync(select_one)
        with session_scope(observed, read_only=True) as sync_session:
            select_one(sync_session)

        assert [(one.statements, one.outcome) for one in reports] == [(1, "committed")] * 2
        assert all(one.databases[0].held > 0 for one in reports)


async def drop(_message: Any) -> None:
    """Send nothing."""


class TestTexts:
    """What a report shows of statements: their text, where they come from, and no value."""

    @pytest.mark.parametrize("kind", KINDS)
    async def test_the_line_of_the_application(self, observed: Database, reports: Reports, kind: str) -> None:
        """The line is that of the most frequent sender, not a line of SQLAlchemy or of a framework."""

        def load(session: Any) -> None:
            session.execute(select(Item.name))
            for _ in range(3):
                session.execute(select(Item.name))

        await Call(answering(observed, kind, load))()

        (found,) = reports.only.databases[0].repeated
        first = load.__code__.co_firstlineno
        assert found.count == 4
        assert found.line is not None
        assert found.line.endswith(f"test_observe.py:{first + 3}")

    def test_the_line_of_many_statements(self, sqlite: Backend, reports: Reports) -> None:
        """Two lines send a text more often than a record keeps what it has not read; the more frequent one is told."""
        observed = Database(sqlite.url, observe=[reports])

        def often(session: Any) -> None:
            for number in range(3 * MOST_UNREAD):
                session.execute(text("SELECT 1"))
                if number % 2:
                    session.execute(text("SELECT 1"))
            session.execute(text("SELECT 2"))

        with session_scope(observed) as session:
            often(session)
        observed.dispose()

        (found,) = reports.only.databases
        (again,) = found.repeated
        line = f"{Path(__file__).name}:{often.__code__.co_firstlineno + 2}"
        assert (found.statements, again.count) == (9 * MOST_UNREAD // 2 + 1, 9 * MOST_UNREAD // 2)
        assert again.line is not None
        assert again.line.endswith(line)
        assert found.seconds > again.seconds > 0

    def test_the_same_code_in_two_files(self, sqlite: Backend, reports: Reports) -> None:
        """Python takes their code for equal; each sends the text from its own file."""
        source = "def send(session, text, times):\n for _ in range(times):\n  session.execute(text('SELECT 1'))\n"
        observed = Database(sqlite.url, observe=[reports])
        for often in ("first.py", "second.py"):
            with session_scope(observed) as session:
                for name in ("first.py", "second.py"):
                    made: dict[str, Any] = {}
                    exec(compile(source, f"/app/{name}", "exec"), made)
                    made["send"](session, text, 2 if name == often else 1)
        observed.dispose()

        assert [one.databases[0].repeated[0].line for one in reports] == ["/app/first.py:3", "/app/second.py:3"]

    async def test_awaited_statements_have_a_line_too(self, observed: Database, reports: Reports) -> None:
        """SQLAlchemy runs them in a greenlet, whose stack does not end there."""
        async with session_scope(observed) as session:
            await session.execute(text("SELECT 1"))

        slowest = reports.only.databases[0].slowest
        assert slowest is not None
        assert slowest.line is not None
        line = sys._getframe().f_code.co_firstlineno + 3
        assert (slowest.text, slowest.count, slowest.line.rpartition("/")[2]) == (
            "SELECT 1",
            1,
            f"test_observe.py:{line}",
        )

    async def test_a_text_from_several_places(self, observed: Database, reports: Reports) -> None:
        """Each place is told by its own line, however the text came there before."""

        def helper(session: Any) -> None:
            session.execute(text("SELECT 1"))

        async def awaited(session: Any) -> None:
            await session.execute(text("SELECT 1"))

        async def run(session: Any) -> None:
            await session.run_sync(helper)

        async def deeper(session: Any) -> None:
            await session.run_sync(lambda inner: helper(inner))

        async def scalar(session: Any) -> None:
            assert await session.scalar(text("SELECT 1")) == 1

        async def on_connection(session: Any) -> None:
            await (await session.connection()).execute(text("SELECT 1"))

        code = {run: helper, deeper: helper}
        for work in (awaited, run, scalar, deeper, on_connection, run, awaited, scalar, on_connection, deeper):
            async with session_scope(observed) as session:
                await work(session)
            slowest = reports[-1].databases[0].slowest
            line = code.get(work, work).__code__.co_firstlineno + 1
            assert slowest is not None
            assert slowest.line is not None
            assert (work.__name__, slowest.line.rpartition(":")[2]) == (work.__name__, str(line))

    async def test_no_parameter_is_in_a_report(self, observed: Database, reports: Reports) -> None:
        """The whole report can be written as JSON, and shown to anybody who may see the statements."""
        async with session_scope(observed) as session:
            session.add(Item(name="s3cret"))
            await session.flush()
            await session.scalars(select(Item).where(Item.name == "s3cret"))

        shown = json.dumps(reports.only.as_dict())
        assert "item.name" in shown or "INSERT INTO item" in shown  # the slowest of both
        assert "s3cret" not in shown

    async def test_texts_are_bounded(self, reports: Reports) -> None:
        """This holds for their length and for their number."""
        observed = Database("sqlite://", observe=[reports])
        many = MOST_TEXTS + 10
        with session_scope(observed) as session:
            for number in range(many):
                for _ in range(2):
                    session.execute(text(f"SELECT {number}"))
            session.execute(text(f"SELECT '{'x' * 2 * LONGEST_TEXT}'"))
            session.execute(text(f"SELECT '{'x' * 2 * LONGEST_TEXT}'"))

        (found,) = reports.only.databases
        assert (found.statements, len(found.repeated)) == (2 * many + 2, MOST_REPEATED)
        assert found.slowest is not None
        assert len(found.slowest.text) <= LONGEST_TEXT + 3
        observed.dispose()

    def test_the_password_is_not_shown(self, reports: Reports) -> None:
        """The rest of the URL is."""
        observed = Database("postgresql+psycopg://shop:s3cret@127.0.0.1:1/shop", observe=[reports])
        with suppress(OperationalError), session_scope(observed) as session:
            session.execute(text("SELECT 1"))

        assert reports.only.databases[0].database == "postgresql+psycopg://shop:***@127.0.0.1:1/shop"
        assert "s3cret" not in repr(reports)
        assert reports.only.reason == "OperationalError (unavailable)"
        observed.dispose()


class TestObservers:
    """Who receives a report."""

    async def test_each_observer_is_called_once(self, tmp_path: Path) -> None:
        """One that observes several databases of a unit gets one report; a database without any is in no report."""
        both, one = Reports(), Reports()
        first = Database(f"sqlite:///{tmp_path}/first.db", observe=[both])
        second = Database(f"sqlite:///{tmp_path}/second.db", observe=[both, one])
        third = Database(f"sqlite:///{tmp_path}/third.db")
        for database in (first, second, third):
            with session_scope(database) as session:
                session.execute(text("SELECT 1"))
        assert [len(both), len(one)] == [2, 1]
        both.clear()
        one.clear()

        with session_scope(third):
            third.session.execute(text("SELECT 1"))
            first.session.execute(text("SELECT 1"))
            second.session.execute(text("SELECT 1"))

        assert both.only is one.only
        assert [Path(each.database).name for each in both.only.databases] == ["first.db", "second.db"]
        for database in (first, second, third):
            database.dispose()

    @pytest.mark.parametrize("fault", ["raises", "awaits"])
    async def test_one_that_fails_is_logged(
        self, sqlite: Backend, reports: Reports, caplog: pytest.LogCaptureFixture, fault: str
    ) -> None:
        """The others get their report, and the request goes on."""

        async def nothing() -> None:
            """Never run."""

        def failing(report: Report) -> Any:
            if fault == "raises":
                raise BrokenError
            return nothing()

        observed = Database(sqlite.url, observe=[failing, reports])
        call = await Call(answering(observed, "async", flush_one, status=201), http_scope("/orders", "POST"))()

        (record,) = [one for one in caplog.records if one.name == "asgi_sqla"]
        assert (call.status, call.raised, reports.only.outcome) == (201, None, "committed")
        assert record.getMessage().startswith("POST /orders: the observer")
        assert (record.levelname, record.unit, record.outcome) == ("WARNING", "POST /orders", "committed")  # type: ignore[attr-defined]
        await observed.async_dispose()

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_unit_that_concerns_nobody_has_no_report(
        self, sqlite: Backend, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The observers of the package know beforehand; one of the application's, and a wrapped one, gets each."""
        made: list[Any] = []

        def counted(session: Any) -> Any:
            made.append(session)
            return report_of(session)

        monkeypatch.setattr(observation, "report_of", counted)
        quiet: list[Any] = [slow_log(60), repeated_statements(3), idle_in_transaction(60), failed_log, server_timing]
        other = Reports()
        wrapped = functools.wraps(failed_log)(lambda report: other(report))
        found = []
        for observe in (quiet, [*quiet, wrapped], [*quiet, other], [slow_log(0)], [repeated_statements(2)]):
            database = Database(sqlite.url, observe=observe)
            call = await Call(answering(database, kind, select_one, select_one))()
            found.append((len(made), len(other), b"server-timing" in dict(call.messages[0]["headers"])))
            await database.async_dispose()

        assert found == [(0, 0, True), (1, 1, True), (2, 2, True), (3, 2, False), (4, 2, False)]

    async def test_the_units_of_an_observer_are_not_reported(self, sqlite: Backend, reports: Reports) -> None:
        """One that writes its reports to the database that it observes would never end."""

        def write(report: Report) -> None:
            with session_scope(database) as session:
                session.add(Item(name=report.name))

        database = Database(sqlite.url, observe=[write, reports])
        async with session_scope(database) as session:
            await session.run_sync(select_one)

        assert (len(reports), sqlite.names()) == (1, ["session_scope()"])
        await database.async_dispose()

    def test_an_observer_hears_the_engines_of_the_user_too(self, sqlite: Backend, reports: Reports) -> None:
        """Their commits are measured as those of engines of ours, and a second Database adds nothing."""
        from sqlalchemy import create_engine

        engine = create_engine(sqlite.url, poolclass=NullPool)
        Database(engine=engine, observe=[Reports()])
        observed = Database(engine=engine, observe=[reports])
        with session_scope(observed) as session:
            session.execute(text("SELECT 1"))

        (found,) = reports.only.databases
        assert (found.new_connection, found.longest_idle is not None, found.ending > 0) == (True, True, True)

    def test_other_listeners_of_statements_are_still_asked(self, sqlite: Backend, reports: Reports) -> None:
        """One that was added later, and sends the statement itself, is asked as before."""
        sent: list[str] = []

        def send(cursor: Any, statement: str, parameters: Any, context: Any) -> bool | None:
            sent.append(statement)
            cursor.execute("SELECT 2")
            return True

        for observe in ((), (reports,)):
            database = Database(sqlite.url, observe=observe)
            with session_scope(database) as session:
                assert session.scalar(text("SELECT 1")) == 1
                database.listen("do_execute", send)
                assert session.scalar(text("SELECT 1")) == 2
                assert session.connection().exec_driver_sql("SELECT 1", ()).scalar() in (1, 2)
            database.dispose()

        assert sent.count("SELECT 1") >= 2
        assert reports.only.statements == 3


def test_an_unobserved_unit_imports_nothing_more(tmp_path: Path) -> None:
    """The rooms that record and report come with the first observer."""
    program = (
        "import sys; from asgi_sqla import Database, session_scope; from sqlalchemy import text\n"
        "def use(**options):\n"
        f"    with session_scope(Database('sqlite:///{tmp_path}/a.db', **options)) as session:\n"
        "        session.execute(text('SELECT 1'))\n"
        "    return [name for name in ('session.recording', 'unit.observation', 'unit.report', 'session.lines')\n"
        "            if f'asgi_sqla.{name}' in sys.modules]\n"
        "print(use(), len(use(observe=[print])))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, *_, last = ran.stdout.splitlines()
    assert first.startswith("Report(name='session_scope()', kind='scope', outcome='committed'")
    assert last == "[] 4"


@pytest.mark.parametrize("kind", KINDS)
async def test_it_leaves_nothing_for_the_garbage_collector(sqlite: Backend, kind: str) -> None:
    """A report holds values only, and its unit is freed with the request."""
    import gc

    database = Database(sqlite.url, observe=[lambda report: None])
    app = answering(database, kind, select_one)
    for _ in range(3):
        await app(http_scope(), None, drop)
    gc.collect()
    gc.disable()
    garbage = []
    try:
        for _ in range(3):  # another thread, or a tracer, may leave some of its own
            await app(http_scope(), None, drop)
            garbage.append(gc.collect())
    finally:
        gc.enable()
    await database.async_dispose()

    assert min(garbage) == 0
