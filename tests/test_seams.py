"""The seams of a ``Database``: factories, listeners, options of one kind, and engines for instrumentation."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
import sqlalchemy.ext.asyncio
from sqlalchemy import event, insert, make_url, select, text
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool
from support.asgi import Call, respond
from support.databases import Backend, Item
from support.marks import KINDS, on_postgresql

from asgi_sqla import ConfigurationError, Database, SQLAlchemyMiddleware, session_scope
from asgi_sqla.session.guard import GuardedSession

LOCK = 4711
"""The number of an advisory lock that is used only in this file."""


# Factories of sessions


async def test_the_factories_are_sqlalchemys_own(database: Database, backend: Backend) -> None:
    """Their sessions belong to the code that opens them: no unit ends them, and ``begin()`` commits as usual."""
    assert isinstance(database.sessionmaker, sessionmaker)
    assert isinstance(database.async_sessionmaker, async_sessionmaker)
    with database.sessionmaker.begin() as session:
        session.add(Item(name="a"))
    async with database.async_sessionmaker.begin() as async_session:
        async_session.add(Item(name="b"))
    with database.sessionmaker() as session:
        session.add(Item(name="c"))
        session.commit()
        session.add(Item(name="never committed"))
    assert type(async_session) is AsyncSession
    assert [isinstance(each, GuardedSession) for each in (session, async_session.sync_session)] == [False, False]
    assert backend.names() == ["a", "b", "c"]


async def test_a_factory_makes_what_the_options_say(backend: Backend) -> None:
    """It uses the classes and options of ``session_options=`` and of the call; ``expire_on_commit`` is False."""

    class Own(Session):
        pass

    database = Database(backend.url, session_options={"class_": Own, "autoflush": False, "info": {"a": 1}})
    made = database.sessionmaker(autoflush=True)
    async_made = database.async_sessionmaker()
    assert isinstance(made, Own)
    assert isinstance(async_made.sync_session, Own)
    assert (made.autoflush, async_made.sync_session.autoflush) == (True, False)
    assert (made.expire_on_commit, async_made.sync_session.expire_on_commit) == (False, False)
    assert (made.info, async_made.info) == ({"a": 1}, {"a": 1})
    made.close()
    await async_made.close()


async def test_a_factorys_session_is_apart_from_the_unit_around(database: Database, backend: Backend) -> None:
    """Its commits stay in a request that is answered with an error."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with database.async_sessionmaker.begin() as session:
            session.add(Item(name="kept"))
        database.async_session.add(Item(name="rolled back"))
        await respond(send, 422)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert (call.status, backend.names()) == (422, ["kept"])


def test_a_factory_is_bound_late_to_the_engine_of_each_loop(backend: Backend) -> None:
    """Taken at import, without a loop, it works on every later loop, and after ``dispose()``."""
    database = Database(backend.url)
    factory, async_factory = database.sessionmaker, database.async_sessionmaker
    engines: list[object] = []

    async def job(name: str) -> None:
        async with async_factory.begin() as session:
            session.add(Item(name=name))
            engines.append(session.bind)

    for name in ("a", "b"):
        asyncio.run(job(name))
        with factory.begin() as session:
            session.add(Item(name=f"{name} sync"))
            engines.append(session.bind)
        database.dispose()
    assert len(set(map(id, engines))) == 4
    assert backend.names() == ["a", "a sync", "b", "b sync"]


def test_a_factory_of_a_database_that_is_not_configured_says_so(global_db: Database) -> None:
    """After configure() the same code returns one."""
    for name in ("sessionmaker", "async_sessionmaker"):
        with pytest.raises(ConfigurationError, match=r"write db\.configure\("):
            getattr(global_db, name)
    global_db.configure("sqlite://")
    assert isinstance(global_db.sessionmaker, sessionmaker)


@on_postgresql
def test_a_lock_is_held_across_commits_on_one_connection(backend: Backend) -> None:
    """With ``bind=`` an advisory lock belongs to the user's connection, and every batch is committed on it."""
    database = Database(backend.url)
    with database.engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
        connection.commit()
        held = []
        for name in ("a", "b"):
            with database.sessionmaker(bind=connection) as session:
                session.add(Item(name=name))
                session.commit()
                held.append(session.scalar(text("SELECT pg_backend_pid()")))
            with backend.witness.connect() as rival:
                held.append(rival.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK}))
        released = connection.scalar(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
        connection.commit()
    database.dispose()
    assert (held[0] == held[2], held[1], held[3], released) == (True, False, False, True)
    assert backend.names() == ["a", "b"]


@on_postgresql
async def test_a_lock_is_held_across_commits_on_one_async_connection(backend: Backend) -> None:
    """An AsyncConnection works the same way."""
    database = Database(backend.url)
    async with database.async_engine.connect() as connection:
        await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
        await connection.commit()
        taken = []
        for name in ("a", "b"):
            async with database.async_sessionmaker(bind=connection) as session:
                session.add(Item(name=name))
                await session.commit()
            with backend.witness.connect() as rival:
                taken.append(rival.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK}))
        released = await connection.scalar(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
        await connection.commit()
    await database.async_dispose()
    assert (taken, released, backend.names()) == ([False, False], True, ["a", "b"])


def test_the_way_to_one_connection_is_named_wherever_it_is_looked_for() -> None:
    """The errors about ``bind=`` of a database and of a scope both name it, and neither points to the other."""
    engine = sqlalchemy.create_engine("sqlite://")
    database = Database("sqlite://")
    looked_for: list[Callable[[], object]] = [
        lambda: Database("sqlite://", session_options={"bind": engine}),
        lambda: session_scope(database, session_options={"bind": engine}),
    ]
    for look in looked_for:
        with pytest.raises(ConfigurationError, match=r"db\.sessionmaker\(bind=connection\)") as caught:
            look()
        assert "db.async_sessionmaker(bind=connection)" in str(caught.value)


# Listeners on every engine


def on_connect(connection: Any, _record: object) -> None:
    """Give each SQLite connection a function."""
    connection.create_function("twice", 1, lambda value: 2 * value)


async def ask_async(database: Database, **options: Any) -> Any:
    """Ask for twice 21 in an async scope."""
    async with session_scope(database, **options) as session:
        return await session.scalar(text("SELECT twice(21)"))


def ask(database: Database, **options: Any) -> Any:
    """Ask for twice 21 in a scope."""
    with session_scope(database, **options) as session:
        return session.scalar(text("SELECT twice(21)"))


ROLES: list[dict[str, Any]] = [
    {},
    {"read_only": True},
    {"read_only": True, "isolation_level": "SERIALIZABLE"},
]
"""Units that write, that read in autocommit, and that read in a transaction: an engine for each."""


@pytest.mark.parametrize("when", ["before any engine", "with engines in use", "before configure"])
def test_a_listener_is_called_by_every_engine(sqlite: Backend, when: str, global_db: Database) -> None:
    """It is called for both kinds, on each loop, in each role, and after ``dispose()``, whenever it was given."""
    database = global_db
    if when == "before configure":
        database.listen("connect", on_connect)
    database.configure(sqlite.url)
    if when == "with engines in use":
        for role in ROLES:
            with session_scope(database, **role) as session:
                session.scalar(text("SELECT 1"))
    if when != "before configure":
        database.listen("connect", on_connect)
    if when == "with engines in use":  # what is connected already was not told: its pool is renewed
        database.dispose()
    answers = []
    for _loop in range(2):
        answers += [asyncio.run(ask_async(database, **role)) for role in ROLES]
        answers += [ask(database, **role) for role in ROLES]
        database.dispose()
    assert answers == [42] * 12


async def test_a_listener_is_called_by_engines_that_were_passed_in(sqlite: Backend) -> None:
    """They stay their owner's, who has asked for it."""
    url = make_url(sqlite.url)
    engine = sqlalchemy.create_engine(url)
    async_engine = sqlalchemy.ext.asyncio.create_async_engine(url.set(drivername="sqlite+aiosqlite"))
    database = Database(engine=engine, async_engine=async_engine)
    database.listen("connect", on_connect)
    answers = [await ask_async(database), ask(database)]
    engine.dispose()
    await async_engine.dispose()
    assert answers == [42, 42]


async def test_a_listener_is_called_by_both_engines_of_a_replica(sqlite: Backend) -> None:
    """Engines of read-only units call it too."""
    database = Database(sqlite.url, read_only_url=[sqlite.url, sqlite.url])
    database.listen("connect", on_connect)
    answers = [await ask_async(database, read_only=True), ask(database, read_only=True)]
    await database.async_dispose()
    assert answers == [42, 42]


async def test_two_listeners_are_called_in_the_order_they_were_given(sqlite: Backend) -> None:
    """Each is called once per connection, for any event of engines, pools and dialects."""
    database = Database(sqlite.url)
    told: list[str] = []
    database.listen("do_connect", lambda dialect, record, args, params: told.append("do_connect"))
    database.listen("connect", lambda connection, record: told.append("first"))
    database.listen("connect", lambda connection, record: told.append("second"))
    database.listen("begin", lambda connection: told.append("begin"))
    async with session_scope(database) as session:
        await session.execute(insert(Item).values(name="a"))
    await database.async_dispose()
    assert told == ["do_connect", "first", "second", "begin"]


# Options of one kind of engine


async def test_options_of_the_async_engine_replace_those_of_both_per_key(sqlite: Backend) -> None:
    """A key in ``async_engine_options`` goes to the async engine alone, and the other options are shared."""
    database = Database(
        sqlite.url,
        engine_options={"pool_size": 2, "max_overflow": 3, "echo": False},
        async_engine_options={"pool_size": 7, "poolclass": sqlalchemy.pool.AsyncAdaptedQueuePool},
    )
    pools: list[Any] = [database.engine.pool, database.async_engine.pool]
    assert [(pool.size(), pool._max_overflow) for pool in pools] == [(2, 3), (7, 3)]
    await database.async_dispose()


async def test_arguments_of_one_driver_need_not_suit_the_other(backend: Backend) -> None:
    """``connect_args`` is such a key, because each driver takes other ones."""
    own = {
        "asyncpg": {"server_settings": {"application_name": "async"}},
        "psycopg": {"application_name": "async"},
        "sqlite": {"timeout": 1.5},
    }[backend.name]
    database = Database(backend.url, async_engine_options={"connect_args": own})
    seen = []
    for name in ("a", "b"):
        async with session_scope(database) as session:
            session.add(Item(name=name))
            if backend.is_postgresql:
                seen.append(await session.scalar(text("SHOW application_name")))
    with session_scope(database) as sync_session:
        if backend.is_postgresql:
            seen.append(sync_session.scalar(text("SHOW application_name")))
    await database.async_dispose()
    assert seen[:2] == ["async"] * 2 if backend.is_postgresql else seen == []
    assert "async" not in seen[2:]
    assert backend.names() == ["a", "b"]


@pytest.mark.parametrize("read_only", [False, True])
async def test_connections_may_be_made_by_functions_of_ones_own(sqlite: Backend, read_only: bool) -> None:
    """``creator`` is for the sync engine and ``async_creator`` for the other, for cloud connectors and tokens."""
    import aiosqlite

    path, made = str(sqlite.witness.url.database), []

    def create() -> sqlite3.Connection:
        made.append("sync")
        return sqlite3.connect(path, check_same_thread=False)

    async def create_async() -> aiosqlite.Connection:
        made.append("async")
        return await aiosqlite.connect(path)

    database = Database(
        sqlite.url, engine_options={"creator": create}, async_engine_options={"async_creator": create_async}
    )
    with session_scope(database, read_only=read_only) as session:
        session.scalars(select(Item)).all()
    async with session_scope(database, read_only=read_only) as async_session:
        await async_session.scalars(select(Item))
    await database.async_dispose()
    assert made == ["sync", "async"]


async def test_a_creator_alone_is_not_given_to_the_other_kind(sqlite: Backend) -> None:
    """The async engine cannot use it, and the error names the argument that it needs."""
    database = Database(sqlite.url, engine_options={"creator": lambda: sqlite3.connect(":memory:")})
    with pytest.raises(ConfigurationError, match=r'async_engine_options=\{"async_creator": \.\.\.\}'):
        _ = database.async_engine


# Instrumentation


@pytest.fixture
def instrumented(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace SQLAlchemy's functions after they were imported, as instrumentation does; yield what they made."""
    made: list[str] = []
    create, create_async = sqlalchemy.create_engine, sqlalchemy.ext.asyncio.create_async_engine

    def wrapped(*args: Any, **kwargs: Any) -> Engine:
        engine = create(*args, **kwargs)
        made.append("sync")
        event.listen(engine, "commit", lambda connection: made.append("commit"))
        return engine

    def wrapped_async(*args: Any, **kwargs: Any) -> Any:
        engine = create_async(*args, **kwargs)
        made.append("async")
        event.listen(engine.sync_engine, "commit", lambda connection: made.append("commit"))
        return engine

    monkeypatch.setattr(sqlalchemy, "create_engine", wrapped)
    monkeypatch.setattr(sqlalchemy.ext.asyncio, "create_async_engine", wrapped_async)
    return made


@pytest.mark.parametrize("kind", KINDS)
async def test_instrumentation_installed_later_sees_every_engine(
    backend: Backend, instrumented: list[str], kind: str
) -> None:
    """A wrapper installed after this package was imported sees each engine and its events."""
    database = Database(backend.url, engine_options={"poolclass": NullPool})
    if kind == "async":
        async with session_scope(database) as session:
            session.add(Item(name="a"))
    else:
        with session_scope(database) as sync_session:
            sync_session.add(Item(name="a"))
    seen = list(instrumented)
    await database.async_dispose()
    assert seen == [kind, "commit"]
