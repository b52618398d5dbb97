"""Read-only units: they refuse to write, read in one round trip, and leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool
from sqlmodel import Session as SQLModelSession
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelAsyncSession
from support.asgi import Call, http_scope, respond
from support.databases import PLAIN, Backend, Item
from support.drivers import on_drivers
from support.failing import execute
from support.failing import insert as write
from support.marks import KINDS, on_postgresql
from support.scopes import in_scope
from support.wire import wire

from asgi_sqla import ConfigurationError, Database, ReadOnlyError, SQLAlchemyMiddleware, current_unit, session_scope

STATEMENTS = {
    "INSERT": insert(Item).values(name="b"),
    "UPDATE": update(Item).values(name="b"),
    "DELETE": delete(Item),
}
TEXTS = ["INSERT INTO item (name) VALUES ('b')", "UPDATE item SET name = 'b'", "DELETE FROM item"]
LEVELS = [None, "SERIALIZABLE"]


async def reading(database: Database, kind: str, work: Any, **options: Any) -> None:
    """Run ``work`` on the session of a read-only scope."""
    await in_scope(database, kind, work, read_only=True, **options)


def seed(backend: Backend) -> None:
    """Insert the only row."""
    with backend.witness.begin() as connection:
        connection.execute(insert(Item).values(name="a"))


def change(kind: str, session: Session) -> None:
    """Change something through the ORM's unit of work."""
    if kind == "INSERT":
        session.add(Item(name="b"))
        return
    item = session.scalars(select(Item)).one()
    if kind == "UPDATE":
        item.name = "b"
    else:
        session.delete(item)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_flush_is_refused(
    database: Database, backend: Backend, kind: str, statement: str, level: str | None
) -> None:
    """It is refused at the latest when the scope would commit; the error names the kind of statement and the unit."""
    seed(backend)

    with pytest.raises(ReadOnlyError, match=rf"^{statement} by a flush of Item in <UnitOfWork session_scope\(\) "):
        await reading(database, kind, lambda session: change(statement, session), isolation_level=level)

    assert backend.names() == ["a"]


@pytest.mark.parametrize("method", ["execute", "scalar", "scalars"])
@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_core_statement_is_refused(
    database: Database, backend: Backend, kind: str, statement: str, method: str
) -> None:
    """It is refused before it is sent."""
    seed(backend)

    with pytest.raises(ReadOnlyError, match=rf"^{statement} in <UnitOfWork session_scope\(\) "):
        await reading(database, kind, lambda session: getattr(session, method)(STATEMENTS[statement]))

    assert backend.names() == ["a"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_statement_by_a_method_of_the_users_own_is_refused(backend: Backend, kind: str) -> None:
    """SQLModel's ``exec()`` calls ``Session.execute()`` and skips every subclass."""
    database = Database(
        backend.url, session_options={"class_": SQLModelAsyncSession, "sync_session_class": SQLModelSession}
    )

    with pytest.raises(ReadOnlyError, match=r"^INSERT in <UnitOfWork session_scope\(\) "):
        await reading(database, kind, lambda session: session.exec(STATEMENTS["INSERT"]))

    assert backend.names() == []
    await database.async_dispose()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("sql", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_database_refuses_text(
    database: Database, backend: Backend, kind: str, sql: str, level: str | None
) -> None:
    """Only the database understands textual SQL, and every one under test refuses it."""
    seed(backend)

    with pytest.raises(DBAPIError):
        await reading(database, kind, lambda session: session.execute(text(sql)), isolation_level=level)

    assert backend.names() == ["a"]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_database_refuses_what_goes_past_the_session(database: Database, backend: Backend, kind: str) -> None:
    """It refuses a statement on the connection, and a new table."""
    for work in (
        lambda session: session.connection().execute(insert(Item).values(name="b")),
        lambda session: session.execute(text("CREATE TABLE other (id INTEGER)")),
        lambda session: session.bulk_insert_mappings(Item, [{"name": "b"}]),
    ):
        with pytest.raises((DBAPIError, ReadOnlyError)):
            await reading(database, kind, work)

    assert backend.names() == []


async def test_an_unchanged_object_is_no_write(database: Database, backend: Backend) -> None:
    """Objects may be read, assigned their own values, and expunged."""
    seed(backend)

    def look(session: Session) -> None:
        item = session.scalars(select(Item)).one()
        item.name = "a"
        session.flush()

    await reading(database, "async", look)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_next_writer_writes(database: Database, backend: Backend, kind: str, level: str | None) -> None:
    """A read-only unit does not affect a writer beside it or after it."""
    for _ in range(2):
        await reading(database, kind, lambda session: session.execute(select(Item)), isolation_level=level)
        with pytest.raises(DBAPIError):
            await reading(database, kind, lambda session: session.execute(text(TEXTS[0])), isolation_level=level)

    async with session_scope(database):
        await write(database, kind, name="written")

    assert backend.names() == ["written"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
async def test_an_engine_that_was_passed_in_is_restored(backend: Backend, kind: str, level: str | None) -> None:
    """Its only connection refuses writes in the read-only unit, and accepts them in the next."""
    made = Database(backend.url)
    options: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 2}
    sync_options = {**options, "poolclass": QueuePool}
    database = Database(
        engine=create_engine(made.engine.url, **sync_options),
        async_engine=create_async_engine(made.async_engine.url, **options),
    )
    pool: Any = (database.engine if kind == "sync" else database.async_engine).pool

    seen: list[Any] = []

    def count(session: Session) -> None:
        seen.append(session.scalar(select(func.count()).select_from(Item)))

    for number in range(2):
        await reading(database, kind, count, isolation_level=level)
        with pytest.raises(ReadOnlyError):
            await reading(database, kind, lambda session: session.add(Item(name="no")), isolation_level=level)
        with pytest.raises(DBAPIError):
            await reading(database, kind, lambda session: session.execute(text(TEXTS[0])), isolation_level=level)
        async with session_scope(database):
            await write(database, kind, name=f"written {number}")

    assert seen == [0, 1]
    assert backend.names() == ["written 0", "written 1"]
    assert (pool.checkedin(), pool.checkedout()) == (1, 0)
    database.engine.dispose()
    await database.async_engine.dispose()
    await made.async_dispose()


async def test_an_engine_that_was_passed_in_has_one_listener(sqlite: Backend) -> None:
    """The number of units and their levels do not matter."""
    engine = create_engine(sqlite.url)
    database = Database(engine=engine)
    counts = []
    for level in (None, "SERIALIZABLE", "SERIALIZABLE", None, "SERIALIZABLE"):
        with session_scope(database, read_only=True, isolation_level=level) as session:
            session.execute(select(Item))
        counts.append(len(list(engine.pool.dispatch.checkin)))

    engine.dispose()
    assert counts == [counts[0]] * 5


def in_savepoint(session: Session) -> object:
    """Read in a savepoint, and lose another one to an error."""
    with pytest.raises(DBAPIError), session.begin_nested():
        session.execute(text("SELECT nothing"))
    with session.begin_nested():
        return session.scalars(select(Item.name)).all()


def left_savepoint(session: Session) -> object:
    """Leave a savepoint rolled back and the transaction open."""
    session.begin_nested().rollback()
    return session.scalars(select(Item.name)).all()


def after_select(session: Session) -> object:
    """Read in autocommit, then with a server-side cursor."""
    session.execute(select(Item))
    return session.scalars(select(Item.name).execution_options(yield_per=1)).all()


def after_commit(session: Session) -> object:
    """Commit in the middle, after which the connection is in autocommit again."""
    in_savepoint(session)
    session.commit()
    return after_select(session)


NEED_TRANSACTION: dict[str, Any] = {
    "a stream": lambda session: session.scalars(select(Item.name), execution_options={"stream_results": True}).all(),
    "yield_per": lambda session: session.scalars(select(Item.name).execution_options(yield_per=1)).all(),
    "a lock": lambda session: session.scalars(select(Item.name).with_for_update(read=True)).all(),
    **{one.__name__: one for one in (in_savepoint, left_savepoint, after_select, after_commit)},
}


@pytest.mark.parametrize("work", NEED_TRANSACTION.values(), ids=NEED_TRANSACTION)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_needs_a_transaction_begins_one(backend: Backend, kind: str, work: Any) -> None:
    """It is read-only, and the only connection is in autocommit for the next unit."""
    database = Database(backend.url, engine_options={"pool_size": 1, "max_overflow": 0, "pool_timeout": 2})
    seed(backend)
    read: list[Any] = []
    locks = work is NEED_TRANSACTION["a lock"] and backend.is_postgresql  # which refuses a lock in such a transaction

    def reads(session: Session) -> None:
        if locks:
            with pytest.raises(DBAPIError, match="read-only"):
                work(session)
            return
        read.append(work(session))
        with pytest.raises(DBAPIError), session.begin_nested():
            session.execute(text(TEXTS[0]))

    def in_autocommit(session: Session) -> None:
        connection = session.connection()
        adapted = connection.connection.dbapi_connection
        read.append(connection.dialect.detect_autocommit_setting(adapted))  # type: ignore[arg-type]  # it is there
        session.execute(select(Item))
        if backend.name == "sqlite":
            read.append(not connection.connection.driver_connection.in_transaction)  # type: ignore[union-attr]

    await reading(database, kind, reads)
    if backend.name != "sqlite":
        assert backend.backends("idle in transaction%") == 0
    await reading(database, kind, in_autocommit)

    assert read == [*([] if locks else [["a"]]), *[True] * (2 if backend.name == "sqlite" else 1)]
    assert backend.names() == ["a"]
    await database.async_dispose()


@on_drivers("pymysql", "asyncmy")
async def test_on_mariadb_a_savepoint_is_one(database: Database, backend: Backend, kind: str) -> None:
    """In autocommit MariaDB forgets it at once, so a transaction begins; a SELECT needs none, and no COMMIT."""
    seed(backend)
    read: list[Any] = []

    await reading(database, kind, lambda session: read.append(in_savepoint(session)))
    await reading(database, kind, lambda session: read.append(after_select(session)))
    await reading(database, kind, lambda session: read.append(NEED_TRANSACTION["a lock"](session)))

    assert read == [["a"]] * 3
    assert backend.backends("idle in transaction%") == 0


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_nested_scope_reads(database: Database, backend: Backend, kind: str) -> None:
    """The savepoint of ``propagation="nested"`` begins a transaction too."""
    seed(backend)

    if kind == "sync":
        with session_scope(database, read_only=True), session_scope(database, propagation="nested") as session:
            names = session.scalars(select(Item.name)).all()
    else:
        async with session_scope(database, read_only=True), session_scope(database, propagation="nested") as nested:
            names = (await nested.scalars(select(Item.name))).all()

    assert names == ["a"]


CHANGES = {
    "postgresql": ["BEGIN ISOLATION LEVEL REPEATABLE READ", "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE"],
    "mysql": ["START TRANSACTION READ WRITE", "SET SESSION TRANSACTION READ WRITE"],
    "sqlite": ["BEGIN", "PRAGMA query_only=OFF"],
}


@pytest.mark.parametrize("number", [0, 1], ids=["a transaction", "a setting"])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_unit_did_to_its_connection_is_undone(backend: Backend, kind: str, number: int) -> None:
    """The next unit has neither its transaction nor its settings."""
    database = Database(backend.url, engine_options={"pool_size": 1, "max_overflow": 0, "pool_timeout": 2})
    sql = CHANGES[database.engine.dialect.name][number]
    seen: list[Any] = []

    await reading(database, kind, lambda session: session.execute(text(sql)))
    async with session_scope(database):
        await write(database, kind, name="written")
    with pytest.raises(DBAPIError):
        await reading(database, kind, lambda session: session.execute(text(TEXTS[0])))
    await reading(database, kind, lambda session: seen.append(session.scalars(select(Item.name)).all()))

    assert seen == [["written"]]
    assert backend.name == "sqlite" or backend.backends("idle in transaction%") == 0
    await database.async_dispose()


@on_drivers("pymysql", "asyncmy")
async def test_our_own_question_changes_nothing(backend: Backend, kind: str) -> None:
    """After an error MariaDB is asked whether the transaction still exists; the connection is kept."""
    database = Database(backend.url, engine_options={"pool_size": 1, "max_overflow": 0})
    connections: list[int] = []

    def fails(session: Session) -> None:
        session.begin_nested()
        connections.append(session.scalar(text("SELECT connection_id()")))
        with pytest.raises(DBAPIError):
            session.execute(text("SELECT nothing FROM nowhere"))
        connections.append(session.scalar(text("SELECT connection_id()")))

    for _ in range(2):
        await reading(database, kind, fails)

    assert len(connections) == 4
    assert len(set(connections)) == 1
    await database.async_dispose()


async def test_a_reader_on_a_shared_connection_lets_a_writer_write() -> None:
    """An engine that was handed in may have one connection for everybody, as SQLAlchemy's own in memory has."""
    engine = create_async_engine("sqlite+aiosqlite://")
    database = Database(async_engine=engine)
    async with engine.begin() as connection:
        await connection.run_sync(Item.metadata.create_all)

    async with session_scope(database, read_only=True) as reader:
        await reader.execute(select(Item))
        async with session_scope(database) as session:
            session.add(Item(name="written"))
        with pytest.raises(ReadOnlyError):
            await reader.execute(insert(Item).values(name="refused"))

    async with session_scope(database) as session:
        assert (await session.scalars(select(Item.name))).all() == ["written"]
    await engine.dispose()


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_stream_is_a_few_round_trips(backend: Backend, kind: str) -> None:
    """BEGIN and DECLARE, which psycopg sends with what describes the rows; rows; CLOSE, of psycopg; COMMIT."""
    stream = text("SELECT generate_series(1, 3)").execution_options(yield_per=10)
    read: list[Any] = []
    with wire(backend.url) as (counting, url):
        database = Database(url)
        for _ in range(2):  # the first connects
            before = counting.round_trips
            await reading(database, kind, lambda session: read.append(session.scalars(stream).all()))
        taken = counting.round_trips - before
        await database.async_dispose()

    plain = (backend.name, kind) == ("psycopg2", "sync") or (PLAIN and (backend.name, kind) != ("asyncpg", "async"))
    assert (taken, read) == (7 if plain else 4, [[1, 2, 3]] * 2)


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_select_is_one_round_trip(backend: Backend, kind: str) -> None:
    """On the wire a writer sends BEGIN, SELECT and COMMIT, and a reader the SELECT alone."""
    counts = {}
    with wire(backend.url) as (counting, url):
        database = Database(url, pipelining=False)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await execute(database, kind, "SELECT 1")
            await respond(send)

        middleware = SQLAlchemyMiddleware(app, database, read_only={"GET"})
        for method in ("GET", "POST"):
            await Call(middleware, http_scope(method=method))()  # connects
            before = counting.round_trips
            await Call(middleware, http_scope(method=method))()
            counts[method] = counting.round_trips - before
        before = counting.round_trips
        await reading(database, kind, lambda session: session.execute(text("SELECT 1")))
        counts["scope"] = counting.round_trips - before
        await database.async_dispose()

    assert counts == {"GET": 1, "POST": 3, "scope": 1}


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_unit_that_must_see_one_snapshot_asks_for_it(database: Database, backend: Backend, kind: str) -> None:
    """With an isolation level it is one transaction; without one each statement sees the current data."""

    def twice(session: Session) -> None:
        counted = select(func.count()).select_from(Item)
        first = session.scalar(counted)
        with backend.witness.begin() as connection:
            connection.execute(insert(Item).values(name=f"meanwhile {first}"))
        seen.append((session.scalar(counted) or 0) - (first or 0))

    seen: list[int] = []
    for level in (None, "REPEATABLE READ", "SERIALIZABLE"):
        await reading(database, kind, twice, isolation_level=level)

    assert seen == [1, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_writer_has_a_level_of_its_own(database: Database, backend: Backend, kind: str) -> None:
    """The isolation_level= of a scope is for that scope, and the next one has the engine's level again."""
    seen: list[str] = []

    async def level(**options: Any) -> None:
        if kind == "sync":
            with session_scope(database, **options) as session:
                seen.append(session.execute(text("SHOW transaction_isolation")).scalar_one())
        else:
            async with session_scope(database, **options) as async_session:
                seen.append((await async_session.execute(text("SHOW transaction_isolation"))).scalar_one())

    await level(isolation_level="SERIALIZABLE")
    await level()
    await level(isolation_level="REPEATABLE READ")

    assert seen == ["serializable", "read committed", "repeatable read"]


# In the middleware.


METHODS = {"a set": {"GET", "HEAD"}, "a callable": lambda scope: scope["method"] in ("GET", "HEAD")}


@pytest.mark.parametrize("read_only", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_middleware_makes_requests_read_only(
    database: Database, backend: Backend, kind: str, read_only: Any
) -> None:
    """A GET that writes is refused and answered 500, and a POST writes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert current_unit().read_only is (scope["method"] == "GET")
        await write(database, kind, name="a")
        await respond(send, 201)

    middleware = SQLAlchemyMiddleware(app, database, read_only=read_only)
    get = await Call(middleware, http_scope("/items", method="GET"))()
    before = backend.names()
    post = await Call(middleware, http_scope("/items", method="POST"))()

    assert isinstance(get.raised, ReadOnlyError)
    assert str(get.raised).startswith("INSERT by a flush of Item in <UnitOfWork GET /items open>, which is read-only")
    assert before == []
    assert (post.raised, post.status, backend.names()) == (None, 201, ["a"])


async def test_what_was_only_added_is_refused_at_the_end(database: Database, backend: Backend) -> None:
    """A GET that adds without a flush is an error before the start."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="a"))
        await respond(send, 200)

    call = await Call(SQLAlchemyMiddleware(app, database, read_only={"GET"}))()

    assert isinstance(call.raised, ReadOnlyError)
    assert (call.starts, backend.names()) == ([500], [])


async def test_a_websocket_may_write(database: Database, backend: Backend) -> None:
    """Methods belong to HTTP, and the rule is called for HTTP requests only."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            await write(database, "async", name="a")
            await send({"type": "websocket.send", "text": "done"})
            await receive()

    for read_only in ({"GET"}, lambda scope: scope["method"] == "GET"):
        served = SQLAlchemyMiddleware(app, database, read_only=read_only)
        received = [{"type": "websocket.disconnect", "code": 1000}, {"type": "websocket.receive", "text": "write"}]
        received.append({"type": "websocket.connect"})

        async def receive() -> Any:
            return received.pop()  # noqa: B023  # used in this turn

        async def send(message: Any) -> None:
            """Drop it."""

        await served({"type": "websocket", "path": "/ws"}, receive, send)
        assert backend.names() == ["a"]
        with backend.witness.begin() as connection:
            connection.execute(delete(Item))


async def test_a_scope_in_a_read_only_request_may_write(database: Database, backend: Backend) -> None:
    """It is a separate unit, for example for a log of reads."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await execute(database, "async", "SELECT 1")
        async with session_scope(database) as session:
            session.add(Item(name="a"))
        await respond(send, 200)

    call = await Call(SQLAlchemyMiddleware(app, database, read_only={"GET"}))()

    assert (call.raised, call.status, backend.names()) == (None, 200, ["a"])


@pytest.mark.parametrize("kind", KINDS)
async def test_reading_leaves_no_connection_out(database: Database, backend: Backend, kind: str) -> None:
    """Neither a successful nor a failed request keeps a connection of the reading engines."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await execute(database, kind, "SELECT 1" if scope["path"] == "/" else "SELECT nonsense")
        await respond(send, 200)

    middleware = SQLAlchemyMiddleware(app, database, read_only={"GET"})
    calls = [await Call(middleware, http_scope(path))() for path in ("/", "/fails", "/")]

    pools: list[Any] = []
    for engines in database._reading.values():
        pools += [engines.sync().pool, engines.asynchronous().pool]
    assert [call.starts for call in calls] == [[200], [], [200]]
    assert (len(pools), sum(pool.checkedout() for pool in pools)) == (2, 0)


async def test_cancelled_readers_leave_no_connection_out(database: Database, backend: Backend) -> None:
    """A unit that only reads may be cancelled at any time, also at its end."""
    chance = random.Random(7)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await execute(database, "async", "SELECT 1")
        await respond(send, 200)

    middleware = SQLAlchemyMiddleware(app, database, read_only={"GET"})
    await Call(middleware)()
    for _ in range(100):
        task = asyncio.create_task(Call(middleware)())
        await asyncio.sleep(chance.random() * 0.004)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    last = await Call(middleware)()
    pools: list[Any] = [engines.asynchronous().pool for engines in database._reading.values()]
    assert (last.status, [pool.checkedout() for pool in pools]) == (200, [0])
    gc.collect()  # a cancelled connect() of psycopg leaves its connection to the collector


async def test_an_in_memory_database_is_read_too(backend: Backend) -> None:
    """The reading engines see the writes of the others, and refuse to write."""
    database = Database("sqlite://")
    Item.metadata.create_all(database.engine)
    with session_scope(database) as session:
        session.add(Item(name="a"))

    async with session_scope(database, read_only=True) as reader:
        assert (await reader.scalars(select(Item.name))).all() == ["a"]
        with pytest.raises(DBAPIError):
            await reader.execute(text(TEXTS[0]))
    await database.async_dispose()


@pytest.mark.parametrize("wrong", ["GET", b"GET", 1, {"get"}, {1}, [""]])
def test_wrong_arguments_are_refused(sqlite: Backend, wrong: Any) -> None:
    """They are refused at once, and the error says what to write."""
    with pytest.raises(ConfigurationError, match="read_only"):
        SQLAlchemyMiddleware(respond, Database(sqlite.url), read_only=wrong)


def test_an_async_rule_is_refused(sqlite: Backend) -> None:
    """Its coroutine would be true for every request."""

    async def rule(scope: Any) -> bool:
        return False

    with pytest.raises(ConfigurationError, match="plain function"):
        SQLAlchemyMiddleware(respond, Database(sqlite.url), read_only=rule)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("propagation", ["join", "nested"])
def test_a_unit_that_exists_is_not_made_read_only(sqlite: Backend, propagation: Any) -> None:
    """The arguments read_only= and isolation_level= apply to a new unit only."""
    with pytest.raises(ConfigurationError, match="read_only=True needs a new unit"):
        session_scope(Database(sqlite.url), propagation=propagation, read_only=True)
    with pytest.raises(ConfigurationError, match="isolation_level='SERIALIZABLE' needs a new unit"):
        session_scope(Database(sqlite.url), propagation=propagation, isolation_level="SERIALIZABLE")


def test_engines_for_reading_count_as_in_use(sqlite: Backend) -> None:
    """A database that was only read is not configured again during reads."""
    database = Database(sqlite.url)
    with session_scope(database, read_only=True) as session:
        session.execute(select(Item))

    with pytest.raises(ConfigurationError, match="in use"):
        database.configure("sqlite://")
    database.dispose()
    database.configure("sqlite://")


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_transaction_that_a_savepoint_began_lasts_until_commit(
    database: Database, backend: Backend, kind: str
) -> None:
    """Its statements have one time; after it each has its own again."""
    seen: list[bool] = []

    def same_time(session: Session) -> bool:
        first, second = (session.scalar(select(func.now())) for _ in range(2))
        return bool(first == second)

    def work(session: Session) -> None:
        seen.append(same_time(session))
        with session.begin_nested():
            session.execute(text("SELECT 1"))
        seen.append(same_time(session))
        session.commit()
        seen.append(same_time(session))

    await reading(database, kind, work)
    assert seen == [False, True, False]
