"""Models: lookups of both kinds, and rows that many sessions create at once."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar, assert_type, cast

import pytest
from sqlalchemy import ForeignKey, Index, String, create_engine, event, func, insert, select, text
from sqlalchemy.exc import IntegrityError, MultipleResultsFound, NoResultFound, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, scoped_session
from sqlalchemy.pool import NullPool
from sqlmodel import Field, SQLModel
from support.asgi import Call, respond
from support.empty import KINDS, empty_database

from asgi_sqla import (
    AsgiSqlaError,
    ConfigurationError,
    Database,
    NoUnitOfWorkError,
    SQLAlchemyMiddleware,
    current_unit,
    session_scope,
)
from asgi_sqla.models import (
    Base,
    LookupMixin,
    NotFoundError,
    first_or_404,
    first_or_none,
    get_by_pk,
    get_one,
    get_one_or_none,
    get_or_404,
    get_or_create,
    update_or_create,
)
from asgi_sqla.testing import rolled_back

CLIENTS = 50


class Shop(Base):
    """The base of the tests' own tables."""

    __abstract__ = True


class User(Shop):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    full_name: Mapped[str | None] = mapped_column(String(50))
    age: Mapped[int] = mapped_column(default=0)
    orders: Mapped[list[Order]] = relationship(back_populates="user")

    @property
    def nick(self) -> str | None:
        """A plain property, which is not a column."""
        return self.full_name

    @nick.setter
    def nick(self, nick: str) -> None:
        self.full_name = nick.title()


class Order(Shop):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    # Names that a lookup might take for itself.
    session: Mapped[str | None] = mapped_column(String(50))
    defaults: Mapped[str | None] = mapped_column(String(50))
    cls: Mapped[str | None] = mapped_column(String(50))
    model: Mapped[str | None] = mapped_column(String(50))
    user: Mapped[User | None] = relationship(back_populates="orders")


class Line(Shop):
    __tablename__ = "order_lines"
    order_id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of each kind of database in turn, with the tables."""
    with empty_database(request.param, tmp_path) as url:
        make_tables(url)
        yield url


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Return a SQLite database with the tables."""
    database = Database(f"sqlite:///{tmp_path / 'shop.db'}")
    Shop.metadata.create_all(database.engine)
    yield database
    database.dispose()


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    """Return a session of a new scope."""
    with session_scope(database) as session:
        yield session


def make_tables(url: str) -> None:
    """Create the tables and leave no connection open."""
    database = Database(url, engine_options={"poolclass": NullPool})
    Shop.metadata.create_all(database.engine)


def count_users(url: str) -> int:
    """Return how many users another connection sees."""
    database = Database(url, engine_options={"poolclass": NullPool})
    with database.engine.connect() as connection:
        return int(connection.scalar(select(func.count()).select_from(User)) or 0)


class Both:
    """One question in both kinds of session, answered alike."""

    def __init__(self, database: Database, kind: str) -> None:
        self.database = database
        self.kind = kind

    async def __call__(self, question: Any) -> Any:
        """Return ``question(session)`` in a new scope."""
        if self.kind == "sync":
            with session_scope(self.database) as session:
                return question(session)
        async with session_scope(self.database) as async_session:
            return await question(async_session)


@pytest.fixture(params=["sync", "async"])
def both(request: pytest.FixtureRequest, database: Database) -> Both:
    """Return each kind of session in turn."""
    return Both(database, request.param)


# Lookups


async def test_class_methods_find_rows_in_the_session_they_are_given(both: Both) -> None:
    """With an AsyncSession each lookup returns an awaitable, and with a Session the value."""
    made, created = await both(lambda session: User.get_or_create(session, name="foo"))
    again, created_again = await both(lambda session: User.get_or_create(session, name="foo"))

    assert (created, created_again, again.id) == (True, False, made.id)
    assert (await both(lambda session: User.get_by_pk(session, made.id))).name == "foo"
    assert (await both(lambda session: User.get_or_404(session, made.id))).name == "foo"
    assert (await both(lambda session: User.get_one(session, name="foo"))).id == made.id
    assert (await both(lambda session: User.get_one_or_none(session, name="foo"))).id == made.id
    assert (await both(lambda session: User.first_or_none(session, name="foo"))).id == made.id
    assert (await both(lambda session: User.first_or_404(session, name="foo"))).id == made.id


async def test_functions_do_the_same_for_any_base(both: Both) -> None:
    """They take a model without the mixin as second argument."""
    made, created = await both(lambda session: get_or_create(session, User, name="foo"))
    row, made_now = await both(lambda session: update_or_create(session, User, name="foo", defaults={"age": 3}))

    assert (created, made_now, row.age) == (True, False, 3)
    assert (await both(lambda session: get_by_pk(session, User, made.id))).name == "foo"
    assert (await both(lambda session: get_or_404(session, User, made.id))).name == "foo"
    assert (await both(lambda session: get_one(session, User, name="foo"))).id == made.id
    assert (await both(lambda session: get_one_or_none(session, User, name="foo"))).id == made.id
    assert (await both(lambda session: first_or_none(session, User, name="foo"))).id == made.id
    assert (await both(lambda session: first_or_404(session, User, name="foo"))).id == made.id


async def test_what_is_missing_is_none_or_an_error_that_names_it(both: Both) -> None:
    """The result is None if the name of the lookup says so; otherwise the error names model and filters."""
    assert await both(lambda session: User.get_by_pk(session, 7)) is None
    assert await both(lambda session: User.get_one_or_none(session, name="foo")) is None
    assert await both(lambda session: User.first_or_none(session, name="foo")) is None
    with pytest.raises(NoResultFound, match=r"^there is no User with name='foo', age=3$"):
        await both(lambda session: User.get_one(session, name="foo", age=3))
    with pytest.raises(NotFoundError, match=r"^there is no User with id=7$"):
        await both(lambda session: User.get_or_404(session, 7))
    with pytest.raises(NotFoundError, match=r"^there is no Line with order_id=1, number=2$"):
        await both(lambda session: Line.get_or_404(session, (1, 2)))
    with pytest.raises(NotFoundError, match=r"^there is no User$"):
        await both(lambda session: User.first_or_404(session))


async def test_several_rows_where_one_is_asked_for_are_an_error(both: Both) -> None:
    """The error names model and filters; first_or_none returns the lowest primary key."""
    await both(lambda session: User.get_or_create(session, name="b", age=3))
    await both(lambda session: User.get_or_create(session, name="a", age=3))

    for question in (User.get_one, User.get_one_or_none, User.get_or_create, User.update_or_create):
        with pytest.raises(MultipleResultsFound, match=r"^there is more than one User with age=3$"):
            await both(lambda session, question=question: question(session, age=3))
    assert (await both(lambda session: User.first_or_none(session, age=3))).name == "b"


async def test_an_unknown_attribute_is_an_error_that_names_the_known(both: Both) -> None:
    """This includes defaults, and happens before anything is written."""
    with pytest.raises(ConfigurationError, match=r"User has no attribute 'nmae'; it has age, full_name, id, name"):
        await both(lambda session: User.get_one(session, nmae="foo"))
    with pytest.raises(ConfigurationError, match="User has no attribute 'agee'"):
        await both(lambda session: User.update_or_create(session, name="foo", defaults={"agee": 1}))
    assert await both(lambda session: User.first_or_none(session)) is None


def test_no_filter_name_is_taken(session: Session) -> None:
    """Columns may be called session, cls and model; one called defaults goes into a mapping."""
    order, created = Order.get_or_create(session, session="a", cls="b", model="c", defaults="d")

    assert created
    assert Order.get_one(session, {"session": "a", "defaults": "d"}, cls="b", model="c") is order
    changed, created = Order.update_or_create(session, {"defaults": "d"}, defaults={"defaults": "e"})
    assert (changed is order, created, order.defaults) == (True, False, "e")


def test_an_object_is_a_filter_too(session: Session) -> None:
    """A relationship is an attribute like any other."""
    user, _ = User.get_or_create(session, name="foo")
    order, created = Order.get_or_create(session, user=user)

    assert (created, Order.get_one(session, user=user) is order) == (True, True)


def test_defaults_may_be_all_that_can_be_set(session: Session) -> None:
    """Collections and plain properties can be set, although they cannot be filters."""
    order, _ = Order.get_or_create(session, session="a")
    made, _ = User.update_or_create(session, name="foo", defaults={"orders": [order], "nick": "foo"})
    user, created = User.update_or_create(session, name="foo", defaults={"orders": [], "nick": "bar"})

    assert (created, user is made, user.full_name, user.orders, order.user) == (False, True, "Bar", [], None)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda session: User.get_one(session, cast("Any", "foo")), "write filters as keyword arguments"),
        (lambda session: User.get_by_pk(session), "pass one value"),
        (lambda session: cast("Any", User).get_by_pk(session, 1, 2), "pass one value"),
        (lambda session: get_one(session, dict, name="foo"), "is not a mapped class"),
        (lambda session: get_by_pk(session, session.get_bind(), 1), "is not a mapped class"),
    ],
)
def test_a_wrong_use_is_an_error_that_says_what_to_write(session: Session, use: Any, message: str) -> None:
    """The error is ours, and is raised at once."""
    with pytest.raises(ConfigurationError, match=message):
        use(session)


# Making and updating


async def test_update_or_create_uses_defaults_for_both(both: Both) -> None:
    """Without create_defaults, defaults serve both."""
    made, created = await both(lambda s: User.update_or_create(s, name="foo", defaults={"age": 1}))
    updated, created_again = await both(lambda s: User.update_or_create(s, name="foo", defaults={"age": 2}))

    assert (created, made.age) == (True, 1)
    assert (created_again, updated.id, updated.age) == (False, made.id, 2)
    assert (await both(lambda session: User.get_one(session, name="foo"))).age == 2


async def test_create_defaults_are_taken_as_they_are(both: Both) -> None:
    """An empty mapping creates the row from the filters alone."""
    with_some, _ = await both(
        lambda s: User.update_or_create(s, name="a", defaults={"age": 1}, create_defaults={"full_name": "A"})
    )
    with_none, _ = await both(lambda s: User.update_or_create(s, name="b", defaults={"age": 1}, create_defaults={}))

    assert (with_some.full_name, with_some.age) == ("A", 0)
    assert (with_none.full_name, with_none.age) == (None, 0)


async def test_another_broken_constraint_is_no_lost_race(both: Both) -> None:
    """A row that cannot be inserted raises IntegrityError, and the session stays usable."""
    await both(lambda session: User.get_or_create(session, name="foo"))

    def sync(session: Session) -> tuple[User, bool]:
        with pytest.raises(IntegrityError):
            User.update_or_create(session, age=9, defaults={"name": "foo"})
        return User.get_or_create(session, name="bar")

    async def asynchronous(session: AsyncSession) -> tuple[User, bool]:
        with pytest.raises(IntegrityError):
            await User.update_or_create(session, age=9, defaults={"name": "foo"})
        return await User.get_or_create(session, name="bar")

    _, created = await both(sync if both.kind == "sync" else asynchronous)
    assert created


def test_an_error_of_what_was_pending_before_is_not_taken_for_a_lost_race(database: Database) -> None:
    """The error belongs to the user's own object, and nothing is read again."""
    with session_scope(database) as session:
        session.add(User(name="foo"))

    with pytest.raises(IntegrityError):
        make_beside_a_duplicate(database)


def make_beside_a_duplicate(database: Database) -> None:
    """Add an object that cannot be inserted, and create another one."""
    with session_scope(database) as session, session.no_autoflush:
        session.add(User(name="foo"))
        User.get_or_create(session, name="bar")


async def make_in_threads(url: str, make: Any) -> list[Any]:
    """Return the results of 50 threads that ask at once, each in its own scope."""
    database = Database(url, engine_options=engine_options(url))

    def client(_number: int) -> Any:
        with session_scope(database) as session:
            return make(session)

    with ThreadPoolExecutor(CLIENTS) as pool:
        results = list(pool.map(client, range(CLIENTS)))
    database.dispose()
    return results


async def make_in_tasks(url: str, make: Any) -> list[Any]:
    """Return the results of 50 tasks that ask at once, each in its own scope."""
    database = Database(url, engine_options=engine_options(url))

    async def client() -> Any:
        async with session_scope(database) as session:
            return await make(session)

    results = await asyncio.gather(*[client() for _ in range(CLIENTS)])
    await database.async_dispose()
    return results


def engine_options(url: str) -> dict[str, Any]:
    """Let all clients connect at once; SQLite lets them write one by one."""
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": 30.0}}
    return {"pool_size": CLIENTS, "max_overflow": 0}


@pytest.mark.parametrize("run", [make_in_threads, make_in_tasks], ids=["sync", "async"])
async def test_one_of_fifty_concurrent_sessions_creates_the_row(url: str, run: Any) -> None:
    """The others get it, without an error."""
    results = await run(url, lambda session: User.get_or_create(session, name="foo"))

    assert sum(created for _, created in results) == 1
    assert len({user.id for user, _ in results}) == 1
    assert count_users(url) == 1


@pytest.mark.parametrize("run", [make_in_threads, make_in_tasks], ids=["sync", "async"])
@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
async def test_one_of_fifty_concurrent_sessions_creates_the_row_that_all_update(url: str, run: Any) -> None:
    """The others update it, except on MariaDB, where an update after a lost race is a deadlock."""
    results = await run(url, lambda session: User.update_or_create(session, name="foo", defaults={"age": 4}))

    assert sum(created for _, created in results) == 1
    assert {user.age for user, _ in results} == {4}
    assert count_users(url) == 1


@pytest.mark.parametrize("url", ["postgresql", "mariadb"], indirect=True)
def test_the_transaction_goes_on_after_a_lost_race(url: str) -> None:
    """The loser's writes before and after it are committed; on SQLite one transaction writes at a time."""
    database = Database(url)

    def win(target: User, _arguments: Any, values: dict[str, Any]) -> None:
        """Insert the row that the loser is about to."""
        with database.engine.begin() as winner:
            winner.execute(insert(User).values(age=0, **values))

    with session_scope(database) as session:
        session.add(User(name="before"))
        event.listen(User, "init", win)
        found, created = User.get_or_create(session, name="foo")
        event.remove(User, "init", win)
        session.add(User(name="after"))
    database.dispose()

    assert (created, found.name, count_users(url)) == (False, "foo", 3)


# Without a session


async def test_without_a_session_the_units_is_used(database: Database) -> None:
    """The model names the database, inside a request and in a scope."""

    class Customer(User):
        __database__: ClassVar[Database] = database

    async def app(scope: Any, receive: Any, send: Any) -> None:
        customer, created = Customer.get_or_create(name="foo")
        assert customer in database.session
        assert created
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.status) == (None, 201)
    with session_scope(database):
        assert Customer.get_one(name="foo").name == "foo"
        assert get_or_404(Customer, 1).name == "foo"
    with pytest.raises(NoUnitOfWorkError):
        Customer.get_one(name="foo")


def test_without_a_database_the_global_one_is_meant() -> None:
    """The error says so if the global database is not configured."""
    with pytest.raises(NoUnitOfWorkError):
        User.get_one(name="foo")

    class Wrong(User):
        __database__ = "sqlite://"

    with pytest.raises(ConfigurationError, match="__database__='sqlite://' is not a Database"):
        Wrong.get_one(name="foo")


# Errors for the web


async def test_not_found_is_answered_404_by_the_middleware(database: Database) -> None:
    """With error_responses this works in any application."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await User.get_or_404(database.async_session, 7)

    call = await Call(SQLAlchemyMiddleware(app, database, error_responses={NotFoundError: 404}))()
    await database.async_dispose()

    assert (call.raised, call.status) == (None, 404)


def test_not_found_says_what_was_looked_for(session: Session) -> None:
    """It is SQLAlchemy's NoResultFound and a LookupError, and can be pickled."""
    with pytest.raises(NotFoundError) as caught:
        User.first_or_404(session, name="foo")

    error: Any = pickle.loads(pickle.dumps(caught.value))
    assert [isinstance(error, kind) for kind in (NoResultFound, LookupError, AsgiSqlaError)] == [True] * 3
    assert (error.model, error.filters, error.status_code) == (User, {"name": "foo"}, 404)


# Bases


def test_the_base_names_every_constraint() -> None:
    """Index, unique constraint, foreign key and primary key have names, so that migrations can find them."""
    names = {str(each.name) for table in (User.__table__, Order.__table__) for each in constraints(table)}

    assert names == {"uq_users_name", "pk_users", "fk_orders_user_id_users", "pk_orders"}


def constraints(table: Any) -> Any:
    """Return the constraints and indexes of a table."""
    return [*table.constraints, *table.indexes]


async def test_the_base_has_awaitable_attributes(database: Database) -> None:
    """An attribute that was not loaded can be awaited."""
    async with session_scope(database) as session:
        user, _ = await User.get_or_create(session, name="foo")
        await Order.get_or_create(session, user_id=user.id)
        await session.refresh(user)
        assert len(await user.awaitable_attrs.orders) == 1
    await database.async_dispose()


def test_a_model_with_a_base_of_its_own_takes_the_mixin() -> None:
    """This holds for a user's declarative base, and for SQLModel's."""

    class Own(LookupMixin, DeclarativeBase):
        pass

    class Thing(Own):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        by_name = Index("by_name", "name")

    class Hero(LookupMixin, SQLModel, table=True):
        id: int | None = Field(default=None, primary_key=True)
        name: str

    database = Database("sqlite://")
    Own.metadata.create_all(database.engine)
    SQLModel.metadata.tables["hero"].create(database.engine)
    with session_scope(database) as session:
        assert Thing.get_or_create(session, name="foo")[1]
        assert Hero.get_or_create(session, name="foo")[1]
        assert Hero.get_one(session, name="foo").id == 1
    database.dispose()
    gc.collect()


def test_a_session_on_an_engine_that_was_passed_in_works(tmp_path: Path) -> None:
    """Python's own SQLite driver begins its transactions late."""
    engine = create_engine(f"sqlite:///{tmp_path / 'own.db'}", poolclass=NullPool)
    Shop.metadata.create_all(engine)
    with session_scope(Database(engine=engine)) as session:
        assert User.get_or_create(session, name="foo")[1]
    with Session(engine) as plain:
        assert User.get_or_create(plain, name="foo")[1] is False


def test_a_transaction_that_is_somebody_elses_is_left_alone(database: Database) -> None:
    """A session on a connection never restarts that connection's transaction."""
    with database.engine.connect() as connection, connection.begin():
        connection.execute(insert(User).values(name="outer", age=0))
        with Session(connection) as session:
            User.get_or_create(session, name="foo")
        assert connection.scalar(select(func.count()).select_from(User)) == 2
    with database.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(User)) == 2


# Beside other work of the same transaction

BESIDE = ("begin hook", "listener of sessions", "temporary table", "rolled_back()")


def begin_beside(what: str, database: Database) -> Any:
    """Do something in each transaction that begins, and return what undoes that."""
    write, table = insert(User).values(name="beside", age=0), text("CREATE TEMP TABLE IF NOT EXISTS t AS SELECT 7 AS x")

    def on_begin(_session: Any, transaction: Any, connection: Any) -> None:
        if not transaction.nested:
            connection.execute(table if what == "temporary table" else write)

    if what in ("listener of sessions", "temporary table"):
        event.listen(Session, "after_begin", on_begin)
        return lambda: event.remove(Session, "after_begin", on_begin)
    if what == "begin hook":
        current_unit().on_begin(lambda connection: connection.execute(write))
    return lambda: None


@pytest.mark.parametrize("ask", ["get_or_create", "update_or_create"])
@pytest.mark.parametrize("what", BESIDE)
async def test_a_lookup_rolls_back_nothing_that_is_not_its_own(both: Both, what: str, ask: str) -> None:
    """Whatever the transaction did before its first lookup is there afterwards."""
    undos: list[Any] = []

    def begin(session: Any) -> Any:
        undos.append(begin_beside(what, both.database))
        return getattr(User, ask)(session, name="foo")

    async with AsyncExitStack() as stack:
        if what == "rolled_back()":
            await stack.enter_async_context(rolled_back(both.database))
            await both(lambda session: User.get_or_create(session, name="beside"))
        try:
            _, created = await both(begin)
        finally:
            undos[0]()
        names = await both(lambda session: session.scalars(select(User.name).order_by(User.name)))
        found = [*names]
    await both.database.async_dispose()

    assert (created, found) == (True, ["foo"] if what == "temporary table" else ["beside", "foo"])


@pytest.mark.parametrize("what", ["nothing", "begin hook", "temporary table"])
def test_a_lock_lost_after_the_read_is_taken_again(database: Database, what: str) -> None:
    """On SQLite a transaction that has only read, and lost the race to write, starts again; no other one does."""
    raced: list[bool] = []

    def win(_target: User, _arguments: Any, _values: dict[str, Any]) -> None:
        if raced:
            return
        raced.append(True)
        with database.engine.connect() as winner:
            winner.exec_driver_sql("PRAGMA busy_timeout = 0")
            try:
                winner.execute(insert(User).values(name="winner", age=0))
                winner.commit()
            except OperationalError:  # the other one has the lock, as it has written
                winner.rollback()

    event.listen(User, "init", win)
    failed = None
    with suppress(OperationalError), session_scope(database) as session:
        undo = begin_beside(what, database)
        try:
            created = User.get_or_create(session, name="foo")[1]
        except OperationalError as exc:
            failed, created = exc, False
            raise
        finally:
            undo()
            event.remove(User, "init", win)
    with session_scope(database) as session:
        names = session.scalars(select(User.name).order_by(User.name)).all()

    expected = {
        "nothing": (True, ["foo", "winner"]),
        "begin hook": (True, ["beside", "foo"]),
        "temporary table": (False, ["winner"]),  # which a restart would lose
    }
    assert (created, names) == expected[what]
    assert (failed is None) == (what != "temporary table")


# Sessions of other kinds


async def test_scoped_sessions_are_sessions(database: Database) -> None:
    """SQLAlchemy's registries are taken where a session is."""
    scoped = scoped_session(database.sessionmaker)
    async_scoped = async_scoped_session(database.async_sessionmaker, scopefunc=asyncio.current_task)

    made, _ = User.get_or_create(scoped, name="foo")
    again, _ = get_or_create(scoped, User, name="foo")
    scoped.commit()
    found = await User.get_one(async_scoped, name="foo")

    assert (made, found.id) == (again, made.id)
    scoped.remove()
    await async_scoped.remove()
    await database.async_dispose()


# Types: mypy checks these when it checks the tests, and nothing runs


def types_of(session: Session, async_session: AsyncSession) -> None:
    """Check what each kind of session returns, and that type checkers refuse a wrong use."""
    assert_type(User.get_by_pk(session, 1), User | None)
    assert_type(User.get_one(session, name="foo"), User)
    assert_type(User.get_one(name="foo"), User)
    assert_type(User.get_one(async_session, name="foo"), Awaitable[User])
    assert_type(User.get_or_create(session, name="foo"), tuple[User, bool])
    assert_type(User.update_or_create(async_session, name="foo", defaults={}), Awaitable[tuple[User, bool]])
    assert_type(get_one(session, User, name="foo"), User)
    assert_type(get_one(User, name="foo"), User)
    assert_type(get_or_create(async_session, User, name="foo"), Awaitable[tuple[User, bool]])
    assert_type(first_or_none(async_session, User), Awaitable[User | None])
    User.get_one("foo")  # type: ignore[call-overload]
    User.get_one(session, "foo")  # type: ignore[call-overload]
    User.get_one(async_session, name="foo").name  # type: ignore[attr-defined]  # noqa: B018
    get_one(session, name="foo")  # type: ignore[call-overload]
    User.update_or_create(session, name="foo", defaults=3)  # type: ignore[call-overload]


async def awaited(session: Session) -> None:
    """Check that type checkers refuse to await what a Session returns."""
    await User.get_one(session, name="foo")  # type: ignore[misc]
