"""``asgi_sqla.testing``: what happens inside ``rolled_back()``, and failures on request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Executable, MetaData, delete, func, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from support.asgi import Call, respond
from support.databases import NO_OWNER, Backend, Item
from support.empty import KINDS as KINDS_OF_DATABASE
from support.empty import empty_database
from support.marks import on_deferring

from asgi_sqla import ConfigurationError, Database, ReadOnlyError, SQLAlchemyMiddleware, current_unit, session_scope
from asgi_sqla.testing import (
    assert_statements,
    captured_callbacks,
    count_statements,
    fail_commit,
    kill_connection,
    rolled_back,
)

KINDS = ["sync", "async"]
MODES = ["transaction", "copy"]

COPIES = True
"""The databases are copied, which their witness must not prevent."""


def application(database: Database, kind: str = "async", status: int = 201, **fields: Any) -> SQLAlchemyMiddleware:
    """Return an application that adds an item named by the path, and answers how many there are."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        item, count = Item(name=scope["path"], **fields), select(func.count()).select_from(Item)
        if kind == "sync":
            database.session.add(item)
            found = await asyncio.to_thread(database.session.scalar, count)
        else:
            database.async_session.add(item)
            found = await database.async_session.scalar(count)
        await respond(send, status, str(found).encode())

    return SQLAlchemyMiddleware(app, database)


async def get(app: Any, path: str = "/") -> Call:
    """Send one request."""
    return await Call(app, {"type": "http", "method": "GET", "path": path, "headers": []})()


async def count(database: Database, kind: str, *, read_only: bool = False) -> int:
    """Return how many items a new scope sees."""
    query = select(func.count()).select_from(Item)
    if kind == "sync":
        with session_scope(database, read_only=read_only) as session:
            return session.scalar(query) or 0
    async with session_scope(database, read_only=read_only) as async_session:
        return await async_session.scalar(query) or 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
async def test_requests_see_each_others_rows_and_leave_none(
    database: Database, backend: Backend, kind: str, mode: Any
) -> None:
    """The next request and the test see what a request commits, and it is gone after the test."""
    app = application(database, kind)
    async with rolled_back(database, mode=mode):
        bodies = [(await get(app, path)).body for path in ("/a", "/b")]
        assert (bodies, await count(database, kind)) == ([b"1", b"2"], 2)
    assert (await count(database, kind), backend.names()) == (0, [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_that_rolls_back_undoes_only_itself(database: Database, backend: Backend, kind: str) -> None:
    """The application may roll back at any time."""
    async with rolled_back(database):
        await get(application(database, kind), "/kept")
        await get(application(database, kind, status=422), "/lost")
        assert await count(database, kind) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_at_once_take_turns(database: Database, backend: Backend, kind: str) -> None:
    """Ten concurrent requests on the one connection all commit."""
    app = application(database, kind)
    async with rolled_back(database):
        calls = await asyncio.gather(*(get(app, f"/{number}") for number in range(10)))
        assert [call.status for call in calls] == [201] * 10
        assert await count(database, kind) == 10


@on_deferring
@pytest.mark.parametrize("kind", KINDS)
async def test_the_commit_checks_what_was_deferred_to_it(database: Database, backend: Backend, kind: str) -> None:
    """A COMMIT that would fail fails inside as well, and the next request works."""
    async with rolled_back(database):
        failed = await get(application(database, kind, owner_id=NO_OWNER), "/a")
        assert (type(failed.raised), failed.status) == (IntegrityError, 500)
        assert (await get(application(database, kind), "/b")).body == b"1"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failed_statement_undoes_only_its_request(database: Database, backend: Backend, kind: str) -> None:
    """The error of one request does not break the outer transaction."""
    app = application(database, kind)
    async with rolled_back(database):
        calls = [await get(app, "/a"), await get(app, "/a"), await get(app, "/b")]
        assert [(type(call.raised), call.body) for call in (calls[0], calls[2])] == [
            (type(None), b"1"),
            (type(None), b"2"),
        ]
        assert isinstance(calls[1].raised, IntegrityError)


async def test_a_request_inside_an_open_scope_is_nested_in_it(database: Database, backend: Backend) -> None:
    """A test may hold a session in a transaction while it sends requests."""
    async with rolled_back(database):
        async with session_scope(database) as session:
            session.add(Item(name="mine"))
            await session.flush()
            assert (await get(application(database), "/a")).body == b"2"
            assert await session.scalar(select(func.count()).select_from(Item)) == 2
        assert await count(database, "async") == 2


async def test_a_sync_test_holds_a_session_too(database: Database, backend: Backend) -> None:
    """Nested scopes in a thread do not wait for each other."""

    def test() -> int:
        with rolled_back(database), session_scope(database) as session:
            session.add(Item(name="a"))
            session.flush()
            with session_scope(database) as inner:
                return inner.scalar(select(func.count()).select_from(Item)) or 0

    assert (await asyncio.to_thread(test), backend.names()) == (1, [])


@pytest.mark.parametrize("kind", KINDS)
async def test_it_nests(database: Database, backend: Backend, kind: str) -> None:
    """The inner one undoes only what happened inside it."""
    async with rolled_back(database):
        await get(application(database, kind), "/outer")
        async with rolled_back(database):
            assert (await get(application(database, kind), "/inner")).body == b"2"
        assert await count(database, kind) == 1
    assert backend.names() == []


async def test_both_kinds_are_an_error_that_says_so(database: Database) -> None:
    """One transaction cannot span two connections."""
    async with rolled_back(database):
        await count(database, "async")
        with pytest.raises(ConfigurationError, match=r'an AsyncSession: they are two connections.*mode="copy"'):
            await count(database, "sync")


async def test_a_copy_serves_both_kinds(database: Database, backend: Backend) -> None:
    """The other kind sees what one kind commits, and the database itself does not."""
    async with rolled_back(database, mode="copy"):
        # A template is made once for a process, so it may hold what an earlier test had committed by then.
        first = int((await get(application(database, "sync"), "/a")).body)
        assert (await get(application(database, "async"), "/b")).body == b"%d" % (first + 1)
    assert backend.names() == []


async def test_a_sync_with_refuses_async_sessions_of_the_same_loop(database: Database) -> None:
    """It could not await their rollback, and the error says what to write."""
    with rolled_back(database), pytest.raises(ConfigurationError, match="write async with rolled_back"):
        await count(database, "async")


def test_requests_on_loops_of_their_own_are_an_error_that_says_so(sqlite: Backend) -> None:
    """A connection belongs to one event loop."""
    database = Database(sqlite.url)
    app = application(database)
    with rolled_back(database):
        first, second = (asyncio.run(get(app, path)) for path in ("/a", "/b"))
    database.dispose()
    assert (first.status, type(second.raised).__name__) == (201, "WrongEventLoopError")
    assert "with TestClient(app) as client" in str(second.raised)
    assert sqlite.names() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_read_only_units_refuse_to_write(database: Database, backend: Backend, kind: str) -> None:
    """The session refuses, and the database too where it can; the next unit writes again."""
    async with rolled_back(database):
        await get(application(database, kind), "/a")
        with pytest.raises(ReadOnlyError):
            await delete_all(database, kind, delete(Item))
        if not backend.is_mariadb:  # where there is no read-only savepoint
            with pytest.raises(DBAPIError, match=r"read.?only"):
                await delete_all(database, kind, text("DELETE FROM item"))
        assert (await get(application(database, kind), "/b")).body == b"2"


@pytest.mark.parametrize("kind", KINDS)
async def test_read_only_units_read(database: Database, kind: str) -> None:
    """They see earlier commits, on every database."""
    async with rolled_back(database):
        await get(application(database, kind), "/a")
        assert await count(database, kind, read_only=True) == 1


async def delete_all(database: Database, kind: str, statement: Executable) -> None:
    """Try to delete in a read-only scope."""
    if kind == "sync":
        with session_scope(database, read_only=True) as session:
            session.execute(statement)
    else:
        async with session_scope(database, read_only=True) as async_session:
            await async_session.execute(statement)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_isolation_level_changes_nothing(database: Database, kind: str) -> None:
    """The outer transaction has begun, so the scope's level is ignored."""
    query = select(func.count()).select_from(Item)
    async with rolled_back(database):
        if kind == "sync":
            with session_scope(database, isolation_level="SERIALIZABLE") as session:
                found = session.scalar(query)
        else:
            async with session_scope(database, isolation_level="SERIALIZABLE") as async_session:
                found = await async_session.scalar(query)
        assert found == 0


async def test_a_retry_starts_from_its_savepoint(database: Database) -> None:
    """The writes of the failed attempt are gone before the next."""
    attempts: list[int] = []

    @session_scope(database, retries=1)
    async def add() -> None:
        attempts.append(current_unit().attempt)
        database.async_session.add(Item(name="a"))
        await database.async_session.flush()
        if len(attempts) == 1:
            error = OperationalError("INSERT", None, Exception())
            error.connection_invalidated = True
            raise error

    async with rolled_back(database):
        await add()
        assert (attempts, await count(database, "async")) == ([1, 2], 1)


async def test_callbacks_are_called_when_the_applications_unit_commits(database: Database) -> None:
    """They are not called when it rolls back."""
    called: list[str] = []
    async with rolled_back(database):
        async with session_scope(database) as session:
            session.add(Item(name="a"))
            current_unit().on_commit(called.append, "committed")
            assert called == []
        async with session_scope(database) as session:
            current_unit().on_commit(called.append, "never")
            current_unit().rollback_only()
    assert called == ["committed"]


@pytest.mark.parametrize("call", [False, True])
async def test_captured_callbacks_are_called_only_on_request(sqlite: Backend, call: bool) -> None:
    """They are collected with their arguments when they are due."""
    called: list[str] = []
    with captured_callbacks(call=call) as callbacks, session_scope(Database(sqlite.url)):
        current_unit().on_commit(called.append, "a")
        current_unit().on_rollback(called.append, "b")
    assert [(one.moment, one.args) for one in callbacks] == [("commit", ("a",))]
    assert called == (["a"] if call else [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inside", [False, True])
async def test_statements_are_counted(database: Database, kind: str, inside: bool) -> None:
    """INSERT and SELECT count, and statements that begin or end transactions do not."""
    with count_statements(database) as statements:
        if inside:
            async with rolled_back(database):
                await get(application(database, kind), "/a")
        else:
            await get(application(database, kind), "/a")
    assert [sql.split()[0] for sql in statements] == ["INSERT", "SELECT"]


async def test_statements_of_another_database_are_not_counted(database: Database, sqlite: Backend) -> None:
    """Each database is counted separately."""
    other = Database(sqlite.url.replace("test.db", "other.db"))
    with count_statements(database) as statements, session_scope(other) as session:
        session.execute(text("SELECT 1"))
    other.dispose()
    assert statements == []


def test_too_many_statements_fail_with_their_sql(sqlite: Backend) -> None:
    """The failure shows the SQL that was sent."""
    database = Database(sqlite.url)

    def send(count: int) -> None:
        with session_scope(database) as session:
            for number in range(count):
                session.execute(text(f"SELECT {number}"))

    with assert_statements(database, exactly=1):
        send(1)
    with (
        pytest.raises(AssertionError, match=r"at most 1 statement\(s\), but 2 were sent:\n1. SELECT 0\n2. SELECT 1"),
        assert_statements(database, max=1),
    ):
        send(2)
    database.dispose()


def test_assert_statements_needs_a_number() -> None:
    """The error says what to write."""
    with pytest.raises(ConfigurationError, match="max="), assert_statements():
        pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inside", [False, True])
async def test_a_commit_fails_on_request(database: Database, backend: Backend, kind: str, inside: bool) -> None:
    """It fails once, nothing of it is kept, and the next request is served."""
    app = application(database, kind)
    if inside:
        async with rolled_back(database):
            with fail_commit(database):
                calls = [await get(app, "/a"), await get(app, "/b")]
    else:
        with fail_commit(database):
            calls = [await get(app, "/a"), await get(app, "/b")]
    assert [call.status for call in calls] == [500, 201]
    assert isinstance(calls[0].raised, OperationalError)
    assert (calls[1].body, backend.names()) == (b"1", [] if inside else ["/b"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inside", [False, True])
async def test_a_connection_is_lost_on_request(database: Database, backend: Backend, kind: str, inside: bool) -> None:
    """The driver's own error counts as a lost connection, and the next request is served."""
    app = application(database, kind)
    if inside:
        async with rolled_back(database, mode="copy"):
            with kill_connection(database):
                calls = [await get(app, "/a"), await get(app, "/b")]
    else:
        with kill_connection(database):
            calls = [await get(app, "/a"), await get(app, "/b")]
    assert getattr(calls[0].raised, "connection_invalidated", None) is True
    assert (calls[1].status, backend.names()) == (201, [] if inside else ["/b"])


async def test_a_connection_lost_inside_is_an_error(database: Database) -> None:
    """The outer transaction is lost with it, so every later use raises and says so."""
    async with rolled_back(database):
        with kill_connection(database):
            await get(application(database), "/a")
        call = await get(application(database), "/b")
        assert "has lost its connection" in str(call.raised)


async def test_a_long_wait_for_a_turn_is_an_error(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request from outside an open transaction does not wait forever."""
    monkeypatch.setattr("asgi_sqla.testing.turns.PATIENCE", 0.05)
    begun, done = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with session_scope(database) as session:
            await session.execute(text("SELECT 2"))
            begun.set()
            await done.wait()

    async with rolled_back(database):
        holder = asyncio.create_task(hold(), name="holder")
        await begun.wait()
        call = await get(application(database), "/a")
        done.set()
        await holder
    assert "the task holder has been in one" in str(call.raised)


@pytest.mark.parametrize("wrong", [{"database": "sqlite://"}, {"mode": "fast"}])
def test_wrong_arguments_are_refused(wrong: Any) -> None:
    """They are refused at once, and the error says what to write."""
    with pytest.raises(ConfigurationError, match=str(next(iter(wrong)))):
        rolled_back(**wrong)


# As in production


@pytest.mark.parametrize("kind", KINDS_OF_DATABASE)
def test_an_engine_that_never_connected_knows_its_database(kind: str, tmp_path: Path) -> None:
    """Inside it knows what it learns outside: the server, its version, and which statements it can."""
    facts = ("is_mariadb", "insert_returning", "server_version_info", "default_schema_name", "max_identifier_length")
    with empty_database(kind, tmp_path) as url:
        outside, inside = Database(url), Database(url)
        with outside.engine.begin() as connection:
            connection.execute(text("CREATE TABLE thing (id INTEGER PRIMARY KEY)"))
        with rolled_back(inside) as database, session_scope(database) as session:
            session.execute(text("SELECT 1"))
            learned = {fact: getattr(session.get_bind().dialect, fact, None) for fact in facts}
            names = inspect(session.connection()).get_table_names()
            reflected = MetaData()
            reflected.reflect(session.connection())
        expected = {fact: getattr(outside.engine.dialect, fact, None) for fact in facts}
        outside.dispose()
        inside.dispose()

    assert learned == expected
    assert (names, list(reflected.tables)) == (["thing"], ["thing"])


@pytest.fixture
def on_mariadb(tmp_path: Path) -> Iterator[Database]:
    """Return a MariaDB with a table of items."""
    with empty_database("mariadb", tmp_path) as url:
        database = Database(url)
        with database.engine.begin() as connection:
            connection.execute(text("CREATE TABLE item (id INTEGER PRIMARY KEY AUTO_INCREMENT, name VARCHAR(20))"))
        yield database
        database.dispose()


NAMED = text("INSERT INTO item (name) VALUES (:name)")


def test_mariadb_refuses_what_would_commit(on_mariadb: Database) -> None:
    """A statement that commits by itself would keep everything before it; the error says what to write."""
    with rolled_back(on_mariadb):
        with session_scope(on_mariadb) as session:
            session.execute(text("INSERT INTO item (name) VALUES ('before')"))
        with (
            pytest.raises(ConfigurationError, match=r"CREATE: .* commits before it.*mark\.asgi_sqla\(mode=\"copy\"\)"),
            session_scope(on_mariadb) as session,
        ):
            session.execute(text("CREATE TABLE other (id INTEGER)"))
        with session_scope(on_mariadb) as session:
            assert session.scalar(text("SELECT count(*) FROM item")) == 1
    with session_scope(on_mariadb) as session:
        assert session.scalar(text("SELECT count(*) FROM item")) == 0


@pytest.mark.parametrize(
    "write",
    [
        lambda session: session.execute(text("INSERT INTO item (name) VALUES ('a')")),
        lambda session: session.connection().execute(
            text("INSERT INTO item (name) VALUES (:name)"), [{"name": "a"}] * 2
        ),
        lambda session: session.connection().execute(insert(Item).values(name="a")),
        lambda session: session.bulk_insert_mappings(Item, [{"name": "a"}]),
        lambda session: session.execute(text("DELETE FROM item")),
    ],
    ids=["text", "many", "core", "bulk", "delete"],
)
def test_mariadb_refuses_writes_in_read_only_units(on_mariadb: Database, write: Any) -> None:
    """No savepoint is read-only there, so each statement is judged, and refused with the server's own error."""
    with rolled_back(on_mariadb):
        with pytest.raises((OperationalError, ReadOnlyError)), session_scope(on_mariadb, read_only=True) as session:
            write(session)
        with session_scope(on_mariadb) as session:
            write(session)


def close_with_work(session: Any) -> Any:
    """Discard work, which the unit refuses to call done."""
    session.add(Item(name="discarded"))
    session.flush()
    session.close()


def write_text(session: Any) -> Any:
    """Write past the session's own checks."""
    session.execute(text("INSERT INTO item (name) VALUES ('text')"))


STREAM = select(Item.name).execution_options(yield_per=2)
AS_IN_PRODUCTION: dict[str, tuple[bool, Any]] = {
    "discarded work": (False, close_with_work),
    "a savepoint that reads": (True, lambda session: session.begin_nested() and session.scalar(text("SELECT 1"))),
    "a stream that reads": (True, lambda session: len(list(session.scalars(STREAM)))),
    "a stream": (False, lambda session: len(list(session.scalars(STREAM)))),
    "a flush that must not write": (True, lambda session: session.add(Item(name="refused"))),
    "a statement that must not write": (True, lambda session: session.execute(insert(Item).values(name="refused"))),
    "text that must not write": (True, write_text),
    "a failed statement": (False, lambda session: session.execute(text("SELECT nothing FROM nowhere"))),
}


@pytest.mark.parametrize("what", AS_IN_PRODUCTION)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_test_meets_what_production_meets(database: Database, backend: Backend, kind: str, what: str) -> None:
    """The same work has the same result, or the same error, inside and outside."""
    read_only, work = AS_IN_PRODUCTION[what]

    async def outcome() -> Any:
        try:
            if kind == "sync":
                return await asyncio.to_thread(in_thread)
            async with session_scope(database, read_only=read_only) as session:
                return await session.run_sync(work)
        except Exception as exc:
            return type(exc)

    def in_thread() -> Any:
        with session_scope(database, read_only=read_only) as session:
            return work(session)

    outside = await outcome()
    async with rolled_back(database):
        inside = await outcome()

    assert inside == outside
    assert backend.names() == []
