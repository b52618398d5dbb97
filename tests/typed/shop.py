"""A user's application that uses every public name, for type checkers in their strict modes to agree with.

``tests/test_typed.py`` runs them. Nothing here is called.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, assert_type

import pytest
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import URL, Connection, MetaData, create_engine, select, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import asgi_sqla
from asgi_sqla import (
    ERROR_RESPONSES,
    AsgiSqlaError,
    BlockingSessionWarning,
    ConfigurationError,
    Database,
    DeadlineExceededError,
    DiscardedWorkError,
    ErrorKind,
    MissingDriverError,
    NoUnitOfWorkError,
    PoolExhaustedError,
    ReadOnlyError,
    SessionInUseError,
    SQLAlchemyMiddleware,
    UnitOfWork,
    UnitOfWorkDoomedError,
    UnitOfWorkEndedError,
    WrongEventLoopError,
    classify,
    current_unit,
    on_commit,
    session_scope,
)
from asgi_sqla import db as global_db
from asgi_sqla.cli import commands, syncdb
from asgi_sqla.health import live, ready
from asgi_sqla.migrations import (
    MigrateResult,
    MigrationError,
    MigrationLockError,
    Migrations,
    Status,
    exists_in_db,
    is_sqlite,
    run_env,
    scaffold,
)
from asgi_sqla.models import (
    NAMING_CONVENTION,
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
from asgi_sqla.observe import Report, failed_log, repeated_statements, server_timing, slow_log
from asgi_sqla.settings import DatabaseSettings, database_from, migrations_from
from asgi_sqla.telemetry import instrument
from asgi_sqla.testing import (
    Callback,
    Statements,
    assert_statements,
    captured_callbacks,
    count_statements,
    fail_commit,
    kill_connection,
    rolled_back,
)

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope

logger = logging.getLogger(__name__)


# The database


def on_report(report: Report) -> None:
    """Read a report, as an observer of one's own does."""
    assert_type(report.databases[0].longest_idle, tuple[float, str, str] | None)
    assert_type(report.as_dict(), dict[str, Any])


def on_connect(connection: Any, record: object) -> None:
    """Set up a connection of the driver."""


db = Database(
    "sqlite://",
    engine_options={"pool_size": 5},
    async_engine_options={"pool_size": 10},
    session_options={"expire_on_commit": False},
    transaction_mode="immediate",
    pipelining=False,
)
db.listen("connect", on_connect)
replicated = Database(URL.create("sqlite", database=":memory:"), read_only_url=["sqlite://", URL.create("sqlite")])
pooled = Database(URL.create("postgresql"), transaction_pooler=True, max_waiting=20)
observed = Database("sqlite://", observe=[slow_log(1), repeated_statements(), failed_log, server_timing, on_report])
handed_in = Database(engine=create_engine("sqlite://"), async_engine=create_async_engine("sqlite+aiosqlite://"))


class User(Base):
    """A model with lookups, on the base of the package."""

    __tablename__ = "users"
    __database__ = db
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class OwnBase(DeclarativeBase):
    """A base of one's own."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Order(LookupMixin, OwnBase):
    """A model with lookups, on another base."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


class Line(OwnBase):
    """A model without lookups of its own."""

    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)


# The application

api = FastAPI()
AsyncDatabaseSession = Annotated[AsyncSession, Depends(db.get_async_session)]
DatabaseSession = Annotated[Session, Depends(db.get_session)]


def notify(item: str, *, urgent: bool = False) -> None:
    """Tell somebody."""


async def notify_later(item: str) -> None:
    """Tell somebody, from async code."""


def set_tenant(connection: Connection) -> None:
    """Set up a transaction."""
    connection.execute(text("SELECT 1"))


@api.post("/orders", status_code=201)
async def create_order(item: str, session: AsyncDatabaseSession) -> dict[str, int]:
    """Use the injected session, and register callbacks."""
    order = Order(item=item)
    session.add(order)
    await session.flush()
    unit = assert_type(current_unit(), UnitOfWork)
    unit.on_commit(notify, item, urgent=True)
    unit.on_commit(notify_later, item)
    unit.on_rollback(logger.info, "%s was not ordered", item)
    on_commit(notify, item)
    return {"id": order.id}


@api.get("/orders")
def list_orders(session: DatabaseSession) -> list[str]:
    """Use the injected session in a worker thread, and look at the unit."""
    unit = current_unit()
    unit.on_begin(set_tenant)
    assert_type(unit.attempt, int)
    assert_type(unit.isolation_level, str | None)
    assert_type(unit.name, str)
    assert_type(unit.read_only, bool)
    assert_type(unit.ended, bool)
    unit.rollback_only()
    return list(session.scalars(select(Order.item)))


@api.get("/users/{number}")
async def get_user(number: int) -> str:
    """Use the session of the unit."""
    user = assert_type(await User.get_or_404(db.async_session, number), User)
    return user.name


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Check, migrate and dispose by hand."""
    await db.check()
    await migrations.async_migrate()
    yield
    await db.async_dispose()
    db.dispose()


def commits(scope: Scope, message: Any) -> bool:
    """Commit successes only."""
    return bool(message["status"] < 300)


def reads(scope: Scope) -> bool:
    """Whether a request only reads."""
    return scope["type"] == "http" and scope["method"] in ("GET", "HEAD")


def worth_another_try(error: Exception) -> bool:
    """Ask what kind of error it is."""
    waiting = sum(pool.waiting for pool in db.pools()) + len([holder.unit for holder in db.holders()])
    kind: ErrorKind | None = classify(error)
    return waiting < 20 and kind is not None and kind is not ErrorKind.STANDBY and kind.transient


async def too_busy(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Answer for an error with an ASGI application."""


migrations = Migrations(db, "migrations", metadata=User.metadata, options={"compare_type": True}, lock_timeout=60)

instrument(db, replicated, tracer_provider=None, meter_provider=None)
api.mount("/live", live(db, replicated))
api.mount("/ready", ready(db, replicated, cache=1.0))
api.add_middleware(
    SQLAlchemyMiddleware,
    database=[db, replicated],
    commit_on=commits,
    commit_parts=commits,
    error_responses={
        **ERROR_RESPONSES,
        IntegrityError: 409,
        OperationalError: 503,
        ErrorKind.UNAVAILABLE: too_busy,
        NotFoundError: 404,
    },
    read_only=reads,
    retries=3,
    replay_limit=2**16,
    cancel_on_disconnect=True,
    check_on_startup=True,
    on_startup=migrations.async_migrate,
)
wrapped = SQLAlchemyMiddleware(
    api, db, commit_on=range(200, 300), commit_parts=(), read_only={"GET"}, error_responses=ERROR_RESPONSES
)


def make_app() -> SQLAlchemyMiddleware:
    """Configure the global database by the URL of the middleware."""
    timed = SQLAlchemyMiddleware(api, db, deadline=lambda scope: 2.0 if scope["method"] == "GET" else None)
    assert_type(timed, SQLAlchemyMiddleware)
    return SQLAlchemyMiddleware(api, url="sqlite://", commit_on=lambda scope, message: message["status"] == 201)


# Outside a request


@session_scope(db)
def count(start: int, *, item: str = "") -> int:
    """Count in a scope for each call."""
    return start + len(list(db.session.scalars(select(Order).where(Order.item == item))))


@session_scope(db, retries=3, isolation_level="SERIALIZABLE", deadline=30)
async def close_the_day(day: str) -> list[str]:
    """Work in a scope for each call."""
    return [day, *await db.async_session.scalars(select(Order.item))]


@session_scope()
async def on_the_global_database() -> None:
    """Use the global database."""
    await global_db.async_session.flush()


class Jobs:
    """Methods are decorated as functions are."""

    @session_scope(db, propagation="join")
    def plain(self, number: int) -> str:
        """Join the unit of the caller, if there is one."""
        return f"{self}{number}"

    @session_scope(db, propagation="nested")
    async def coroutine(self, number: int) -> str:
        """Work in a savepoint of the unit of the caller, if there is one."""
        return f"{self}{number}"


async def nightly() -> None:
    """Use scopes in each form."""
    async with session_scope(db, session_options={"autoflush": False}) as session:
        assert_type(session, AsyncSession)
    async with session_scope(db, read_only=True):
        assert_type(db.async_session, AsyncSession)
    with session_scope(db) as sync_session:
        assert_type(sync_session, Session)
        assert_type(db.session, Session)
    scope: AbstractContextManager[Session] = session_scope()
    with scope as sync_session:
        assert_type(sync_session, Session)
    assert_type(count(1, item="tea"), int)
    assert_type(await close_the_day("Monday"), list[str])
    assert_type(Jobs().plain(1), str)
    assert_type(await Jobs().coroutine(1), str)
    typed: Callable[[str], Coroutine[Any, Any, list[str]]] = close_the_day
    await typed("Tuesday")


def administer() -> None:
    """Use the database itself."""
    assert_type(db.engine, Engine)
    assert_type(db.async_engine, AsyncEngine)
    assert_type(db.sessionmaker, sessionmaker[Session])
    assert_type(db.async_sessionmaker, async_sessionmaker[AsyncSession])
    assert_type(db.configured, bool)
    with db.sessionmaker() as session, session.begin():
        assert_type(session, Session)
    global_db.configure("sqlite://", engine_options={"echo": True})


# Models


def look_up(session: Session) -> None:
    """Get values from a Session."""
    assert_type(User.get_by_pk(session, 1), User | None)
    assert_type(User.get_one(session, name="Ann"), User)
    assert_type(User.get_one_or_none({"name": "Ann"}), User | None)
    assert_type(User.first_or_none(session), User | None)
    assert_type(User.first_or_404(session, name="Ann"), User)
    assert_type(Order.get_or_create(session, item="tea"), tuple[Order, bool])
    assert_type(
        Order.update_or_create(session, {"item": "tea"}, defaults={"item": "coffee"}, create_defaults={}),
        tuple[Order, bool],
    )
    assert_type(get_by_pk(session, Line, 1), Line | None)
    assert_type(get_or_404(Line, 1), Line)
    assert_type(get_one(Line, id=1), Line)
    assert_type(get_one_or_none(session, Line, id=1), Line | None)
    assert_type(first_or_none(session, Line), Line | None)
    assert_type(first_or_404(session, Line), Line)
    line, created = get_or_create(session, Line, id=1)
    assert_type(line, Line)
    assert_type(created, bool)


async def look_up_async(session: AsyncSession) -> None:
    """Get awaitables from an AsyncSession."""
    found: Awaitable[User | None] = User.get_by_pk(session, 1)
    assert_type(await found, User | None)
    assert_type(await User.get_one(session, name="Ann"), User)
    user, created = await User.update_or_create(session, name="Ann", defaults={"name": "Bob"})
    assert_type(user, User)
    assert_type(created, bool)
    assert_type(await get_or_404(session, Line, 1), Line)
    assert_type(await update_or_create(session, Line, {"id": 1}), tuple[Line, bool])
    try:
        await Order.get_one(session, item="tea")
    except NotFoundError as exc:
        raise HTTPException(exc.status_code, f"no {exc.model.__name__} with {dict(exc.filters)}") from exc


# Migrations, settings, command line


async def migrate() -> None:
    """Use every command."""
    assert_type(migrations.migrate(stamp="heads"), MigrateResult)
    assert_type(await migrations.async_status(), Status)
    if migrations.status() is Status.UPGRADE_AVAILABLE:
        migrations.upgrade("heads")
    migrations.create()
    migrations.downgrade("-1")
    migrations.drop()
    assert_type(migrations.current(), tuple[str, ...])
    assert_type(await migrations.async_latest(), tuple[str, ...])
    paths = migrations.revision("add a column", autogenerate=True, head="head")
    assert_type(paths[0].name, str)
    assert_type(migrations.with_lock(is_sqlite), bool)
    assert_type(await migrations.async_with_lock(lambda connection: exists_in_db(connection, "users", "name")), bool)
    assert_type(scaffold(migrations.location, "shop:migrations")[0].name, str)
    run_env(migrations)
    run_env(db, OwnBase.metadata)


def read_settings() -> Database:
    """Make a database of settings, in each form."""
    settings = DatabaseSettings.model_validate({"url": "sqlite://", "pool_size": 5})
    assert_type(settings.pool_size, int | None)
    assert_type(migrations_from(settings, database=db, metadata=OwnBase), Migrations)
    database_from({"url": "sqlite://"})
    commands(migrations, "database")
    assert_type(syncdb(migrations), MigrateResult)
    return database_from(settings)


# Errors


def explain(error: AsgiSqlaError) -> str:
    """Distinguish the errors."""
    logger.info("asgi_sqla %s", assert_type(asgi_sqla.__version__, str))
    match error:
        case MissingDriverError() | ConfigurationError():
            return "set-up"
        case NoUnitOfWorkError() | UnitOfWorkEndedError() | UnitOfWorkDoomedError() | DiscardedWorkError():
            return "unit"
        case SessionInUseError() | WrongEventLoopError() | ReadOnlyError() | PoolExhaustedError():
            return "session"
        case DeadlineExceededError():
            return "deadline"
        case MigrationLockError() | MigrationError():
            return "migration"
        case _:
            return str(error)


# Tests, with the fixtures of the plugin and without


@pytest.fixture
def filled(rolled_back_database: Database) -> Database:
    """Use the fixture of the plugin."""
    with session_scope(rolled_back_database) as session:
        session.add(User(name="Ann"))
    return rolled_back_database


@pytest.mark.filterwarnings(f"error::{BlockingSessionWarning.__module__}.{BlockingSessionWarning.__name__}")
def test_with_fixtures(
    filled: Database,
    captured_callbacks: list[Callback],
    count_statements: Callable[[], AbstractContextManager[Statements]],
    assert_statements: Callable[..., AbstractContextManager[Statements]],
    fail_commit: Callable[..., AbstractContextManager[None]],
    kill_connection: Callable[..., AbstractContextManager[None]],
) -> None:
    """Use the other fixtures."""
    with count_statements() as statements, assert_statements(max=1), session_scope(filled) as session:
        session.scalar(select(1))
    assert (len(statements), captured_callbacks) == (1, [])
    with fail_commit(times=0), kill_connection():
        pass


async def test_without_fixtures() -> None:
    """Use the functions of ``asgi_sqla.testing``."""
    async with rolled_back(db, mode="copy") as database:
        assert_type(database, Database)
    with rolled_back(db), captured_callbacks(call=True) as callbacks:
        assert_type(callbacks, list[Callback])
    for callback in callbacks:
        assert_type(callback.function, Callable[..., object])
        print(callback.moment, callback.args, callback.kwargs)
    with count_statements(db) as statements, assert_statements(db, exactly=0):
        assert_type(statements, Statements)
    with fail_commit(db, IntegrityError("COMMIT", None, Exception())), kill_connection(db):
        pass
