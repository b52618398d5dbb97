"""The user's session classes, and sessions on several engines: every promise holds for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlmodel
import sqlmodel.ext.asyncio.session
from anyio import to_thread
from sqlalchemy import Engine, MetaData, create_engine, delete, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool
from support.asgi import Call, respond
from support.databases import Backend, Item
from support.empty import empty_database
from support.marks import KINDS
from support.rivals import perform

from asgi_sqla import ConfigurationError, Database, ReadOnlyError, SQLAlchemyMiddleware, session_scope


class AsksFirst(Session):
    """Queries the database when it is made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.items = self.query(Item).count()


class Expiring(Session):
    """Decides itself what happens to objects at a commit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, expire_on_commit=True, **kwargs)


class Counting(Session):
    """Overrides the methods that end a session, and calls SQLAlchemy's."""

    calls: ClassVar[list[str]] = []

    def commit(self) -> None:
        self.calls.append("commit")
        super().commit()

    def rollback(self) -> None:
        self.calls.append("rollback")
        super().rollback()


class OfTenant(Session):
    """Has its own option, and a method that uses the session."""

    def __init__(self, *, tenant: str = "nobody", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tenant = tenant

    def insert(self, name: str) -> None:
        """Write an item of the tenant."""
        self.execute(insert(Item).values(name=f"{self.tenant}'s {name}"))


async def serve(database: Database, kind: str, status: int, work: Any) -> Call:
    """Answer a request with ``status`` after ``work(session)``."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        await respond(send, status)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    await database.async_dispose()
    return call


def insert_a(session: Session) -> None:
    """Write an item."""
    session.add(Item(name="a"))


@pytest.mark.parametrize(
    ("cls", "kind"),
    [(cls, kind) for cls in (AsksFirst, Expiring, Counting, OfTenant) for kind in KINDS if cls is not AsksFirst]
    + [(AsksFirst, "sync")],
)
async def test_a_session_class_of_ones_own_serves_both_kinds(backend: Backend, cls: type[Session], kind: str) -> None:
    """The handler gets it, and its work is committed or rolled back as usual."""
    database = Database(backend.url, session_options={"class_": cls})
    seen: list[bool] = []

    def work(session: Session) -> None:
        seen.append(isinstance(session, cls))
        insert_a(session)

    statuses = []
    for status in (422, 201):
        call = await serve(database, kind, status, work)
        statuses += [*call.starts, *backend.names()]
    assert (statuses, seen) == ([422, 201, "a"], [True, True])


async def test_a_class_that_asks_when_it_is_made_finds_its_connection(sqlite: Backend) -> None:
    """At construction of the ``Database`` it has no connection, which is no error; in a unit it has the unit's."""
    database = Database(sqlite.url, session_options={"class_": AsksFirst})
    with session_scope(database) as session:
        insert_a(session)
    with session_scope(database) as session:
        assert isinstance(session, AsksFirst)
        assert session.items == 1
    database.dispose()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_class_that_sets_expire_on_commit_itself_is_taken_at_its_word(backend: Backend, kind: str) -> None:
    """Otherwise it is False, so that objects are usable for an answer after the commit."""
    expired = []
    for options in ({"class_": Expiring}, {}, {"expire_on_commit": True}):
        database = Database(backend.url, session_options=options)

        def work(session: Session) -> None:
            expired.append(session.expire_on_commit)

        await serve(database, kind, 200, work)
    assert expired == [True, False, True]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_overridden_commit_is_called_by_the_unit(backend: Backend, kind: str) -> None:
    """It is called once for each end, on the ``Session`` that both kinds have."""
    Counting.calls.clear()
    database = Database(backend.url, session_options={"class_": Counting})
    await serve(database, kind, 201, insert_a)
    committed = list(Counting.calls)
    Counting.calls.clear()
    await serve(database, kind, 422, lambda session: session.execute(insert(Item).values(name="b")))
    assert committed == ["commit"]
    assert Counting.calls in (["rollback"], [])
    assert backend.names() == ["a"]


@pytest.mark.parametrize("name", ["commit", "rollback", "close", "aclose", "reset", "invalidate"])
def test_an_async_session_that_overrides_its_end_is_refused(name: str) -> None:
    """Its unit ends the sync session inside it, so the override would never be called."""

    async def own(self: AsyncSession) -> None:
        raise NotImplementedError

    cls = type("Auditing", (AsyncSession,), {name: own})
    with pytest.raises(ConfigurationError) as caught:
        Database("sqlite://", session_options={"class_": cls})
    message = str(caught.value)
    assert f"session_options: Auditing overrides {name}(), which its unit of work does not call" in message
    assert "override it in a Session class instead, and pass that as sync_session_class" in message


def test_what_the_refusal_says_to_write_is_taken(sqlite: Backend) -> None:
    """Both classes may be given, one of each kind."""

    class Asynchronous(AsyncSession):
        async def twice(self, name: str) -> None:
            self.add_all([Item(name=f"{name}1"), Item(name=f"{name}2")])

    Database(sqlite.url, session_options={"class_": Asynchronous, "sync_session_class": Counting})


@pytest.mark.parametrize("kind", KINDS)
async def test_a_class_takes_options_of_its_own(backend: Backend, kind: str) -> None:
    """The database gives them to all sessions, and a scope to one."""
    database = Database(backend.url, session_options={"class_": OfTenant, "tenant": "acme"})
    await serve(database, kind, 201, lambda session: session.insert("a"))
    if kind == "async":
        async with session_scope(database, session_options={"tenant": "zeta"}) as session:
            await session.run_sync(lambda inner: inner.insert("b"))  # type: ignore[attr-defined]
    else:
        await to_thread.run_sync(insert_of_zeta, database)
    await database.async_dispose()
    assert backend.names() == ["acme's a", "zeta's b"]


def insert_of_zeta(database: Database) -> None:
    """Write an item in a scope for another tenant."""
    with session_scope(database, session_options={"tenant": "zeta"}) as session:
        session.insert("b")  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_sessions_of_sqlmodel(backend: Backend, kind: str) -> None:
    """Both classes have an ``exec()`` that skips SQLAlchemy's ``execute()``."""
    options: list[dict[str, Any]] = [
        {"class_": sqlmodel.Session},
        {"class_": sqlmodel.ext.asyncio.session.AsyncSession},
        {"class_": sqlmodel.ext.asyncio.session.AsyncSession, "sync_session_class": sqlmodel.Session},
    ]
    for number, each in enumerate(options):
        database = Database(backend.url, session_options=each)

        def work(session: Any, number: int = number) -> None:
            session.exec(insert(Item).values(name=str(number)))

        assert (await serve(database, kind, 201, work)).starts == [201]
        assert (await serve(database, kind, 422, lambda session: session.exec(delete(Item)))).starts == [422]
    assert backend.names() == ["0", "1", "2"]


@pytest.mark.parametrize("kind", KINDS)
async def test_sqlmodel_cannot_write_in_a_read_only_unit(backend: Backend, kind: str) -> None:
    """Its ``exec()`` is refused like ``execute()``, before anything is sent."""
    database = Database(backend.url, session_options={"class_": sqlmodel.Session})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, lambda session: session.exec(insert(Item).values(name="a")))  # type: ignore[attr-defined]

    call = await Call(SQLAlchemyMiddleware(app, database, read_only={"GET"}))()
    await database.async_dispose()
    assert (type(call.raised), backend.names()) == (ReadOnlyError, [])


# Sessions on several engines


class Second(DeclarativeBase):
    """Tables of another database."""

    metadata = MetaData()


class Entry(Second):
    """A row of the second database."""

    __tablename__ = "entry"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture(params=["sqlite", "postgresql"])
def second(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Return the engine of a second database, which its owner made."""
    with empty_database(request.param, tmp_path) as url:
        driver = "+psycopg" if request.param == "postgresql" else ""
        engine = create_engine(url.replace("postgresql:", f"postgresql{driver}:", 1), pool_size=1, max_overflow=0)
        Second.metadata.create_all(engine)
        yield engine
        engine.dispose()


def refused_by_database() -> Any:
    """Expect the error of a database that refuses a write in a read-only transaction."""
    return pytest.raises(DBAPIError, match=r"readonly database|read-only transaction")


def entries(engine: Engine) -> list[str]:
    """Return the committed rows of the second database."""
    witness = create_engine(engine.url, poolclass=NullPool)
    with witness.connect() as connection:
        return list(connection.scalars(select(Entry.name).order_by(Entry.name)))


def databases(backend: Backend, second: Engine) -> dict[str, Database]:
    """Return databases whose sessions choose an engine for each table, with ``binds=`` and with ``get_bind()``."""

    class Routing(Session):
        def get_bind(self, mapper: Any = None, **kwargs: Any) -> Any:
            if kwargs.get("clause") is not None and "entry" in str(kwargs["clause"]):
                return second
            if mapper is not None and mapper.class_ is Entry:
                return second
            return super().get_bind(mapper, **kwargs)

    return {
        "binds": Database(backend.url, session_options={"binds": {Second: second}}),
        "get_bind": Database(backend.url, session_options={"class_": Routing}),
    }


ROUTES = ["binds", "get_bind"]
TEXTUAL = "INSERT INTO entry (id, name) VALUES (1, 'written')"


@pytest.mark.parametrize("route", ROUTES)
def test_a_second_engine_is_written_to_like_the_first(sqlite: Backend, second: Engine, route: str) -> None:
    """A unit that writes commits on both."""
    database = databases(sqlite, second)[route]
    with session_scope(database) as session:
        session.add_all([Item(name="a"), Entry(id=1, name="b")])
    database.dispose()
    assert (sqlite.names(), entries(second)) == (["a"], ["b"])


@pytest.mark.parametrize("isolation_level", [None, "SERIALIZABLE"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_read_only_unit_cannot_write_through_a_second_engine(
    sqlite: Backend, second: Engine, route: str, isolation_level: str | None
) -> None:
    """We refuse a flush and a statement, and the database itself refuses text."""
    database = databases(sqlite, second)[route]
    level = isolation_level
    with session_scope(database, read_only=True, isolation_level=level) as session:
        assert session.scalar(select(Entry.name)) is None
        with pytest.raises(ReadOnlyError):
            session.execute(insert(Entry).values(name="a"))
    with refused_by_database(), session_scope(database, read_only=True, isolation_level=level) as session:
        session.execute(text(TEXTUAL), bind_arguments={"clause": text(TEXTUAL), "mapper": Entry.__mapper__})
    with session_scope(database) as session:  # the owner's only connection is as it was
        session.add(Entry(id=2, name="after"))
    database.dispose()
    assert entries(second) == ["after"]


@pytest.mark.parametrize("route", ROUTES)
def test_a_read_only_unit_cannot_write_on_the_connection_of_a_second_engine(
    sqlite: Backend, second: Engine, route: str
) -> None:
    """A statement on the connection skips the session, and the database refuses it."""
    database = databases(sqlite, second)[route]
    with refused_by_database(), session_scope(database, read_only=True) as session:
        session.connection(bind_arguments={"mapper": Entry.__mapper__}).exec_driver_sql(TEXTUAL)
    database.dispose()
    assert entries(second) == []


LEVELS = {"postgresql": ("SHOW transaction_isolation", "serializable", "read committed")} | {
    "sqlite": ("PRAGMA read_uncommitted", 1, 0)
}


@pytest.mark.parametrize("route", ROUTES)
def test_the_isolation_level_of_a_unit_holds_on_every_engine(sqlite: Backend, second: Engine, route: str) -> None:
    """It applies to both engines, and afterwards the owner's connection has its own level again."""
    database = databases(sqlite, second)[route]
    query, wanted, usual = LEVELS[second.dialect.name]
    level = "SERIALIZABLE" if second.dialect.name == "postgresql" else "READ UNCOMMITTED"
    seen = []
    for each in (level, None):
        with session_scope(database, isolation_level=each) as session:
            session.connection()
            bind = session.connection(bind_arguments={"mapper": Entry.__mapper__})
            seen.append(bind.exec_driver_sql(query).scalar())
    database.dispose()
    assert seen == [wanted, usual]


@pytest.mark.parametrize("route", ROUTES)
def test_a_second_engine_has_one_connection_for_a_unit_with_a_level_of_its_own(
    sqlite: Backend, second: Engine, route: str
) -> None:
    """All its statements are in one transaction."""
    database = databases(sqlite, second)[route]
    level = "SERIALIZABLE" if second.dialect.name == "postgresql" else "READ UNCOMMITTED"
    with session_scope(database, isolation_level=level) as session:
        session.add(Entry(id=1, name="a"))
        session.flush()
        assert session.scalar(select(Entry.name)) == "a"
        mine = session.connection(bind_arguments={"mapper": Entry.__mapper__})
        assert session.connection(bind_arguments={"mapper": Entry.__mapper__}) is mine
    database.dispose()
    assert entries(second) == ["a"]
