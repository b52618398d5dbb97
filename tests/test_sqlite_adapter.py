"""SQLite's async engines with one turn of the thread for each statement: an application observes what it did before.

Each case runs on a plain engine and on one of ours, with the same assertions; the last ones are about ours alone.
"""

# The blocks that raise are the scopes under test, so they hold more than one statement.
# ruff: noqa: PT012

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from queue import SimpleQueue
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import event, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, MissingGreenlet, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from support.databases import NO_OWNER, Backend, Base, Item
from support.marks import WAYS, pipelined
from support.servers import wait_until

from asgi_sqla import Database, current_unit, session_scope
from asgi_sqla.engine import aiosqlite as ours
from asgi_sqla.engine import pipelining as room
from asgi_sqla.testing import rolled_back

FOR_EVER = text("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n")
ONE_ROW = text("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n WHERE x < 2")
COUNT = select(func.count()).select_from(Item)
NUMBERS = text("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < :most) SELECT x FROM n")


def can_write(sqlite: Backend) -> bool:
    """Write a row by a connection that does not wait; return whether that was possible."""
    with closing(sqlite3.connect(sqlite.url.removeprefix("sqlite:///"), timeout=0)) as connection:
        try:
            connection.execute("INSERT INTO item (name) VALUES ('written')")
            connection.commit()
        except sqlite3.OperationalError:
            return False
    return True


@pytest.fixture(params=WAYS, ids=["one turn", "plain"])
def pipelining(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
async def database(sqlite: Backend, pipelining: bool) -> AsyncIterator[Database]:
    """Return a database of one connection in a file; at the end it must be in the pool."""
    sizes = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
    database = Database(sqlite.url, pipelining=pipelining, engine_options=sizes)
    yield database
    pool: Any = database.async_engine.pool
    assert pool.checkedout() == 0
    await database.async_dispose()


async def scalar(database: Database, statement: Any, **parameters: Any) -> Any:
    """Return the one value of a statement, in a scope of its own."""
    async with session_scope(database) as session:
        return await session.scalar(statement, parameters)


async def driver(session: AsyncSession) -> Any:
    """Return the driver's own connection."""
    return (await (await session.connection()).get_raw_connection()).driver_connection


async def add(database: Database, name: str) -> None:
    """Commit an item."""
    async with session_scope(database) as session:
        session.add(Item(name=name))


def is_locked(sqlite: Backend) -> bool:
    """Return whether somebody writes to the file."""
    with closing(sqlite3.connect(sqlite.url.removeprefix("sqlite:///"), timeout=0)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


class TestErrors:
    """They are the driver's, and surface where the statement is."""

    async def test_of_a_statement(self, database: Database) -> None:
        """The session can go on in a savepoint, or after a rollback."""
        async with session_scope(database) as session:
            session.add(Item(id=1, name="a"))
            await session.flush()
            with pytest.raises(IntegrityError, match="UNIQUE constraint failed") as caught:
                async with session.begin_nested():
                    await session.execute(insert(Item).values(id=1, name="b"))
            assert isinstance(caught.value.orig, sqlite3.IntegrityError)
            with pytest.raises(OperationalError, match='near "SELEC": syntax error'):
                async with session.begin_nested():
                    await session.execute(text("SELEC 1"))
            with pytest.raises(ProgrammingError, match=r"[Bb]inding"):
                async with session.begin_nested():
                    await (await session.connection()).exec_driver_sql("SELECT ?, ?", (1,))
        assert await scalar(database, COUNT) == 1

    async def test_in_the_middle_of_the_rows(self, database: Database) -> None:
        """A row that fails is an error of the statement, and the rows before it are not given."""
        broken = text("SELECT abs(-9223372036854775807 - x) FROM (SELECT 0 AS x UNION ALL SELECT 1)")
        async with session_scope(database) as session:
            with pytest.raises(DBAPIError, match="integer overflow"):
                await session.execute(broken)
            await session.rollback()
            assert await session.scalar(text("SELECT 1")) == 1

    async def test_at_commit(self, database: Database, sqlite: Backend) -> None:
        """A deferred constraint fails at COMMIT, and everything is rolled back."""
        with pytest.raises(IntegrityError, match="FOREIGN KEY constraint failed"):
            async with session_scope(database) as session:
                session.add(Item(name="a", owner_id=NO_OWNER))
        assert (sqlite.names(), is_locked(sqlite)) == ([], False)

    async def test_of_a_closed_connection(self, database: Database) -> None:
        """It is replaced, as a connection that a server has closed."""
        async with session_scope(database) as session:
            await (await driver(session)).close()
            with pytest.raises(OperationalError, match=r"(?i)connection"):
                await session.scalar(text("SELECT 1"))
            await session.rollback()
            assert await session.scalar(text("SELECT 1")) == 1


class TestTransactions:
    """They begin with the session's first statement, and end when it says so."""

    async def test_what_is_said_of_them(self, database: Database) -> None:
        """By the session, and by the driver."""
        async with session_scope(database) as session:
            assert not session.in_transaction()
            raw = await driver(session)
            assert (session.in_transaction(), raw.in_transaction) == (True, True)
            await session.scalar(COUNT)
            await session.commit()
            assert (session.in_transaction(), raw.in_transaction) == (False, False)
            session.add(Item(name="a"))
            await session.flush()
            assert (session.in_transaction(), raw.in_transaction) == (True, True)
            await session.rollback()
            assert (session.in_transaction(), raw.in_transaction) == (False, False)

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TABLE fresh (id INTEGER)",
            "CREATE TEMP TABLE fresh (id INTEGER)",
            "UPDATE item SET name = 'x' WHERE id = 404",
            "PRAGMA user_version = 7",
            "WITH n(x) AS (SELECT 'w') INSERT INTO item (name) SELECT x FROM n",
            "  insert into item (name) values ('l')",
        ],
    )
    async def test_what_changes_no_row_is_ended_too(
        self, database: Database, sqlite: Backend, statement: str, end: str
    ) -> None:
        """DDL, a temporary table, an UPDATE without rows: the lock is free afterwards, and a rollback undoes it."""
        state = text(
            "SELECT (SELECT count(*) FROM sqlite_master WHERE name = 'fresh')"
            " + (SELECT count(*) FROM sqlite_temp_master WHERE name = 'fresh')"
            " + (SELECT user_version FROM pragma_user_version) + (SELECT count(*) FROM item)"
        )
        async with session_scope(database) as session:
            await session.execute(text(statement))
            assert (await driver(session)).in_transaction
            await getattr(session, end)()
            assert not is_locked(sqlite)
        changed = "UPDATE" not in statement and end == "commit"
        assert bool(await scalar(database, state)) == changed

    async def test_savepoints(self, database: Database, sqlite: Backend) -> None:
        """Each is undone by itself."""
        async with session_scope(database) as session:
            async with session.begin_nested():
                session.add(Item(name="kept"))
            inner = await session.begin_nested()
            session.add(Item(name="lost"))
            await session.flush()
            await inner.rollback()
            assert list(await session.scalars(select(Item.name))) == ["kept"]
        assert sqlite.names() == ["kept"]

    async def test_one_state_is_read(self, database: Database, sqlite: Backend) -> None:
        """What others commit meanwhile is seen by the next transaction, after any of the two ends."""
        async with session_scope(database) as session:
            for number, end in enumerate((session.commit, session.rollback)):
                assert await session.scalar(COUNT) == number
                with sqlite.witness.begin() as connection:
                    connection.execute(insert(Item).values(name=str(number)))
                assert await session.scalar(COUNT) == number
                await end()
            assert await session.scalar(COUNT) == 2

    async def test_a_function_in_a_select_may_write(self, database: Database, sqlite: Backend) -> None:
        """What it wrote is committed with the rest."""
        path = sqlite.url.removeprefix("sqlite:///")
        assert path
        async with session_scope(database) as session:
            raw = await driver(session)

            def write(name: str) -> int:
                return int(raw._conn.execute("INSERT INTO item (name) VALUES (?)", (name,)).rowcount)

            await raw.create_function("write_item", 1, write)
            assert await session.scalar(text("SELECT write_item('a')")) == 1
        assert (sqlite.names(), is_locked(sqlite)) == (["a"], False)

    async def test_autocommit(self, database: Database, sqlite: Backend) -> None:
        """An isolation level of a connection holds until it returns to the pool."""
        async with database.async_engine.connect() as connection:
            # Our begin event still sends BEGIN there, so the level is read, not tried.
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            raw = (await connection.get_raw_connection()).driver_connection
            assert (raw.isolation_level, sqlite.names()) == (None, [])  # type: ignore[union-attr]  # it is not closed
        async with database.async_engine.connect() as connection:
            assert await connection.get_isolation_level() == "SERIALIZABLE"

    async def test_immediate(self, sqlite: Backend, pipelining: bool) -> None:
        """The lock is taken by BEGIN, and kept from others until the end, though nothing is written."""
        database = Database(sqlite.url, transaction_mode="immediate", pipelining=pipelining)
        async with session_scope(database) as session:
            await session.scalar(COUNT)
            assert is_locked(sqlite)
        assert not is_locked(sqlite)
        await database.async_dispose()

    async def test_inside_rolled_back(self, database: Database, sqlite: Backend) -> None:
        """Units see each other's rows, one that fails undoes its own, and none stays."""
        async with rolled_back(database):
            await add(database, "a")
            with pytest.raises(ZeroDivisionError):
                async with session_scope(database) as session:
                    session.add(Item(name="b"))
                    await session.flush()
                    raise ZeroDivisionError
            assert await scalar(database, COUNT) == 1
        assert (sqlite.names(), is_locked(sqlite)) == ([], False)

    async def test_outside_of_sqlalchemys_greenlet(self, database: Database, sqlite: Backend) -> None:
        """Nothing is sent from there, not even later."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # SQLAlchemy does not close what aiosqlite wants awaited
            async with session_scope(database) as session:
                session.sync_session.add(Item(name="a"))
                with pytest.raises(MissingGreenlet):
                    session.sync_session.flush()
                await session.rollback()
            gc.collect()  # now, and not in a later test
        await add(database, "b")
        assert sqlite.names() == ["b"]


class TestResults:
    """What a cursor says of its statement."""

    async def test_rows_and_counts(self, database: Database) -> None:
        """Of one statement, of many, with RETURNING and without."""
        async with session_scope(database) as session:
            connection = await session.connection()
            added = await connection.execute(insert(Item), [{"name": str(number)} for number in range(5)])
            changed = await connection.execute(update(Item).where(Item.id > 2).values(owner_id=None))
            one: Any = await connection.exec_driver_sql("INSERT INTO item (name) VALUES (?)", ("one",))
            returned = (await connection.execute(insert(Item).returning(Item.id, Item.name), {"name": "r"})).all()
            result = await session.execute(select(Item.id, Item.name).order_by(Item.id))
            assert (added.rowcount, changed.rowcount, one.lastrowid) == (5, 3, 6)
            assert (returned, list(result.keys())) == ([(7, "r")], ["id", "name"])
            assert (result.fetchone(), len(result.fetchmany(2)), len(result.all())) == ((1, "0"), 2, 4)

    async def test_the_pools_own_cursor(self, database: Database) -> None:
        """It has what the DB-API promises."""

        def use(connection: Any) -> None:
            cursor = connection.connection.cursor()
            cursor.execute("SELECT 1 AS a, 'x' AS b UNION ALL SELECT 2, 'y' UNION ALL SELECT 3, 'z'")
            assert [column[0] for column in cursor.description] == ["a", "b"]
            assert (cursor.fetchone(), cursor.fetchmany(), list(cursor)) == ((1, "x"), [(2, "y")], [(3, "z")])
            assert (cursor.fetchone(), cursor.fetchall()) == (None, [])
            cursor.close()

        async with database.async_engine.connect() as connection:
            await connection.run_sync(use)

    @pytest.mark.parametrize("size", [1, 7, 1000])
    async def test_streams(self, database: Database, size: int) -> None:
        """Rows come in parts, all of them, and the transaction goes on beside them."""
        async with session_scope(database) as session:
            stream = await session.stream(NUMBERS, {"most": 100}, execution_options={"yield_per": size})
            seen: list[int] = []
            async for part in stream.scalars().partitions(size):
                seen += part
                session.add(Item(name=str(seen[-1])))
                await session.flush()
            assert seen == list(range(1, 101))
            assert await session.scalar(COUNT) == -(-100 // size)

    async def test_a_stream_without_an_end(self, database: Database, sqlite: Backend) -> None:
        """It takes no more than was asked for, it can be given up, and then holds nothing."""
        async with session_scope(database) as session:
            stream = await session.stream(NUMBERS, {"most": 1 << 60}, execution_options={"yield_per": 10})
            async for (number,) in stream:
                if number == 25:
                    break
            await stream.close()
            session.add(Item(name="a"))
        assert (sqlite.names(), is_locked(sqlite)) == (["a"], False)

    async def test_a_stream_that_fails_or_writes(self, database: Database, sqlite: Backend) -> None:
        """The error comes with its row; what RETURNING streams is committed."""
        broken = "SELECT abs(-9223372036854775807 - x) FROM (SELECT 0 AS x UNION ALL SELECT 1)"
        async with session_scope(database) as session:
            with pytest.raises(DBAPIError, match="integer overflow"):
                await (await session.stream(text(broken), execution_options={"yield_per": 1})).all()
            await session.rollback()
            rows = await session.stream(text("INSERT INTO item (name) VALUES ('a'), ('b') RETURNING name"))
            assert sorted(await rows.scalars().all()) == ["a", "b"]
        assert sqlite.names() == ["a", "b"]


class TestWaiting:
    """The event loop waits for nothing, and nothing waits for ever."""

    async def test_a_long_read(self, database: Database) -> None:
        """Other tasks run meanwhile."""
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        rows = await scalar(database, text(f"SELECT count(*) FROM ({NUMBERS.text})"), most=1_000_000)
        ticking.cancel()
        assert rows == 1_000_000
        assert ticks >= 5

    @pytest.mark.parametrize("how", ["cancel", "timeout"])
    @pytest.mark.parametrize("writes", [True, False], ids=["writing", "reading"])
    async def test_a_cancelled_statement(self, database: Database, sqlite: Backend, how: str, writes: bool) -> None:
        """Its work is rolled back, its connection is not used again, and the next one works."""
        raws: list[Any] = []

        async def work() -> None:
            async with session_scope(database) as session:
                raws.append(await driver(session))
                if writes:
                    session.add(Item(name="lost"))
                    await session.flush()
                await session.scalar(text(f"SELECT count(*) FROM ({NUMBERS.text})"), {"most": 5_000_000})

        if how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await work()
        else:
            task = asyncio.ensure_future(work())
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with session_scope(database) as session:
            raws.append(await driver(session))
            assert await session.scalar(COUNT) == 0
        assert raws[0] is not raws[1]
        await add(database, "next")
        assert sqlite.names() == ["next"]

    @pytest.mark.parametrize("when", ["at work", "before it begins", "in a fetch"])
    async def test_a_cancelled_statement_ends_at_once(self, database: Database, when: str) -> None:
        """It is interrupted, so its thread ends with it."""
        raws: list[Any] = []

        async def work() -> None:
            async with session_scope(database) as session:
                raws.append(await driver(session))
                if when == "before it begins":
                    raws[0]._tx.put_nowait((None, partial(time.sleep, 0.3)))
                if when != "in a fetch":
                    await session.scalar(FOR_EVER)
                found = await session.stream(ONE_ROW, execution_options={"yield_per": 1})
                assert await found.fetchone() == (1,)
                await found.fetchone()

        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work(), 0.1)
        assert time.monotonic() - begun < 1.5
        thread = getattr(raws[0], "_thread", raws[0])  # an older connection is one
        assert wait_until(lambda: not thread.is_alive())
        assert await scalar(database, text("SELECT 1")) == 1

    async def test_a_commit_that_is_cancelled_before_its_flush_was_sent(self, database: Database) -> None:
        """Its work is rolled back, and not in doubt."""
        told: list[str] = []

        async def work() -> None:
            async with session_scope(database) as session:
                raw = await driver(session)
                current_unit().on_rollback(told.append, "rolled back")
                session.add(Item(name="a"))
                raw._tx.put_nowait((None, partial(time.sleep, 0.3)))
                await session.commit()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work(), 0.1)
        assert told == ["rolled back"]
        assert await scalar(database, COUNT) == 0

    async def test_a_cancelled_statement_of_an_engine_of_ones_own(self, sqlite: Backend) -> None:
        """It ends at once as well, although nothing of its adapter is ours."""
        engine = create_async_engine(sqlite.url.replace("sqlite", "sqlite+aiosqlite", 1))
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scalar(Database(async_engine=engine), FOR_EVER), 0.1)
        assert time.monotonic() - begun < 1.5
        await engine.dispose()

    @pytest.mark.parametrize("journal", ["delete", "wal"])
    @pytest.mark.parametrize("writes", [True, False])
    async def test_a_cancelled_stream_lets_others_write(
        self, database: Database, sqlite: Backend, writes: bool, journal: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """At once, and not when the collector has freed what it was reading with; its own work is rolled back."""
        with sqlite.witness.connect() as witness:
            witness.exec_driver_sql(f"PRAGMA journal_mode={journal}")
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900000) SELECT i FROM n"
        kept: list[Any] = []  # as the traceback of an error keeps it

        async def read() -> None:
            async with session_scope(database) as session:
                if writes:
                    session.add(Item(name="lost"))
                    await session.flush()
                counting = text(f"SELECT i, (SELECT count(*) FROM item) FROM ({numbers})")
                rows = await session.stream(counting, execution_options={"yield_per": 1})
                kept.append(rows)
                async for _ in rows:
                    reading.set()

        reading = asyncio.Event()
        gc.disable()
        try:
            task = asyncio.ensure_future(read())
            await reading.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            kept.append(caught.value)
            async with asyncio.timeout(5):
                while not can_write(sqlite):  # noqa: ASYNC110  # no event tells of it
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()
        assert sqlite.names() == ["written"]
        assert [record for record in caplog.records if record.name == "asgi_sqla"] == []

    async def test_a_cancelled_stream(self, database: Database) -> None:
        """The connection of a cancelled fetch is not used again."""

        async def work() -> None:
            async with session_scope(database) as session:
                await session.scalar(COUNT)
                stream = await session.stream(NUMBERS, {"most": 1 << 60}, execution_options={"yield_per": 100})
                async for _row in stream:
                    await asyncio.sleep(0)

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work(), 0.1)
        assert await scalar(database, text("SELECT 1")) == 1

    async def test_a_locked_database(self, sqlite: Backend, pipelining: bool) -> None:
        """A writer waits as long as the busy timeout says, others run meanwhile, and a reader need not wait."""
        options = {"connect_args": {"timeout": 0.3}}
        database = Database(sqlite.url, pipelining=pipelining, engine_options=options)
        assert await scalar(database, COUNT) == 0
        with sqlite.witness.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            begun = time.monotonic()
            writing = asyncio.ensure_future(add(database, "a"))
            assert await scalar(database, COUNT) == 0
            assert not writing.done()
            with pytest.raises(OperationalError, match="database is locked"):
                await writing
            assert 0.25 < time.monotonic() - begun < 5
            connection.exec_driver_sql("ROLLBACK")
        await add(database, "b")
        assert sqlite.names() == ["b"]
        await database.async_dispose()

    async def test_fifty_writers(self, sqlite: Backend, pipelining: bool) -> None:
        """Each waits for its turn, and none is lost."""
        sizes = {"pool_size": 10, "max_overflow": 0, "connect_args": {"timeout": 60}}
        database = Database(sqlite.url, pipelining=pipelining, engine_options=sizes)
        await asyncio.gather(*(add(database, f"{number:02}") for number in range(50)))
        assert sqlite.names() == [f"{number:02}" for number in range(50)]
        await database.async_dispose()

    async def test_a_full_disk(self, database: Database, sqlite: Backend) -> None:
        """It is an error, nothing of the transaction stays, and a smaller one succeeds."""
        async with session_scope(database) as session:
            pages = await session.scalar(text("PRAGMA page_count"))
            await session.execute(text(f"PRAGMA max_page_count = {pages}"))
        with pytest.raises(OperationalError, match="database or disk is full"):
            async with session_scope(database) as session:
                await session.execute(insert(Item), [{"name": f"{number:0200}"} for number in range(500)])
        assert (sqlite.names(), is_locked(sqlite)) == ([], False)
        await add(database, "small")
        assert sqlite.names() == ["small"]


class TestTheDriver:
    """What an application does with the driver's own connection."""

    async def test_it_is_that_of_aiosqlite(self, database: Database, sqlite: Backend) -> None:
        """Its methods work, in the session's transaction."""
        seen: list[str] = []
        async with session_scope(database) as session:
            raw = await driver(session)
            assert isinstance(raw, aiosqlite.Connection)
            await raw.set_trace_callback(seen.append)
            async with raw.execute("INSERT INTO item (name) VALUES (?)", ("raw",)) as cursor:
                assert cursor.rowcount == 1
            assert list(await raw.execute_fetchall("SELECT name FROM item")) == [("raw",)]
            await raw.execute("CREATE TABLE fresh (id INTEGER)")
            assert raw.total_changes == 1
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                await raw.execute("SELECT * FROM missing")
            raw.row_factory = sqlite3.Row
            assert [row["name"] for row in await raw.execute_fetchall("SELECT name FROM item")] == ["raw"]
            raw.row_factory = None
            await raw.set_trace_callback(None)  # type: ignore[arg-type]  # sqlite3 takes it
        assert any(statement.startswith("INSERT") for statement in seen)
        assert (sqlite.names(), is_locked(sqlite)) == (["raw"], False)

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    async def test_what_it_does_to_a_transaction(self, database: Database, sqlite: Backend, end: str) -> None:
        """A table that only the driver knows of is committed or rolled back with the session's."""
        async with session_scope(database) as session:
            await session.scalar(COUNT)
            await (await driver(session)).execute("CREATE TABLE fresh (id INTEGER)")
            await getattr(session, end)()
            assert not is_locked(sqlite)
            tables = await session.scalar(text("SELECT count(*) FROM sqlite_master WHERE name = 'fresh'"))
            assert tables == (end == "commit")

    async def test_at_once_with_the_session(self, database: Database) -> None:
        """The session's calls wait for what the driver is doing."""
        counted = NUMBERS.text.replace(":most", "300000")
        async with session_scope(database) as session:
            raw = await driver(session)
            slow = asyncio.ensure_future(raw.execute_fetchall(f"SELECT count(*) FROM ({counted})"))
            await asyncio.sleep(0)
            await session.commit()
            assert await session.scalar(text("SELECT 1")) == 1
            assert await slow == [(300000,)]

    async def test_functions(self, database: Database) -> None:
        """They can be made for each new connection; one that fails is an error of its statement."""

        def broken() -> None:
            raise ZeroDivisionError

        @event.listens_for(database.async_engine.sync_engine, "connect")
        def connected(adapted: Any, _record: object) -> None:
            adapted.create_function("twice", 1, lambda value: value * 2, deterministic=True)
            adapted.run_async(lambda raw: raw.create_function("broken", 0, broken))
            assert adapted.run_async(lambda raw: raw.execute_fetchall("SELECT twice(4)")) == [(8,)]

        assert await scalar(database, text("SELECT twice(21)")) == 42
        assert await scalar(database, text("SELECT 'abc' REGEXP 'b.'")) == 1
        with pytest.raises(OperationalError, match="user-defined function raised exception"):
            await scalar(database, text("SELECT broken()"))

    async def test_the_engines_end(self, database: Database) -> None:
        """Disposing closes the connection and ends its thread."""
        before = threading.active_count()
        async with session_scope(database) as session:
            raw = await driver(session)
            assert threading.active_count() == before + 1
        await database.async_dispose()
        with pytest.raises(ValueError, match="no active connection"):
            assert raw.in_transaction
        assert wait_until(lambda: threading.active_count() == before)


class TestPlaces:
    """Databases in memory, other loops, other processes."""

    async def test_memory(self, pipelining: bool) -> None:
        """One database for sync and async sessions, with transactions of their own."""
        database = Database("sqlite://", pipelining=pipelining)
        Base.metadata.create_all(database.engine)
        await add(database, "async")
        async with session_scope(database) as session:
            assert await session.scalar(COUNT) == 1
            async with database.async_sessionmaker() as other:
                other.add(Item(name="uncommitted"))
                await other.flush()
                await other.rollback()
        with session_scope(database) as sync_session:
            sync_session.add(Item(name="sync"))
        assert await scalar(database, COUNT) == 2
        await database.async_dispose()

    def test_a_loop_that_has_gone(self, sqlite: Backend, pipelining: bool) -> None:
        """What it left open holds no lock, and the next loop works."""
        database = Database(sqlite.url, pipelining=pipelining)

        async def leave_open() -> None:
            session = database.async_sessionmaker()
            session.add(Item(name="lost"))
            await session.flush()
            kept.append(session)

        kept: list[Any] = []
        asyncio.run(leave_open())
        assert wait_until(lambda: not is_locked(sqlite))
        asyncio.run(add(database, "next"))
        assert sqlite.names() == ["next"]
        kept.clear()
        database.dispose()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
    def test_a_forked_child(self, sqlite: Backend, pipelining: bool) -> None:
        """It has connections and threads of its own, and leaves the parent's alone."""
        program = f"""
import asyncio, os, warnings
from asgi_sqla import Database, session_scope
from sqlalchemy import text
warnings.simplefilter("ignore")
database = Database({sqlite.url!r}, pipelining={pipelining})
async def add(name):
    async with session_scope(database) as session:
        await session.execute(text("INSERT INTO item (name) VALUES (:name)"), {{"name": name}})
async def main():
    await add("before")
    child = os.fork()
    if not child:
        asyncio.events._set_running_loop(None)
        asyncio.set_event_loop(asyncio.new_event_loop())
        try:
            asyncio.get_event_loop().run_until_complete(asyncio.wait_for(add("child"), 10))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    await add("after")
    await database.async_dispose()
asyncio.run(main())
"""
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
        assert sqlite.names() == ["after", "before", "child"]

    async def test_a_dropped_connection_is_freed(self, database: Database) -> None:
        """The idle thread of a connection keeps neither it nor the rows of its last statement alive."""
        async with session_scope(database) as session:
            raw = weakref.ref(await driver(session))
            await session.scalar(COUNT)
        await database.async_engine.dispose()
        del session
        until = time.monotonic() + 10
        while raw() is not None and time.monotonic() < until:
            await asyncio.sleep(0.01)  # its thread answers the loop once more
            gc.collect()
        assert raw() is None


class Counting:
    """Counts what is put into the queue of a thread."""

    def __init__(self, queue: SimpleQueue[Any]) -> None:
        self._queue = queue
        self.turns = 0

    def put_nowait(self, item: Any) -> None:
        """Count, and put."""
        self.turns += 1
        self._queue.put_nowait(item)


async def read(session: AsyncSession) -> None:
    """Read."""
    await session.scalar(COUNT)


async def write(session: AsyncSession) -> None:
    """Write."""
    session.add(Item(name="a"))


async def read_a_stream(session: AsyncSession) -> None:
    """Read all rows of a stream in two parts."""
    stream = await session.stream(NUMBERS, {"most": 20}, execution_options={"yield_per": 15})
    assert [len(part) async for part in stream.partitions(15)] == [15, 5]


@pipelined
class TestOurs:
    """What is not as it was."""

    @pytest.fixture
    def pipelining(self) -> bool:
        return True

    @pytest.mark.parametrize(("work", "turns"), [(read, 1), (write, 2), (read_a_stream, 6)])
    async def test_turns(self, database: Database, monkeypatch: pytest.MonkeyPatch, work: Any, turns: int) -> None:
        """A statement takes one turn of the thread, and so does the COMMIT of a write; nothing else takes any."""
        async with session_scope(database) as session:
            raw = await driver(session)
            await session.scalar(COUNT)
        counting = Counting(raw._tx)
        monkeypatch.setattr(raw, "_tx", counting)
        async with session_scope(database) as session:
            await work(session)
        assert counting.turns == turns

    async def test_a_statement_that_is_cancelled_before_it_begins(self, database: Database, sqlite: Backend) -> None:
        """It is not executed."""
        async with session_scope(database) as session:
            raw = await driver(session)
            slow = asyncio.ensure_future(raw._execute(time.sleep, 0.2))
            await asyncio.sleep(0)
            adding = asyncio.ensure_future(session.execute(text("INSERT INTO item (name) VALUES ('a')")))
            await asyncio.sleep(0.05)
            adding.cancel()
            with pytest.raises(asyncio.CancelledError):
                await adding
            await asyncio.gather(slow, return_exceptions=True)
            await session.rollback()
        assert sqlite.names() == []

    async def test_an_idle_thread_keeps_no_rows(self, database: Database) -> None:
        """What a statement returned is gone when its user has dropped it."""

        class Text(str):
            """Text that can be referred to weakly."""

            __slots__ = ("__weakref__",)

        async with session_scope(database) as session:
            raw = await driver(session)
            raw.text_factory = lambda value: Text(value.decode())
            result = (await session.execute(text("SELECT 'a'"))).scalar()
            ref = weakref.ref(result)
            del result
            gc.collect()
            assert ref() is None
            raw.text_factory = str

    @pytest.mark.parametrize(
        ("query", "options", "taken"),
        [
            ("", {"factory": sqlite3.Connection}, True),
            ("", {"check_same_thread": True}, False),
            ("?cache=shared&uri=true", {}, False),
        ],
    )
    async def test_arguments_of_sqlite3(
        self, sqlite: Backend, query: str, options: dict[str, Any], taken: bool
    ) -> None:
        """The plain adapter is for a connection of one thread, and for one that waits for the cache of others."""
        url = sqlite.url.replace("sqlite:///", "sqlite:///file:") + query if query else sqlite.url
        database = Database(url, engine_options={"connect_args": options})
        async with session_scope(database) as session:
            assert await session.scalar(COUNT) == 0
            assert isinstance(await driver(session), ours.TurnTaking) == taken
        await database.async_dispose()

    async def test_a_creator_of_ones_own(self, sqlite: Backend) -> None:
        """What it returns is left as it is."""

        async def create() -> aiosqlite.Connection:
            return await aiosqlite.connect(sqlite.url.removeprefix("sqlite:///"), check_same_thread=False)

        database = Database(sqlite.url, async_engine_options={"async_creator": create})
        async with session_scope(database) as session:
            assert type(await driver(session)) is aiosqlite.Connection
            session.add(Item(name="a"))
        assert sqlite.names() == ["a"]
        await database.async_dispose()

    @pytest.mark.parametrize("what", ["VERSION", "PRIVATE", "_ATTRIBUTES"])
    async def test_an_unknown_aiosqlite(
        self, sqlite: Backend, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is used the plain way, and a line at DEBUG says why."""
        other = {"VERSION": "99.0.1", "PRIVATE": ((AsyncSession, ("missing",)),), "_ATTRIBUTES": ("missing",)}
        monkeypatch.setattr(ours, what, other[what])
        room._room.cache_clear()
        caplog.set_level(logging.DEBUG, "asgi_sqla")
        database = Database(sqlite.url)
        async with session_scope(database) as session:
            assert type(await driver(session)) is aiosqlite.Connection
        room._room.cache_clear()
        await database.async_dispose()
        assert "is used the plain way" in caplog.text
