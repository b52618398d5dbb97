"""SQLite: the settings of our engines, files and memory, sync and async."""

# The blocks that raise are the scopes under test, so they hold more than one statement.
# ruff: noqa: PT012

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, insert, literal, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, PendingRollbackError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from support.databases import Backend, Base, Item
from support.failing import engine_of
from support.scopes import in_scope

from asgi_sqla import ConfigurationError, Database, session_scope

KINDS = ["sync", "async"]


class Boom(BaseException):
    """A failure of the application."""


async def scalar(database: Database, kind: str, statement: str) -> Any:
    """Return the one value of a statement, through a scope of ``kind``."""
    if kind == "sync":
        with session_scope(database) as session:
            return session.scalar(text(statement))
    async with session_scope(database) as async_session:
        return await async_session.scalar(text(statement))


@pytest.fixture
async def file(sqlite: Backend) -> AsyncIterator[Database]:
    """Return a database in a file."""
    database = Database(sqlite.url)
    yield database
    await database.async_dispose()


@pytest.fixture
async def memory() -> AsyncIterator[Database]:
    """Return a database in memory, with the tables."""
    database = Database("sqlite://")
    Base.metadata.create_all(database.engine)
    yield database
    await database.async_dispose()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pragma", "value"), [("foreign_keys", 1), ("journal_mode", "wal"), ("busy_timeout", 5000)])
async def test_what_is_set(file: Database, kind: str, pragma: str, value: object) -> None:
    """Foreign keys are enforced, readers and a writer do not block each other, and writers wait for each other."""
    assert await scalar(file, kind, f"PRAGMA {pragma}") == value


@pytest.mark.parametrize("kind", KINDS)
async def test_a_timeout_of_ones_own_is_kept(sqlite: Backend, kind: str) -> None:
    """It may be in the URL or in ``connect_args``."""
    for database in (
        Database(f"{sqlite.url}?timeout=0.25"),
        Database(sqlite.url, engine_options={"connect_args": {"timeout": 0.25}}),
        Database("sqlite://?timeout=0.25"),
    ):
        assert await scalar(database, kind, "PRAGMA busy_timeout") == 250
        await database.async_dispose()


async def test_an_engine_that_was_passed_in_is_left_as_it_is(sqlite: Backend) -> None:
    """Its settings are its owner's."""
    engine = create_engine(sqlite.url)
    assert await scalar(Database(engine=engine), "sync", "PRAGMA foreign_keys") == 0
    engine.dispose()


async def test_foreign_keys_hold(file: Database, sqlite: Backend) -> None:
    """They are enforced sync and async, and a deferred one at COMMIT."""
    with pytest.raises(IntegrityError, match="FOREIGN KEY constraint failed"), session_scope(file) as session:
        session.add(Item(name="a", owner_id=1))
    with pytest.raises(IntegrityError, match="FOREIGN KEY constraint failed"):
        async with session_scope(file) as async_session:
            async_session.add(Item(name="a", owner_id=1))
    assert sqlite.names() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_tables_are_made_in_the_transaction(file: Database, sqlite: Backend, kind: str) -> None:
    """DDL, which the driver alone would commit at once, is rolled back with the rest."""
    statements = ["CREATE TABLE fresh (id INTEGER)", "INSERT INTO fresh VALUES (1)", "DROP TABLE owner"]
    with pytest.raises(Boom):
        if kind == "sync":
            with session_scope(file) as session:
                for statement in statements:
                    session.execute(text(statement))
                raise Boom
        async with session_scope(file) as async_session:
            for statement in statements:
                await async_session.execute(text(statement))
            raise Boom
    with sqlite.witness.connect() as connection:
        tables = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"))
        assert list(tables.scalars()) == ["item", "owner"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_transaction_reads_one_state(file: Database, kind: str) -> None:
    """It does not see later commits of others, because it has really begun."""
    count = text("SELECT count(*) FROM item")
    seen = []
    if kind == "sync":
        with session_scope(file) as session:
            seen.append(session.scalar(count))
            with session_scope(file) as other:
                other.add(Item(name="a"))
            seen.append(session.scalar(count))
    else:
        async with session_scope(file) as async_session:
            seen.append(await async_session.scalar(count))
            async with session_scope(file) as async_other:
                async_other.add(Item(name="a"))
            seen.append(await async_session.scalar(count))
    assert (seen, await scalar(file, kind, "SELECT count(*) FROM item")) == ([0, 0], 1)


@pytest.mark.parametrize(("mode", "statement"), [(None, "BEGIN DEFERRED"), ("immediate", "BEGIN IMMEDIATE")])
async def test_how_transactions_begin(sqlite: Backend, mode: Any, statement: str) -> None:
    """``transaction_mode`` decides, for both kinds."""
    database = Database(sqlite.url, transaction_mode=mode)
    begun: list[str] = []

    def trace(connection: Any, _record: object) -> None:
        connection.set_trace_callback(begun.append)

    def trace_async(connection: Any, _record: object) -> None:
        connection.run_async(lambda driver: driver.set_trace_callback(begun.append))

    event.listen(database.engine, "connect", trace)
    event.listen(database.async_engine.sync_engine, "connect", trace_async)
    for kind in KINDS:
        await scalar(database, kind, "SELECT 1")
    await database.async_dispose()
    assert [sql for sql in begun if not sql.startswith(("PRAGMA", "ROLLBACK"))] == [statement, "SELECT 1", "COMMIT"] * 2


async def test_immediate_transactions_take_turns(sqlite: Backend) -> None:
    """Transactions that read and then write neither fail nor overwrite each other, as deferred ones would."""
    database = Database(sqlite.url, transaction_mode="immediate")
    with session_scope(database) as session:
        session.execute(text("INSERT INTO owner VALUES (1)"))

    async def increment() -> None:
        async with session_scope(database) as session:
            (value,) = (await session.execute(text("SELECT id FROM owner"))).scalars()
            await asyncio.sleep(0.002)
            await session.execute(text("UPDATE owner SET id = :value"), {"value": value + 1})

    await asyncio.gather(*(increment() for _ in range(10)))
    assert await scalar(database, "sync", "SELECT id FROM owner") == 11
    await database.async_dispose()


def test_many_connections_may_be_the_first(tmp_path: Path) -> None:
    """Switching a new file to WAL needs exclusive access, and other connections wait."""
    for turn in range(3):
        urls = [f"sqlite:///{tmp_path / f'{turn}.db'}"] * 16
        databases = [Database(url, transaction_mode="immediate") for url in urls]
        with ThreadPoolExecutor(len(databases)) as pool:
            modes = list(pool.map(first_use, databases))
        assert modes == ["wal"] * len(databases)


async def test_a_writer_does_not_keep_the_first_reader_out(file: Database, sqlite: Backend) -> None:
    """During a write the file cannot be switched to WAL, and a later connection does that."""
    with sqlite.witness.begin() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        for kind in KINDS:
            assert await scalar(file, kind, "SELECT count(*) FROM item") == 0
            assert await scalar(file, kind, "PRAGMA journal_mode") == "delete"
    await file.async_dispose()
    assert await scalar(file, "sync", "PRAGMA journal_mode") == "wal"


def first_use(database: Database) -> str:
    """Write to a file that may be new, and return its journal mode."""
    with session_scope(database) as session:
        session.execute(text("CREATE TABLE IF NOT EXISTS t (x)"))
        session.execute(text("INSERT INTO t VALUES (1)"))
        mode = str(session.scalar(text("PRAGMA journal_mode")))
    database.dispose()
    return mode


async def test_a_file_that_cannot_be_written_can_be_read(sqlite: Backend) -> None:
    """Its journal mode is not switched."""
    with sqlite.witness.begin() as connection:
        connection.execute(text("INSERT INTO item (name) VALUES ('a')"))
    database = Database(f"sqlite:///file:{sqlite.witness.url.database}?mode=ro&uri=true")
    for kind in KINDS:
        assert await scalar(database, kind, "SELECT name FROM item") == "a"
    await database.async_dispose()


# In memory


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite://", "sqlite+pysqlite:///:memory:"]
    + ["sqlite:///file::memory:?cache=shared&uri=true", "sqlite:///file:x?mode=memory&cache=shared&uri=true"],
)
async def test_in_memory_there_is_one_database(url: str) -> None:
    """All threads, kinds of session and event loops share it."""
    database = Database(url)
    Base.metadata.create_all(database.engine)

    def in_thread() -> None:
        with session_scope(database) as session:
            session.add(Item(name="thread"))

    async def in_scope(name: str) -> None:
        async with session_scope(database) as session:
            session.add(Item(name=name))

    await asyncio.to_thread(in_thread)
    await in_scope("loop")
    await asyncio.to_thread(asyncio.run, in_scope("other loop"))
    for kind in KINDS:
        assert await scalar(database, kind, "SELECT group_concat(name) FROM item") == "thread,loop,other loop"
    await database.async_dispose()
    assert await scalar(database, "sync", "SELECT count(*) FROM item") == 3
    await database.async_dispose()


async def test_in_memory_transactions_are_isolated(memory: Database) -> None:
    """Uncommitted rows are invisible to others, and one rollback does not undo another's insert."""
    first_wrote, second_began = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with session_scope(memory) as session:
            session.add(Item(name="kept"))
            await session.flush()
            first_wrote.set()
            await second_began.wait()
            await asyncio.sleep(0.02)

    async def second() -> None:
        await first_wrote.wait()
        async with session_scope(memory) as session:
            second_began.set()  # its first statement waits for the first to commit
            session.add(Item(name="lost"))
            await session.flush()
            assert await session.scalar(text("SELECT group_concat(name) FROM item")) == "kept,lost"
            raise Boom

    results = await asyncio.gather(first(), second(), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), Boom]
    assert await scalar(memory, "sync", "SELECT group_concat(name) FROM item") == "kept"


async def test_in_memory_a_writer_waits_no_longer_than_told() -> None:
    """After the timeout there is an error, and no overwritten row."""
    database = Database("sqlite://?timeout=0.05")
    Base.metadata.create_all(database.engine)
    async with session_scope(database) as session:
        session.add(Item(name="a"))
        await session.flush()
        with pytest.raises(OperationalError, match="database is locked"):
            async with session_scope(database) as other:
                other.add(Item(name="b"))
    assert await scalar(database, "async", "SELECT group_concat(name) FROM item") == "a"
    await database.async_dispose()


async def test_in_memory_keeps_every_promise_of_a_file(memory: Database) -> None:
    """Foreign keys and savepoints work."""
    with pytest.raises(IntegrityError, match="FOREIGN KEY constraint failed"):
        async with session_scope(memory) as session:
            session.add(Item(name="a", owner_id=1))
    async with session_scope(memory) as session:
        session.add(Item(name="a"))
        with pytest.raises(Boom):
            async with session_scope(memory, propagation="nested"):
                session.add(Item(name="b"))
                raise Boom
    assert await scalar(memory, "async", "SELECT group_concat(name) FROM item") == "a"


async def test_two_databases_in_memory_are_two(memory: Database) -> None:
    """Each ``Database`` has its own, even with the same URL."""
    other = Database("sqlite://")
    with pytest.raises(DBAPIError, match="no such table"):
        await scalar(other, "sync", "SELECT * FROM item")
    await other.async_dispose()


def test_in_memory_data_goes_with_its_database() -> None:
    """Nothing keeps it after the ``Database`` is garbage."""
    database = Database("sqlite://")
    Base.metadata.create_all(database.engine)
    name = database.engine.url.database
    assert tables(name) == 2
    database.dispose()
    assert tables(name) == 2
    del database
    gc.collect()
    assert tables(name) == 0


def tables(name: str | None) -> int:
    """Return how many tables the in-memory database of this name has."""
    connection = sqlite3.connect(f"{name}?vfs=memdb", uri=True)
    try:
        (count,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()
        return int(count)
    finally:
        connection.close()


async def test_readers_of_a_file_do_not_wait_for_a_writer(file: Database) -> None:
    """With WAL the reader sees the earlier state, at once."""
    async with session_scope(file) as session:
        session.add(Item(name="a"))
        await session.flush()
        began = time.monotonic()
        assert await scalar(file, "async", "SELECT count(*) FROM item") == 0
        assert time.monotonic() - began < 4  # the busy timeout is 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False], ids=["first", "after an insert"])
@pytest.mark.parametrize("then", ["nothing", "insert", "driver's rollback", "error"])
async def test_a_savepoint_of_sqlite3s_own_mode_is_known(sqlite: Backend, kind: str, first: bool, then: str) -> None:
    """In that mode a first SAVEPOINT begins the transaction and its RELEASE commits, and both are reported so."""
    engine = create_engine(sqlite.url)
    async_engine = create_async_engine(sqlite.url.replace("sqlite:", "sqlite+aiosqlite:"))
    database = Database(engine=engine, async_engine=async_engine)

    def work(session: Session) -> None:
        if not first:
            session.execute(insert(Item).values(name="before"))
        with session.begin_nested():
            session.execute(insert(Item).values(name="in the savepoint"))
        if then == "insert":
            session.execute(insert(Item).values(name="after"))
        elif then == "driver's rollback":
            session.connection().connection.dbapi_connection.rollback()  # type: ignore[union-attr]  # it is open
        elif then == "error":
            raise Boom

    before, inside, after = [] if first else ["before"], ["in the savepoint"], ["after"] if then == "insert" else []
    lost: type[BaseException] | None = Boom if then == "error" else None
    if then == "driver's rollback" and not first:
        lost = PendingRollbackError
    with pytest.raises(lost) if lost else nullcontext():
        if kind == "sync":
            with session_scope(database) as session:
                work(session)
        else:
            async with session_scope(database) as async_session:
                await async_session.run_sync(work)
    kept = inside if first else []
    assert sorted(sqlite.names()) == sorted(kept if lost else before + inside + after)
    await async_engine.dispose()
    engine.dispose()


def test_an_old_sqlite_has_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which version is needed and what to write instead; a file needs none."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 35, 5))
    with pytest.raises(ConfigurationError, match=r"SQLite 3\.36"):
        Database("sqlite://")
    Database("sqlite:///app.db")


LATE = "a listener that comes late"


@pytest.mark.parametrize("heard", ["nobody", "an engine", "all engines", LATE])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [None, "SERIALIZABLE"])
async def test_each_transaction_begins_before_anybody_hears_of_it(
    sqlite: Backend, kind: str, heard: str, level: str | None
) -> None:
    """A listener of the engine is in the transaction, whenever it began to listen; those of all engines hear first."""
    database = Database(sqlite.url)
    begun: list[bool] = []

    def hear(connection: Connection) -> None:
        begun.append(in_transaction(connection))

    def in_transaction(connection: Connection) -> bool:
        raw: Any = connection.connection.driver_connection
        return bool(raw.in_transaction)

    async def transactions() -> list[bool]:
        inside: list[bool] = []

        def work(session: Session) -> None:
            inside.append(in_transaction(session.connection()))
            session.rollback()
            inside.append(in_transaction(session.connection()))

        await in_scope(database, kind, work, isolation_level=level)
        return inside

    if heard == LATE:
        assert await transactions() == [True, True]
    target = Engine if heard == "all engines" else engine_of(database, kind)
    if heard != "nobody":
        event.listen(target, "begin", hear)
    try:
        inside = await transactions()
    finally:
        if heard != "nobody":
            event.remove(target, "begin", hear)
    await database.async_dispose()

    assert inside == [True, True]
    assert begun == ([] if heard == "nobody" else [heard != "all engines"] * 2)


@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_no_event_of_ours_is_heard_for_each_statement(
    sqlite: Backend, kind: str, heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one listener of an engine SQLAlchemy asks for all of its events, before and after each statement."""
    monkeypatch.setattr(Engine, "_has_events", False)  # the tests on MariaDB listen to all engines
    database = Database(sqlite.url)
    asked: list[str] = []

    def note(frame: Any, what: str, _argument: Any) -> None:
        if what == "call" and frame.f_code.co_name == "_invoke_before_exec_event":
            asked.append(frame.f_code.co_name)

    if heard:
        database.listen("begin", lambda _connection: None)
    threading.setprofile(note)  # of threads that are made from now on
    sys.setprofile(note)
    try:
        for _ in range(2):  # the first connects
            asked.clear()
            await in_scope(database, kind, lambda session: session.execute(select(literal(1))))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    await database.async_dispose()

    assert bool(asked) is heard
