"""``Database``: its repr, engines and options, the user's session classes, and the global one."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, make_url, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool
from sqlmodel import Session as SQLModelSession
from sqlmodel import select as sqlmodel_select
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelAsyncSession
from support.asgi import Call, respond
from support.databases import NO_OWNER, Backend, Base, Item, backend_names, make_backend
from support.rivals import busy

from asgi_sqla import (
    ConfigurationError,
    Database,
    SessionInUseError,
    SQLAlchemyMiddleware,
    UnitOfWorkEndedError,
    session_scope,
)


@pytest.mark.parametrize(
    ("database", "shown"),
    [
        (lambda: Database("postgresql://u:s3cret@h/d"), "<Database postgresql://u:***@h/d>"),
        (lambda: Database(make_url("postgres://u:s3cret@h/d")), "<Database postgresql://u:***@h/d>"),
        (lambda: Database("postgresql:///d?password=s3cret"), "<Database postgresql:///d?password=...>"),
        (lambda: Database("sqlite:///app.db"), "<Database sqlite:///app.db>"),
        (lambda: Database(engine=Database("sqlite:///app.db").engine), "<Database sqlite+pysqlite:///app.db>"),
    ],
)
def test_its_repr_names_it(database: Any, shown: str) -> None:
    """The repr contains no password."""
    assert repr(database()) == shown


def test_a_copy_of_it_is_itself() -> None:
    """Litestar copies the arguments of its routes, such as ``Provide(db.get_session)``."""
    database = Database("sqlite://")
    assert copy.deepcopy({"session": database.get_session}) == {"session": database.get_session}
    assert copy.deepcopy(database) is database


@pytest.mark.parametrize(
    "options", [{"poolclass": NullPool}, {"poolclass": QueuePool}, {"echo": False, "pool_size": 3}]
)
async def test_engine_options_go_to_both_engines(sqlite: Backend, options: dict[str, Any]) -> None:
    """Both accept the options of ``create_engine``, and a sync queue pool becomes an async one."""
    database = Database(sqlite.url, engine_options=options)
    with session_scope(database) as session:
        session.add(Item(name="a"))
    async with session_scope(database) as async_session:
        assert await async_session.scalar(select(Item.name)) == "a"
    if "pool_size" in options:
        sizes = [engine.pool.size() for engine in (database.engine, database.async_engine)]  # type: ignore[attr-defined]
        assert sizes == [3, 3]
    await database.async_dispose()


@pytest.mark.parametrize("driver", [name for name in backend_names() if name in ("asyncpg", "psycopg")])
async def test_what_a_url_says_reaches_both_drivers(driver: str, tmp_path: Path) -> None:
    """It may be written in the words of either driver."""
    backend = make_backend(driver, tmp_path)
    database = Database(f"{backend.url}&application_name=shop&options=-c%20search_path%3Dpg_temp&connect_timeout=9")
    query = text("SELECT current_setting('application_name') || ' ' || current_setting('search_path')")
    with session_scope(database) as session:
        assert session.scalar(query) == "shop pg_temp"
    async with session_scope(database) as async_session:
        assert await async_session.scalar(query) == "shop pg_temp"
    await database.async_dispose()


# Session classes of the user's own


class Mine(Session):
    """A session class as users write them."""

    class Options:
        """Something of its own."""

    label = "mine"

    def names(self) -> list[str]:
        """Return the names of all items."""
        return list(self.scalars(select(Item.name).order_by(Item.name)))

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute, and count."""
        self.info["executed"] = self.info.get("executed", 0) + 1
        return super().execute(*args, **kwargs)

    @staticmethod
    def double(number: int) -> int:
        """Return twice ``number``."""
        return 2 * number

    @classmethod
    def title(cls) -> str:
        """Return the label in capitals."""
        return cls.label.upper()

    @property
    def first(self) -> str:
        """The first name."""
        return self.names()[0]


def names_of(session: Session) -> list[str]:
    """Return the names of all items."""
    assert isinstance(session, Mine)
    return session.names()


async def test_a_session_class_keeps_all_it_has(database: Database, backend: Backend) -> None:
    """Methods, static methods, properties and overrides work as written, also under an AsyncSession."""
    own = Database(backend.url, session_options={"class_": Mine})
    with session_scope(own) as session:
        session.add_all([Item(name="a"), Item(name="b")])
        assert isinstance(session, Mine)
        assert (session.names(), session.first) == (["a", "b"], "a")
        session.execute(text("SELECT 1"))
        assert session.info["executed"] == 1
        assert (session.double(2), session.title(), session.Options) == (4, "MINE", Mine.Options)
    async with session_scope(own) as async_session:
        assert await async_session.run_sync(names_of) == ["a", "b"]
    await own.async_dispose()


@pytest.fixture(
    params=[
        {"class_": SQLModelAsyncSession},
        {"class_": SQLModelAsyncSession, "sync_session_class": SQLModelSession},
        {"class_": SQLModelSession},
    ],
    ids=["async class", "both", "sync class"],
)
def sqlmodel_database(request: pytest.FixtureRequest, backend: Backend) -> Database:
    """Return a database with sessions of SQLModel."""
    return Database(backend.url, session_options=request.param)


async def test_sqlmodel_sessions_are_sqlmodels(sqlmodel_database: Database, backend: Backend) -> None:
    """They have ``exec()``, both kinds if the async class is given."""
    query = sqlmodel_select(Item)
    with session_scope(sqlmodel_database) as session:
        session.add(Item(name="a"))
        assert isinstance(session, SQLModelSession)
        assert [item.name for item in session.exec(query)] == ["a"]
    async with session_scope(sqlmodel_database) as async_session:
        if isinstance(async_session, SQLModelAsyncSession):
            assert [item.name for item in await async_session.exec(query)] == ["a"]
        assert isinstance(async_session.sync_session, SQLModelSession)
    await sqlmodel_database.async_dispose()
    assert backend.names() == ["a"]


async def test_sqlmodel_sessions_keep_the_promises(sqlmodel_database: Database, backend: Backend) -> None:
    """A failed COMMIT is never a 201, and a 400 keeps nothing."""
    requests: dict[str, tuple[int, dict[str, Any]]] = {
        "/201": (201, {"name": "a", "owner_id": NO_OWNER}),
        "/400": (400, {"name": "b"}),
        "/200": (200, {"name": "c"}),
    }

    async def app(scope: Any, receive: Any, send: Any) -> None:
        status, fields = requests[scope["path"]]
        sqlmodel_database.async_session.add(Item(**fields))
        await sqlmodel_database.async_session.flush()
        await respond(send, status)

    starts = []
    for path in requests:
        call = Call(SQLAlchemyMiddleware(app, sqlmodel_database))
        call.scope["path"] = path
        await call()
        starts.append(call.starts)
    await sqlmodel_database.async_dispose()
    assert (starts, backend.names()) == ([[500], [400], [200]], ["c"])


async def test_sqlmodel_sessions_are_guarded(backend: Backend) -> None:
    """``exec()`` refuses a second task during a call, and every call after the end."""
    database = Database(backend.url, session_options={"class_": SQLModelAsyncSession})
    async with session_scope(database) as session:
        assert isinstance(session, SQLModelAsyncSession)
        results = await asyncio.gather(*(session.exec(sqlmodel_select(Item)) for _ in range(2)), return_exceptions=True)
        assert sorted(isinstance(result, SessionInUseError) for result in results) == [False, True]
    with pytest.raises(UnitOfWorkEndedError):
        await session.exec(sqlmodel_select(Item))
    with session_scope(database) as sync_session:
        pass
    assert isinstance(sync_session, SQLModelSession)
    with pytest.raises(UnitOfWorkEndedError):
        sync_session.exec(sqlmodel_select(Item))
    await database.async_dispose()


async def test_a_plain_async_session_class_of_ones_own(sqlite: Backend) -> None:
    """It may name its sync class itself, as in SQLAlchemy."""

    class MyAsyncSession(AsyncSession):
        sync_session_class = Mine

    database = Database(sqlite.url, session_options={"class_": MyAsyncSession, "expire_on_commit": True})
    async with session_scope(database) as session:
        assert isinstance(session, MyAsyncSession)
        assert isinstance(session.sync_session, Mine)
        assert session.sync_session.expire_on_commit
    await database.async_dispose()


# The global one


def test_the_global_database_must_be_configured(global_db: Database) -> None:
    """Its repr says that it is not configured, and the error says what to write."""
    assert repr(global_db) == "<Database not configured>"
    with pytest.raises(ConfigurationError, match="the global db is not configured; write db"):
        _ = global_db.engine
    with pytest.raises(ConfigurationError, match="the global db is not configured"), session_scope():
        pass


def test_a_configuration_that_fails_changes_nothing(global_db: Database) -> None:
    """The database is still not configured."""
    with pytest.raises(ConfigurationError):
        global_db.configure("sqlite://", session_options={"bind": None})
    with pytest.raises(ConfigurationError):
        global_db.configure()
    assert not global_db.configured


async def test_a_scope_without_a_database_is_the_globals(global_db: Database) -> None:
    """It uses the global database, once that is configured."""
    global_db.configure("sqlite://")
    Base.metadata.create_all(global_db.engine)
    with session_scope() as session:
        session.add(Item(name="a"))
        assert global_db.session is session
    async with session_scope() as async_session:
        assert await async_session.scalar(select(Item.name)) == "a"
    await global_db.async_dispose()


async def test_the_middleware_configures_the_global_database(global_db: Database, sqlite: Backend) -> None:
    """``url=`` does so, and repeating it changes nothing."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        global_db.async_session.add(Item(name="a"))
        await respond(send)

    wrapped = [SQLAlchemyMiddleware(app, url=sqlite.url) for _ in range(3)][-1]
    assert repr(global_db) == f"<Database {sqlite.url}>"
    assert (await Call(wrapped)()).status == 200
    with pytest.raises(ConfigurationError, match="is configured and in use"):
        SQLAlchemyMiddleware(app, url="sqlite://")
    await global_db.async_dispose()
    assert sqlite.names() == ["a"]


async def test_a_database_that_is_configured_late_is_watched_too(
    global_db: Database, sqlite: Backend, tmp_path: Path
) -> None:
    """A middleware with retries notices commits outside the sessions, also on engines that are made later."""
    attempts: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempts.append(1)
        with global_db.engine.begin() as connection:
            connection.execute(insert(Item).values(name=f"attempt {len(attempts)}"))
        busy(sqlite, global_db.session)

    middleware = SQLAlchemyMiddleware(app, global_db, retries=1)
    global_db.configure(f"sqlite:///{tmp_path / 'other.db'}")
    global_db.dispose()
    global_db.configure(sqlite.url)

    call = await Call(middleware)()
    await global_db.async_dispose()

    assert isinstance(call.raised, OperationalError)
    assert sqlite.names() == ["attempt 1"]
