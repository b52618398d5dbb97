"""BEGIN travels with the first statement: an application observes the same with it and without it.

Each case runs on a plain engine and on one of ours, with the same assertions. A case is a function of a sync session,
which an AsyncSession runs in its greenlet, so it is written once for all drivers.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import bindparam, event, insert, make_url, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.orm import Session
from support.databases import Backend, Item, make_backend
from support.marks import WAYS, pipelined
from support.tls import tls
from support.wire import wire

from asgi_sqla import Database, session_scope
from asgi_sqla.engine import asyncpg as asyncpg_room
from asgi_sqla.engine import pipelining as room
from asgi_sqla.engine import psycopg as psycopg_room
from asgi_sqla.engine.asyncpg_messages import unsynced

DRIVERS = [("asyncpg", "async"), ("psycopg", "async"), ("psycopg", "sync")]
ANSWER = text("SELECT CAST(:value AS integer)")
"""With a parameter, for psycopg sends a statement without one by the simple protocol."""


class Place:
    """A database with one connection, and how to run a case on it."""

    def __init__(self, backend: Backend, kind: str, pipelining: bool) -> None:
        self.backend = backend
        self.kind = kind
        self.pipelining = pipelining
        self.database = self.other(backend.url)

    def other(self, url: str, **options: Any) -> Database:
        """Return another database with the same settings."""
        sizes = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
        return Database(url, pipelining=self.pipelining, engine_options={**sizes, **options})

    async def run(self, case: Callable[[Session], Any], database: Database | None = None, **options: Any) -> Any:
        """Return what ``case`` returns for a new session, which is closed afterwards."""
        database = database or self.database
        if self.kind == "async":
            async with database.async_sessionmaker(**options) as session:
                return await session.run_sync(case)

        def in_thread() -> Any:
            with database.sessionmaker(**options) as session:
                return case(session)

        return await asyncio.to_thread(in_thread)

    @property
    def engine(self) -> Any:
        """The sync core of the engine in use."""
        return self.database.engine if self.kind == "sync" else self.database.async_engine.sync_engine

    def raw(self, session: Session) -> Any:
        """Return the driver's own connection."""
        return session.connection().connection.driver_connection

    def on_raw(self, session: Session, call: Callable[[Any], Any]) -> Any:
        """Return what ``call(driver's connection)`` returns or resolves to."""
        dbapi: Any = session.connection().connection.dbapi_connection
        return dbapi.run_async(call) if self.kind == "async" else call(dbapi)


@pytest.fixture(params=WAYS, ids=["pipelined", "plain"])
def pipelining(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=DRIVERS, ids=["-".join(one) for one in DRIVERS])
async def place(request: pytest.FixtureRequest, pipelining: bool, tmp_path: Path) -> AsyncIterator[Place]:
    name, kind = request.param
    backend = make_backend(name, tmp_path)
    place = Place(backend, kind, pipelining)
    yield place
    assert place.engine.pool.checkedout() == 0
    await place.database.async_dispose()
    backend.witness.dispose()


def answer(session: Session, value: int) -> int:
    """Return ``value``, from the database."""
    return int(session.execute(ANSWER, {"value": value}).scalar_one())


def sqlstate(failure: DBAPIError) -> str:
    """Return the SQLSTATE of what the driver raised."""
    found = getattr(failure.orig, "sqlstate", None) or getattr(failure.orig, "pgcode", None)
    return str(found)


def fails(session: Session, statement: Any, parameters: Any = None) -> str:
    """Return the SQLSTATE of the error that ``statement`` raises."""
    with pytest.raises(DBAPIError) as caught:
        session.execute(statement, parameters)
    return sqlstate(caught.value)


async def test_statements_are_in_one_transaction(place: Place) -> None:
    """The second sees the time at which the first began, and the session is in a transaction between them."""

    def case(session: Session) -> None:
        before = session.in_transaction()
        now = text("SELECT now(), CAST(:value AS integer)")
        first = session.execute(now, {"value": 1}).scalar_one()
        session.execute(text("SELECT pg_sleep(0.01)"))
        second = session.execute(now, {"value": 2}).scalar_one()
        assert (before, session.in_transaction(), second) == (False, True, first)
        session.add(Item(name="kept"))
        session.commit()
        session.add(Item(name="given up"))
        session.flush()
        session.rollback()

    await place.run(case)

    assert place.backend.names() == ["kept"]


async def test_a_first_statement_that_fails(place: Place) -> None:
    """Its error is its own; the transaction is failed until the rollback."""

    def case(session: Session) -> None:
        assert fails(session, text("SELECT 1 / CAST(:zero AS integer)"), {"zero": 0}) == "22012"
        assert fails(session, ANSWER, {"value": 1}) == "25P02"
        session.rollback()
        assert answer(session, 2) == 2
        session.commit()

    await place.run(case)


async def test_a_first_statement_that_cannot_be_parsed(place: Place) -> None:
    def case(session: Session) -> None:
        assert fails(session, text("SELEC CAST(:value AS integer)"), {"value": 1}) == "42601"
        session.rollback()
        assert answer(session, 3) == 3

    await place.run(case)


@pytest.mark.parametrize("handled", ["rolled back", "gone on"])
async def test_a_first_statement_that_the_driver_refuses(place: Place, handled: str) -> None:
    """Nothing of it is sent; the transaction has begun all the same, and goes on."""

    def case(session: Session) -> None:
        with pytest.raises(DBAPIError):
            session.execute(ANSWER, {"value": object()})
        if handled == "rolled back":
            session.rollback()
        session.add(Item(name="after it"))
        session.flush()
        assert place.backend.names() == []
        session.commit()

    await place.run(case)

    assert place.backend.names() == ["after it"]


async def test_too_many_parameters(place: Place) -> None:
    """The limit is 65,535, or 32,767 with asyncpg."""
    statement = select(Item.id).where(Item.id.in_(range(65_536)))

    def case(session: Session) -> None:
        with pytest.raises(DBAPIError):
            session.execute(statement)
        session.rollback()
        assert answer(session, 4) == 4

    await place.run(case)

    assert place.backend.names() == []


async def test_a_savepoint_first(place: Place) -> None:
    def case(session: Session) -> None:
        with session.begin_nested():
            session.add(Item(name="first"))
        savepoint = session.begin_nested()
        session.add(Item(name="first"))
        with pytest.raises(IntegrityError):
            session.flush()
        savepoint.rollback()
        session.add(Item(name="second"))
        session.commit()

    await place.run(case)

    assert place.backend.names() == ["first", "second"]


async def test_a_server_side_cursor_first(place: Place) -> None:
    """Asyncpg refuses one where the server has not said yet that a transaction is open."""

    def case(session: Session) -> None:
        session.add_all([Item(name=f"item {number}") for number in range(5)])
        session.commit()
        read = select(Item.name).where(Item.name != bindparam("other", "none")).execution_options(yield_per=2)
        assert len(list(session.execute(read).scalars())) == 5
        session.commit()
        assert answer(session, 5) == 5

    await place.run(case)


async def test_many_rows_first(place: Place) -> None:
    def case(session: Session) -> None:
        session.execute(text("INSERT INTO item(name) VALUES (:name)"), [{"name": "one"}, {"name": "two"}])
        assert place.backend.names() == []
        session.commit()
        with pytest.raises(IntegrityError):
            session.execute(text("INSERT INTO item(name) VALUES (:name)"), [{"name": "three"}, {"name": "two"}])
        session.rollback()

    await place.run(case)

    assert place.backend.names() == ["one", "two"]


async def test_several_statements_in_one(place: Place) -> None:
    """Psycopg sends them by the simple protocol; asyncpg refuses them."""

    def case(session: Session) -> Any:
        try:
            result = session.execute(text("INSERT INTO item(name) VALUES ('one'); SELECT 1"))
        except ProgrammingError as exc:
            return sqlstate(exc)
        assert place.backend.names() == []
        session.commit()
        return result.closed

    found = await place.run(case)

    assert (found, place.backend.names()) == (("42601", []) if place.backend.name == "asyncpg" else (False, ["one"]))


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_an_isolation_level(place: Place, level: str) -> None:
    """It is the same from the first statement on, and that of the engine again afterwards."""
    shown = text("SELECT current_setting(:name)")
    name = {"name": "transaction_isolation"}

    def case(session: Session) -> None:
        session.connection(execution_options={"isolation_level": level})
        assert session.execute(shown, name).scalar_one() == level.lower()
        session.commit()
        assert session.execute(shown, name).scalar_one() == "read committed"

    await place.run(case)


async def test_a_transaction_that_only_reads(place: Place) -> None:
    def case(session: Session) -> None:
        session.connection(execution_options={"postgresql_readonly": True, "postgresql_deferrable": True})
        shown = text("SELECT current_setting(:name)")
        assert session.execute(shown, {"name": "transaction_read_only"}).scalar_one() == "on"
        assert session.execute(shown, {"name": "transaction_deferrable"}).scalar_one() == "on"
        assert fails(session, insert(Item).values(name="refused")) == "25006"
        session.rollback()

    await place.run(case)


async def test_a_cancelled_statement(place: Place) -> None:
    """The server cancels the first statement: it fails, and the connection goes on."""
    cancelled = threading.Event()
    cancelling = text(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(%' AND state = 'active'"
    )

    def cancel() -> None:
        while not cancelled.wait(0.01):  # again, as it may have been asked for before the statement ran
            with place.backend.witness.connect() as witness:  # a transaction sees one state of the server
                witness.execute(cancelling)

    def case(session: Session) -> None:
        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            assert fails(session, text("SELECT pg_sleep(CAST(:value AS integer))"), {"value": 30}) == "57014"
        finally:
            cancelled.set()
            thread.join()
        session.rollback()
        assert answer(session, 6) == 6

    await place.run(case)


async def test_a_cancelled_task(place: Place) -> None:
    """The connection of a cancelled first statement is not used again in the middle of it."""
    if place.kind == "sync":
        pytest.skip("a thread cannot be cancelled")
    async with place.database.async_sessionmaker() as session:
        task = asyncio.ensure_future(session.execute(text("SELECT pg_sleep(CAST(:value AS integer))"), {"value": 30}))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert await place.run(lambda session: answer(session, 7)) == 7


async def test_a_long_statement(place: Place) -> None:
    """One that is longer than what the network takes at once, and one whose answer is; then the connection goes on."""
    length = 20_000_000

    def case(session: Session) -> None:
        assert session.scalar(text("SELECT length(CAST(:value AS text))"), {"value": "x" * length}) == length
        session.rollback()
        assert session.scalar(text("SELECT repeat('x', :value)"), {"value": length}) == "x" * length
        assert answer(session, 8) == 8

    await place.run(case)


async def test_a_killed_backend(place: Place) -> None:
    """The first statement on its connection fails as on a lost one, and the next session has a new one."""
    await place.run(lambda session: answer(session, 1))
    assert place.backend.terminate() >= 1  # one that the test before has closed may still be there

    def case(session: Session) -> bool:
        with pytest.raises(DBAPIError) as caught:
            answer(session, 1)
        session.rollback()
        return bool(caught.value.connection_invalidated)

    assert await place.run(case)
    assert await place.run(lambda session: answer(session, 8)) == 8


async def test_notices(place: Place) -> None:
    """The driver reports what the server says, which has nothing to say of BEGIN."""
    said: list[str] = []
    raising = text("DO $$ BEGIN RAISE NOTICE 'said'; END $$")

    def case(session: Session) -> None:
        raw = place.raw(session)
        if place.backend.name == "asyncpg":
            raw.add_log_listener(lambda _connection, message: said.append(message.message))
        else:
            raw.add_notice_handler(lambda diagnostic: said.append(str(diagnostic.message_primary)))
        for _ in range(2):
            answer(session, 1)
            session.execute(raising)
            session.commit()

    await place.run(case)
    await asyncio.sleep(0)  # asyncpg calls its listeners in the next turn of the event loop

    assert said == ["said", "said"]


async def test_a_transaction_of_the_driver_inside(place: Place) -> None:
    """It is a savepoint, as the driver knows that a transaction is open."""

    def case(session: Session) -> None:
        answer(session, 1)

        async def insert_async(raw: Any) -> None:
            async with raw.transaction():
                await raw.execute("INSERT INTO item(name) VALUES ('inside')")

        def insert_sync(raw: Any) -> None:
            with raw.transaction():
                raw.execute("INSERT INTO item(name) VALUES ('inside')")

        place.on_raw(session, insert_async if place.kind == "async" else insert_sync)
        assert place.backend.names() == []
        session.rollback()

    await place.run(case)

    assert place.backend.names() == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_copy_inside(place: Place, end: str) -> None:
    def case(session: Session) -> None:
        answer(session, 1)

        async def copy_asyncpg(raw: Any) -> None:
            await raw.copy_records_to_table("item", records=[(1, "copied")], columns=["id", "name"])

        async def copy_async(raw: Any) -> None:
            async with raw.cursor() as cursor, cursor.copy("COPY item(id, name) FROM STDIN") as copy:
                await copy.write_row((1, "copied"))

        def copy_sync(raw: Any) -> None:
            with raw.cursor() as cursor, cursor.copy("COPY item(id, name) FROM STDIN") as copy:
                copy.write_row((1, "copied"))

        copies: dict[Any, Any] = {("asyncpg", "async"): copy_asyncpg, ("psycopg", "async"): copy_async}
        place.on_raw(session, copies.get((place.backend.name, place.kind), copy_sync))
        getattr(session, end)()

    await place.run(case)

    assert place.backend.names() == (["copied"] if end == "commit" else [])


async def test_a_begin_that_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its statement is not executed, and neither is the next one outside a transaction.

    No database here refuses BEGIN, as a standby refuses SERIALIZABLE; so what is sent is spoilt.
    """
    if not place.pipelining:
        pytest.skip("without pipelining no statement is sent with BEGIN")
    answer_before = await place.run(lambda session: answer(session, 1))
    spoilt = b"BEGIN nonsense"
    monkeypatch.setattr(asyncpg_room, "begin", lambda *_: unsynced("BEGIN nonsense"))

    def case(session: Session) -> None:
        if place.backend.name == "psycopg":
            place.raw(session)._begin_statement = spoilt
        for _ in range(2):
            assert fails(session, insert(Item).values(name="outside")) == "42601"
        monkeypatch.undo()
        if place.backend.name == "psycopg":
            place.raw(session)._begin_statement = b"BEGIN"
        session.execute(insert(Item).values(name="inside"))
        assert place.backend.names() == []
        session.rollback()
        assert answer(session, 9) == 9

    await place.run(case)

    assert (answer_before, place.backend.names()) == (1, [])


ROWS = "SELECT n FROM generate_series(1, {}) n ORDER BY n"
FETCHES: list[tuple[int, list[tuple[str, Any]]]] = [
    (5, [("fetchone", ()), ("fetchone", ()), ("fetchmany", (2,)), ("fetchall", ())]),
    (5, [("fetchall", ()), ("fetchall", ()), ("fetchone", ())]),
    (5, [("fetchmany", (5,)), ("fetchmany", (5,)), ("fetchmany", (5,))]),
    (5, [("fetchmany", (9,)), ("fetchone", ())]),
    (5, [("fetchone", ()), ("scroll", (2,)), ("fetchone", ()), ("scroll", (0, "absolute")), ("fetchmany", (2,))]),
    (5, [("scroll", (1,)), ("fetchone", ()), ("fetchall", ()), ("scroll", (-2,)), ("fetchone", ())]),
    (1, [("fetchone", ()), ("fetchone", ())]),
    (0, [("fetchone", ()), ("fetchall", ())]),
]
"""How many rows there are, and calls of a cursor."""


@pytest.mark.parametrize(("count", "calls"), FETCHES)
async def test_a_cursor_of_psycopg_on_the_server(place: Place, count: int, calls: list[tuple[str, Any]]) -> None:
    """Its calls return the same rows; its first row may have come with DECLARE."""
    if place.backend.name != "psycopg":
        pytest.skip("asyncpg has no such cursor")
    scrolls = any(name == "scroll" for name, _ in calls)

    async def fetch_async(raw: Any) -> list[Any]:
        async with raw.cursor("rows", scrollable=scrolls) as cursor:
            await cursor.execute(ROWS.format("%s"), (count,))
            return [[d.name for d in cursor.description], *[await getattr(cursor, name)(*args) for name, args in calls]]

    def fetch_sync(raw: Any) -> list[Any]:
        with raw.cursor("rows", scrollable=scrolls) as cursor:
            cursor.execute(ROWS.format("%s"), (count,))
            return [[d.name for d in cursor.description], *[getattr(cursor, name)(*args) for name, args in calls]]

    def case(session: Session) -> tuple[list[Any], list[Any]]:
        fetch = fetch_async if place.kind == "async" else fetch_sync
        first = place.on_raw(session, fetch)  # in the transaction that it begins
        return first, place.on_raw(session, fetch)  # in one that has begun

    first, second = await place.run(case)

    assert first == second
    assert first[0] == ["n"]


async def test_a_cursor_of_psycopg_without_its_parameter(place: Place) -> None:
    """The error is psycopg's own, and the transaction begins all the same."""
    if place.backend.name != "psycopg":
        pytest.skip("asyncpg has no such cursor")

    async def fetch_async(raw: Any) -> None:
        async with raw.cursor("rows") as cursor:
            await cursor.execute("SELECT %s", ())

    def fetch_sync(raw: Any) -> None:
        with raw.cursor("rows") as cursor:
            cursor.execute("SELECT %s", ())

    def case(session: Session) -> str:
        with pytest.raises(psycopg.ProgrammingError, match="placeholder"):
            place.on_raw(session, fetch_async if place.kind == "async" else fetch_sync)
        return str(place.raw(session).info.transaction_status.name)

    assert await place.run(case) == "INTRANS"


@pytest.mark.parametrize(
    ("sql", "state"),
    [("SELECT nothing FROM nowhere", "42P01"), ("SELECT 1 / (n - 1) FROM generate_series(1, 3) n", "22012")],
    ids=["DECLARE", "its first row"],
)
async def test_a_stream_that_fails(place: Place, sql: str, state: str) -> None:
    """The error is the call's own, and the connection is good after the rollback."""

    def case(session: Session) -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011  # SQLAlchemy does not wrap what asyncpg raises here
            session.scalars(text(sql).execution_options(yield_per=2)).all()
        assert getattr(getattr(caught.value, "orig", caught.value), "sqlstate", None) == state
        assert fails(session, ANSWER, {"value": 1}) == "25P02"
        session.rollback()
        stream = text("SELECT n FROM generate_series(1, :many) n").execution_options(yield_per=2)
        assert session.scalars(stream, {"many": 5}).all() == [1, 2, 3, 4, 5]
        session.add(Item(name="kept"))
        session.commit()

    await place.run(case)

    assert place.backend.names() == ["kept"]


async def test_a_transaction_that_the_driver_has_begun(place: Place) -> None:
    """Asyncpg begins none inside one that it has not begun itself; psycopg goes on in it."""

    def case(session: Session) -> str | None:
        async def begin_async(raw: Any) -> None:
            await raw.execute("BEGIN")

        place.on_raw(session, begin_async if place.kind == "async" else lambda raw: raw.execute("BEGIN"))
        try:
            answer(session, 1)
        except DBAPIError as exc:
            return type(exc.orig.__cause__ or exc.orig).__name__  # type: ignore[union-attr]  # it has one
        session.rollback()
        return None

    found = await place.run(case)

    assert found == ("InterfaceError" if place.backend.name == "asyncpg" else None)


async def test_a_failed_block_of_the_drivers_own(place: Place) -> None:
    """PostgreSQL answers its COMMIT with ROLLBACK, which our connections of asyncpg do not take for done."""
    if place.backend.name != "asyncpg":
        pytest.skip("psycopg itself refuses to leave a failed block")
    async with place.database.async_engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection

        async def fail() -> None:
            async with raw.transaction():
                await raw.execute("INSERT INTO item(name) VALUES ('lost')")
                with suppress(Exception):
                    await raw.execute("SELECT 1 / 0")

        with pytest.raises(Exception, match="PostgreSQL answered COMMIT: ROLLBACK"):
            await fail()

    assert place.backend.names() == []


async def test_units_of_work_end_as_without_it(place: Place) -> None:
    """A refused statement that a unit survives is no sign that its transaction has ended."""

    def case(session: Session) -> None:
        with pytest.raises(DBAPIError):
            session.execute(ANSWER, {"value": object()})
        session.add(Item(name="after it"))

    def in_thread() -> None:
        with session_scope(place.database) as session:
            case(session)

    if place.kind == "sync":
        await asyncio.to_thread(in_thread)
    else:
        async with session_scope(place.database) as session:
            await session.run_sync(case)

    assert place.backend.names() == ["after it"]


async def test_the_first_statement_may_be_a_hook(place: Place) -> None:
    """What a listener sends when a transaction begins is in that transaction."""

    def set_local(connection: Any) -> None:
        connection.execute(text("SELECT set_config('my.tenant', :value, true)"), {"value": "seven"})

    event.listen(place.engine, "begin", set_local)
    shown = text("SELECT current_setting(:name)")

    def case(session: Session) -> None:
        for _ in range(2):
            assert session.execute(shown, {"name": "my.tenant"}).scalar_one() == "seven"
            session.commit()

    await place.run(case)


COUNTED = [
    ("INSERT INTO item (name) SELECT 'a' || n FROM generate_series(1, CAST(:value AS integer)) n", 3, 3),
    ("UPDATE item SET name = name || 'x' WHERE id > CAST(:value AS integer)", 0, 3),
    ("SELECT id FROM item WHERE id > CAST(:value AS integer)", 0, 3),
    ("DELETE FROM item WHERE id > CAST(:value AS integer)", 0, 3),
    ("DELETE FROM item WHERE id > CAST(:value AS integer)", 0, 0),
]


async def test_rows_are_counted(place: Place) -> None:
    """Twice, for the second time each statement is prepared."""

    def case(session: Session) -> list[int]:
        connection = session.connection()
        return [
            connection.execute(text(sql), {"value": value}).rowcount for _ in range(2) for sql, value, _count in COUNTED
        ]

    assert await place.run(case) == 2 * [count for _, _, count in COUNTED]


async def test_columns_are_described(place: Place) -> None:
    """Their names and types are the driver's, of a type that a user made too, and each result has its own list."""

    def described(session: Session, sql: str) -> list[tuple[str, int]]:
        result: Any = session.connection().execute(text(sql), {"value": 1})
        found = result.cursor.description
        result.close()
        return [(one[0], one[1]) for one in found]

    def case(session: Session) -> Any:
        session.execute(text("CREATE TYPE mood AS ENUM ('fine')"))
        plain = "SELECT CAST(:value AS integer) AS one, 'a'::text AS two, 1.5::numeric(4, 1) AS \"drei ß\""
        own = "SELECT CAST(:value AS integer) AS one, 'fine'::mood AS two"
        oid = session.execute(text("SELECT 'mood'::regtype::oid")).scalar_one()
        return [described(session, plain) for _ in range(2)], [described(session, own) for _ in range(2)], oid

    plain, own, oid = await place.run(case)
    assert plain == 2 * [[("one", 23), ("two", 25), ("drei ß", 1700)]]
    assert own == 2 * [[("one", 23), ("two", oid)]]


async def test_a_table_that_changes_beside(place: Place) -> None:
    """A statement that was prepared before fails as on a plain engine, and its transaction with it."""
    every = text("SELECT * FROM wide WHERE one = CAST(:value AS integer)")

    def case(session: Session) -> str | int:
        try:
            found = len(session.connection().execute(every, {"value": 0}).keys())
        except DBAPIError as exc:
            assert fails(session, ANSWER, {"value": 1}) == "25P02"
            return str(exc.orig)
        session.commit()  # after a rollback psycopg would forget what it has prepared
        return found

    with changed(place, "CREATE TABLE wide (one integer)"):
        for _ in range(8):  # psycopg prepares what it has sent five times
            assert await place.run(case) == 1
        with changed(place, "ALTER TABLE wide ADD COLUMN two integer"):
            found = [await place.run(case) for _ in range(3)]

    assert "cached" in str(found[0])  # feature_not_supported, which SQLAlchemy's adapter of asyncpg words anew
    assert found[-1] == 2


@contextmanager
def changed(place: Place, statement: str) -> Iterator[None]:
    """Execute ``statement``, and drop its table at the end."""
    with place.backend.witness.begin() as connection:
        connection.execute(text(statement))
    try:
        yield
    finally:
        with place.backend.witness.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS wide"))


async def test_a_rollback_of_nothing(place: Place) -> None:
    """As the pool asks for it after each COMMIT; the next transaction begins and ends as ever."""

    def case(session: Session) -> None:
        adapted: Any = session.connection().connection.dbapi_connection
        answer(session, 1)
        session.commit()
        adapted.rollback()
        assert answer(session, 2) == 2
        session.rollback()

    await place.run(case)


async def test_a_cursor_class_of_the_user_is_kept(place: Place) -> None:
    """Whoever chooses psycopg's cursor class has chosen how statements are sent."""
    if place.backend.name == "asyncpg":
        pytest.skip("asyncpg has no cursor classes to choose")
    import psycopg

    chosen = psycopg.AsyncClientCursor if place.kind == "async" else psycopg.ClientCursor
    database = place.other(place.backend.url, connect_args={"cursor_factory": chosen})

    def case(session: Session) -> Any:
        assert answer(session, 1) == 1
        return place.raw(session).cursor_factory

    found = await place.run(case, database)
    await database.async_dispose()

    assert found is chosen


async def test_a_creator_of_the_user(place: Place) -> None:
    """An engine on connections that the user makes works as one on ours."""
    import asyncpg  # type: ignore[import-untyped]
    import psycopg

    url = make_url(place.backend.url).set(drivername="postgresql").render_as_string(hide_password=False)
    creators: dict[Any, dict[str, Any]] = {
        ("asyncpg", "async"): {"async_engine_options": {"async_creator": lambda: asyncpg.connect(url)}},
        ("psycopg", "async"): {"async_engine_options": {"async_creator": lambda: psycopg.AsyncConnection.connect(url)}},
        ("psycopg", "sync"): {"engine_options": {"creator": lambda: psycopg.connect(url)}},
    }
    database = Database(place.backend.url, pipelining=place.pipelining, **creators[place.backend.name, place.kind])

    def case(session: Session) -> None:
        session.add(Item(name="made"))
        session.commit()
        session.add(Item(name="undone"))
        session.flush()
        session.rollback()

    await place.run(case, database)
    await database.async_dispose()

    assert place.backend.names() == ["made"]


def failing_import(name: str) -> Any:
    """Fail as an import of something that a later version of the driver no longer has."""
    raise ImportError(name)


@pipelined
@pytest.mark.parametrize("pipelining", [True])
@pytest.mark.parametrize("what", ["another version", "a missing name", "an import that fails"])
async def test_an_unknown_driver_falls_back(
    place: Place, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """BEGIN is then sent before the first statement, and a line at DEBUG says why."""
    driver = place.backend.name
    module = asyncpg_room if driver == "asyncpg" else psycopg_room
    if what == "another version":
        monkeypatch.setattr(module, "VERSION", "99.0.1")
    elif what == "a missing name":
        monkeypatch.setattr(module, "PRIVATE", ((Session, ("nothing_of_the_kind",)),))
    else:
        monkeypatch.setattr(room, "import_module", failing_import)
    room._room.cache_clear()
    caplog.set_level(logging.DEBUG, "asgi_sqla")

    def case(session: Session) -> None:
        answer(session, 1)
        session.commit()

    with wire(place.backend.url) as (counting, url):
        database = place.other(url)
        for _ in range(8):
            await place.run(case, database)
        before = counting.round_trips
        await place.run(case, database)
        taken = counting.round_trips - before
        await database.async_dispose()
    room._room.cache_clear()

    assert taken == 3
    assert "is used the plain way" in caplog.text


async def test_behind_tls(place: Place, tmp_path: Path) -> None:
    """What is written before the statement is encrypted as everything else."""

    def case(session: Session) -> None:
        for number in range(8):
            assert answer(session, number) == number
            session.add(Item(name=f"item {number}"))
            session.commit()
        assert fails(session, text("SELECT 1 / CAST(:zero AS integer)"), {"zero": 0}) == "22012"
        session.rollback()

    with tls(place.backend.url, tmp_path) as (url, certificate, ciphers):
        checked: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": str(certificate)}
        if place.backend.name == "asyncpg":
            checked = {"ssl": ssl.create_default_context(cafile=certificate)}
        database = place.other(url, connect_args=checked)
        await place.run(case, database)
        await database.async_dispose()

    assert len(ciphers) == 1
    assert len(place.backend.names()) == 8
