"""Every keyword of every public callable: a wrong value raises at once; the error names it and says what to write."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from pydantic import PostgresDsn, SecretStr, TypeAdapter
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool
from support.asgi import Call, respond
from support.databases import Backend, Item
from support.marks import on_postgresql

import asgi_sqla
from asgi_sqla import (
    ConfigurationError,
    Database,
    SQLAlchemyMiddleware,
    UnitOfWork,
    classify,
    current_unit,
    on_commit,
    session_scope,
    testing,
)
from asgi_sqla.database import DatabaseOptions
from asgi_sqla.migrations import Migrations
from asgi_sqla.settings import database_from, migrations_from

URL = "postgresql+psycopg://shop:s3cret@localhost/shop"
PARSED = make_url(URL)
DSN = TypeAdapter(PostgresDsn).validate_python("postgresql://shop:s3cret@localhost/shop")
SECRET = SecretStr(URL)
ENGINE = create_engine("sqlite://")
ASYNC_ENGINE = create_async_engine("sqlite+aiosqlite://")
DATABASE = Database("sqlite://")
NO_DATABASE = ("sqlite://", URL, PARSED, ENGINE, ASYNC_ENGINE, Database, [DATABASE], 5)
NO_COUNT = (-1, 1.5, True, "3", None)
NO_SECONDS = (0, -1.0, True, "2.5", [2.5], float("nan"), float("inf"))
NO_SWITCH = (None, 1, 0, "yes")
NO_MAPPING = (5, "x", [("echo", True)], {"echo"})


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Do nothing."""


async def later(*_arguments: object) -> bool:
    """Answer after an await that never happens."""
    return True


CLOSED = later()
"""What calling an async function returns; the function itself belongs in its place."""
CLOSED.close()


class Later:
    """An object that is async only when it is called."""

    async def __call__(self, *_arguments: object) -> bool:
        return True


class Returning:
    """An object of the right shape that returns an awaitable."""

    def __call__(self, *_arguments: object) -> Awaitable[bool]:
        return later()


class Middlewares:
    """A plain function of a class."""

    def start(self) -> None:
        """Be taken for the twin that is awaited."""


def nothing() -> bool:
    """Take no arguments."""
    return True


def four(_one: object, _two: object, _three: object, _four: object) -> bool:
    """Take too many."""
    return True


def by_name(*, scope: object, message: object) -> bool:
    """Require an argument that is never passed."""
    return True


class Callee(NamedTuple):
    """A public callable, how it is called with one wrong argument, and all its keywords."""

    call: Callable[..., object]
    keywords: tuple[str, ...]


def keywords(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of its arguments."""
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(function).parameters.items()
    return tuple(name for name, each in parameters if name != "self" and each.kind not in kinds)


def middleware(**given: Any) -> object:
    """Return a middleware."""
    database = {} if "url" in given else {"database": DATABASE}
    return SQLAlchemyMiddleware(**{"app": app, **database, **given})


def database(**given: Any) -> object:
    """Return a database on SQLite."""
    return Database(**{"url": "sqlite://", **given})


def configure(**given: Any) -> object:
    """Configure a database on SQLite."""
    Database("sqlite://").configure(**{"url": "sqlite://", **given})
    return None


def listen(**given: Any) -> object:
    """Listen on a database."""
    DATABASE.listen(**{"identifier": "connect", "function": lambda connection, record: None, **given})
    return None


def of_unit(name: str) -> Callable[..., object]:
    """Return what calls the method of a unit without an event loop."""

    def call(**given: Any) -> object:
        with session_scope(DATABASE):
            return getattr(current_unit(), name)(**given)

    return call


def entered(manager: Callable[..., AbstractContextManager[Any]], **needed: Any) -> Callable[..., object]:
    """Return what enters a context manager made by a generator, which checks nothing before."""

    def call(**given: Any) -> object:
        with manager(**{**needed, **given}) as value:
            return value

    return call


def asserted(**given: Any) -> object:
    """Enter ``assert_statements()``, which needs one of two arguments."""
    needed = {} if "exactly" in given else {"max": 1}
    return entered(testing.assert_statements, **needed)(**given)


OF_DATABASE = ("url", *DatabaseOptions.__annotations__)
CALLEES = {
    "SQLAlchemyMiddleware": Callee(middleware, keywords(SQLAlchemyMiddleware)),
    "Database": Callee(database, OF_DATABASE),
    "Database.configure": Callee(configure, OF_DATABASE),
    "Database.listen": Callee(listen, keywords(Database.listen)),
    "session_scope": Callee(functools.partial(session_scope, database=DATABASE), keywords(session_scope)),
    "UnitOfWork.on_commit": Callee(of_unit("on_commit"), keywords(UnitOfWork.on_commit)),
    "UnitOfWork.on_rollback": Callee(of_unit("on_rollback"), keywords(UnitOfWork.on_rollback)),
    "UnitOfWork.on_begin": Callee(of_unit("on_begin"), keywords(UnitOfWork.on_begin)),
    "on_commit": Callee(on_commit, keywords(on_commit)),
    "classify": Callee(classify, keywords(classify)),
    "rolled_back": Callee(testing.rolled_back, keywords(testing.rolled_back)),
    "captured_callbacks": Callee(entered(testing.captured_callbacks), keywords(testing.captured_callbacks)),
    "fail_commit": Callee(entered(testing.fail_commit), keywords(testing.fail_commit)),
    "kill_connection": Callee(entered(testing.kill_connection), keywords(testing.kill_connection)),
    "count_statements": Callee(entered(testing.count_statements), keywords(testing.count_statements)),
    "assert_statements": Callee(asserted, keywords(testing.assert_statements)),
    "Migrations": Callee(functools.partial(Migrations, database=DATABASE, location="m"), keywords(Migrations)),
    "database_from": Callee(database_from, keywords(database_from)),
    "migrations_from": Callee(
        functools.partial(migrations_from, settings={"url": "sqlite://"}), keywords(migrations_from)
    ),
}

ENGINE_OPTIONS: tuple[dict[Any, Any], ...] = (
    *({name: 5} for name in ("pool_sise", "pol_size", "ecko", "isolation", "conect_args", "poolclas")),
    {5: 5},
    *({"pool_size": value} for value in ("5", 5.5, -1, True, None)),
    *({"max_overflow": value} for value in ("5", -2, None)),
    *({"pool_timeout": value} for value in ("30", -1, None, float("nan"))),
    *({"pool_recycle": value} for value in ("1800", -2)),
    *({"pool_pre_ping": value} for value in ("yes", 1)),
    *({"echo": value} for value in ("yes", 2)),
    *({"hide_parameters": value} for value in ("yes", 1)),
    *({"connect_args": value} for value in (5, [1], None)),
    *({"execution_options": value} for value in (5, {"isolation_level": "SERIALISABLE"})),
    *({"isolation_level": value} for value in ("SERIALISABLE", "serialisable", "", 5, "READ COMMITTED")),
    *({"poolclass": value} for value in (StaticPool, SingletonThreadPool, AssertionPool, "QueuePool", int, None)),
    {"pool": QueuePool},
    {"pool": "QueuePool"},
    {"pool": StaticPool(lambda: None)},  # type: ignore[arg-type]
    {"poolclass": NullPool, "pool_size": 5},
    *({"creator": value} for value in (5, later, Later())),
    {"pool_reset_on_return": "rolback"},
    {"plugins": "one"},
    {"logging_name": 5},
    {"query_cache_size": -1},
    {"future": False},
    {"json_serializer": "dumps"},
)
SESSION_OPTIONS: tuple[dict[Any, Any], ...] = (
    *({name: True} for name in ("expire_on_comit", "auto_flush", "autoflsh", "autocommit")),
    {5: 5},
    *({name: "no"} for name in ("autoflush", "expire_on_commit", "autobegin", "twophase")),
    {"binds": [1]},
    {"info": 5},
    {"query_cls": 5},
    {"join_transaction_mode": "savepoint"},
    {"bind": ENGINE},
    {"close_resets_only": True},
)
ONLY_OF_DATABASE = (
    *({"class_": value} for value in (int, "Session", Session(ENGINE), AsyncSession(ASYNC_ENGINE))),
    *({"sync_session_class": value} for value in (int, AsyncSession)),
)

DATABASE_WRONG: dict[str, tuple[Any, ...]] = {
    "url": ("", "app.db", ":memory:", "sqlite:/app.db", "postgresql://h:port/d", "nosql://h", 5, b"sqlite://")
    + (Path("app.db"), ["sqlite://"], {"url": URL}, DSN, SECRET, ENGINE, ASYNC_ENGINE, DATABASE),
    "engine": ("sqlite://", URL, PARSED, ASYNC_ENGINE, create_engine, 5),
    "async_engine": ("sqlite://", URL, PARSED, ENGINE, create_async_engine, 5),
    "engine_options": (*NO_MAPPING, *ENGINE_OPTIONS, {"async_creator": later}),
    "async_engine_options": (*NO_MAPPING, *ENGINE_OPTIONS, {"async_creator": 5}),
    "session_options": (*NO_MAPPING, *SESSION_OPTIONS, *ONLY_OF_DATABASE),
    "read_only_url": (5, "", [], "replica", [5], ["sqlite://", ENGINE], URL, DSN, SECRET, ENGINE, {"url": URL}),
    "transaction_mode": ("exclusive", "IMMEDIATE", True, 5, ["deferred"]),
    "pipelining": NO_SWITCH,
    "transaction_pooler": NO_SWITCH,
    "max_waiting": NO_COUNT[:-1],
    "observe": (5, "x", print, {print}, [None], [5], [later], [Later()], [nothing], [Later], [four]),
}
WRONG: dict[str, dict[str, tuple[Any, ...]]] = {
    "SQLAlchemyMiddleware": {
        "app": (None, 5, "shop.main:app", DATABASE, Later, nothing, by_name),
        "database": (*NO_DATABASE[:-2], 5, (), {DATABASE}, {"url": URL}, (DATABASE, ENGINE)),
        "url": DATABASE_WRONG["url"],
        "commit_on": (None, 200, 5.5, "200", b"200", [99], [600], [True], ["200"], [200.0])
        + (later, Later(), functools.partial(later), nothing, four, by_name, lambda status: True),
        "commit_parts": (None, True, "text/event-stream", ["text/event-stream"], [], {200}, ("text/event-stream",))
        + (later, Later(), functools.partial(later), nothing, four, by_name, lambda status: True),
        "error_responses": (409, "409", [IntegrityError], {"IntegrityError": 409}, {int: 409})
        + tuple({IntegrityError: value} for value in (200, 600, True, "409", None, dict, nothing, lambda exc: 409))
        + ({KeyboardInterrupt: 500}, {asyncio.CancelledError: 500}),
        "read_only": (None, 5, True, "GET", ["get"], [b"GET"], [5], [""])
        + (later, Later(), functools.partial(later), nothing, four, lambda scope, message: True),
        "stick": (0, -1.0, True, float("nan"), float("inf"), "WAL", "2", b"wal", [2.0], 2.0),  # the last: read_only=()
        "stick_by": (None, 5, "Cookie", "X Mark", "", b"X-Mark", ("X-Mark",), (len,), (len, len), (nothing, four))
        + ((later, lambda scope, message, mark: None), "X-Mark"),  # the last: stick=None
        "retries": NO_COUNT,
        "replay_limit": (*NO_COUNT, "1MB"),
        "deadline": (*NO_SECONDS, later, Later(), functools.partial(later), nothing, four),
        "cancel_on_disconnect": NO_SWITCH,
        "check_on_startup": NO_SWITCH,
        "on_startup": (5, "start", nothing, Middlewares().start, Middlewares, app, CLOSED),
    },
    "Database": DATABASE_WRONG,
    "Database.configure": DATABASE_WRONG,
    "Database.listen": {
        "identifier": (None, 5, "", "conect", "before_flush", ["connect"], "dispatch"),
        "function": (None, 5, "connect", later, Later(), nothing, four),
    },
    "session_scope": {
        "database": (*NO_DATABASE, app),
        "propagation": (None, 5, True, "joined", "NEW", ["new"]),
        "session_options": (*NO_MAPPING, *SESSION_OPTIONS, *ONLY_OF_DATABASE),
        "read_only": (*NO_SWITCH, "GET", {"GET"}),
        "isolation_level": (5, True, ["SERIALIZABLE"], "", "SERIALISABLE", "serialisable", "READ COMMITTED"),
        "retries": NO_COUNT,
        "after": (5, True, b"a", DATABASE, "a"),  # the last: read_only=False
        "deadline": (*NO_SECONDS, lambda scope: 2.0),
    },
    "UnitOfWork.on_commit": {"callback": (None, 5, "send", later, Later())},
    "UnitOfWork.on_rollback": {"callback": (None, 5, "send", later, Later())},
    "UnitOfWork.on_begin": {
        "hook": (None, 5, "SET LOCAL a.b = 'c'", later, Later(), functools.partial(later), nothing, four)
    },
    "on_commit": {"callback": (None, 5, "send", later, Later(), Returning())},
    "classify": {"error": (None, 5, "40001", IntegrityError)},
    "rolled_back": {"database": NO_DATABASE, "mode": (None, 5, "copies", "COPY")},
    "captured_callbacks": {"call": NO_SWITCH},
    "fail_commit": {
        "database": NO_DATABASE,
        "error": (5, "IntegrityError", IntegrityError),
        "times": NO_COUNT,
    },
    "kill_connection": {"database": NO_DATABASE},
    "count_statements": {"database": NO_DATABASE},
    "assert_statements": {"database": NO_DATABASE, "max": NO_COUNT[:-1], "exactly": NO_COUNT[:-1]},
    "Migrations": {
        "database": (None, *NO_DATABASE),
        "location": (None, 5, b"migrations", URL, DATABASE),
        "metadata": (5, "Base", object()),
        "options": NO_MAPPING,
        "lock_timeout": (None, -1, True, "600", float("nan")),
        "config": (5, "nowhere.ini", URL, DATABASE),
    },
    "database_from": {
        "settings": (5, "sqlite://", URL, [("url", URL)], {}, {5: 5}, {"sqlalchemy": URL}, {"echo": True})
    },
    "migrations_from": {
        "settings": (5, "sqlite://", URL, {}, {5: 5}, {"sqlalchemy": URL}),
        "database": NO_DATABASE,
        "metadata": (5, "Base", object()),
    },
}

HINT = re.compile(
    r"\b(write|pass|leave it out|not one of|neither True nor False|such as|give it to|is for the global db)\b"
)


def told(value: Any, message: str) -> bool:
    """Return whether the message shows the value, or its wrong part, or says what it does not show."""
    if isinstance(value, Mapping):
        return not value or any(str(part) in message or told(part, message) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set) and any(told(part, message) for part in value):
        return True
    if isinstance(value, str) and "***" in message:
        return True
    names = type(value).__name__, getattr(value, "__name__", None)
    return any(each in message for each in (repr(value), f"={value}:", "not shown", *names) if each)


def fault(call: Callable[..., object], keyword: str, value: Any) -> str | None:
    """Return what is wrong with the refusal of a value, or that the value was accepted."""
    try:
        call(**{keyword: value})
    except ConfigurationError as exc:
        message = str(exc)
    except Exception as exc:
        return f"{value!r} raises {exc!r}"
    else:
        return f"{value!r} is taken"
    if not re.search(rf"\b{keyword}\b", message):
        return f"the argument is not named: {message}"
    if not told(value, message):
        return f"{value!r} is not shown: {message}"
    if not HINT.search(message):
        return f"not told what to write: {message}"
    return f"shows a password: {message}" if "s3cret" in message else None


@pytest.mark.parametrize(("name", "keyword"), [(name, keyword) for name, table in WRONG.items() for keyword in table])
def test_a_wrong_value_is_refused_when_it_is_given(name: str, keyword: str, global_db: Database) -> None:
    """The error names the argument, shows the value unless it may contain a password, and says what to write."""
    values = WRONG[name][keyword]
    assert values
    assert [found for value in values if (found := fault(CALLEES[name].call, keyword, value))] == []


@pytest.mark.parametrize("name", CALLEES)
def test_every_keyword_has_wrong_values(name: str) -> None:
    """A new or renamed keyword needs a row in the table."""
    assert sorted(WRONG[name]) == sorted(CALLEES[name].keywords)


def test_every_public_callable_is_in_the_table() -> None:
    """The package and ``asgi_sqla.testing`` are covered, except errors and callables without arguments."""
    public = {**vars(asgi_sqla), **vars(testing)}
    names = {name for name in (*asgi_sqla.__all__, *testing.__all__) if callable(public[name])}
    errors = {name for name in names if isinstance(public[name], type) and issubclass(public[name], Exception)}
    without_arguments = {name for name in names - errors if not keywords(public[name])}
    made_by_us = {"ErrorKind", "UnitOfWork", "Callback", "Statements", "db"}
    methods = {f"{cls.__name__}.{name}" for cls in (Database, UnitOfWork) for name in public_methods(cls)}
    in_modules = {"Migrations", "database_from", "migrations_from"}

    expected = (names - errors - without_arguments - made_by_us) | methods | in_modules
    assert set(CALLEES) == expected | {"Database"}


def public_methods(cls: type) -> Iterator[str]:
    """Yield the methods of a class that take arguments."""
    for name, member in vars(cls).items():
        if name[0] != "_" and inspect.isfunction(member) and keywords(member):
            yield name


UNKNOWN = [
    ("SQLAlchemyMiddleware", "db", "write database="),
    ("SQLAlchemyMiddleware", "db_url", "write url="),
    ("SQLAlchemyMiddleware", "engine_args", "engine_options="),
    ("SQLAlchemyMiddleware", "engine", "database=Database(engine=...)"),
    ("SQLAlchemyMiddleware", "session_args", "session_options="),
    ("SQLAlchemyMiddleware", "commit_one", "commit_on"),
    ("SQLAlchemyMiddleware", "comit_on", "commit_on"),
    ("SQLAlchemyMiddleware", "readonly", "read_only"),
    ("SQLAlchemyMiddleware", "retry", "retries"),
    ("Database", "db_url", 'Database("postgresql://...")'),
    ("Database", "db", 'Database("postgresql://...")'),
    ("Database", "bind", "engine="),
    ("Database", "pool_size", 'engine_options={"pool_size": ...}'),
    ("Database", "max_overflow", 'engine_options={"max_overflow": ...}'),
    ("Database", "echo", 'engine_options={"echo": ...}'),
    ("Database", "isolation_level", 'engine_options={"isolation_level": ...}'),
    ("Database", "connect_args", 'engine_options={"connect_args": ...}'),
    ("Database", "expire_on_commit", 'session_options={"expire_on_commit": ...}'),
    ("Database", "autoflush", 'session_options={"autoflush": ...}'),
    ("Database", "engine_option", "engine_options"),
    ("Database", "async_url", "url"),
    ("Database.configure", "pool_size", 'engine_options={"pool_size": ...}'),
    ("Database.configure", "readonly_url", "read_only_url"),
    ("session_scope", "db", "write database="),
    ("session_scope", "url", "session_scope(Database(url))"),
    ("session_scope", "isolation", "isolation_level"),
    ("session_scope", "readonly", "read_only"),
    ("session_scope", "expire_on_commit", "session_options"),
]


@pytest.mark.parametrize(("name", "keyword", "write"), UNKNOWN)
def test_an_unknown_keyword_is_refused_with_the_one_to_write(name: str, keyword: str, write: str) -> None:
    """Keywords of other libraries are known by name, and for a misspelt one the arguments are listed."""
    with pytest.raises(ConfigurationError, match=f"^{keyword}= is not an argument of") as caught:
        CALLEES[name].call(**{keyword: URL})
    assert write in str(caught.value)
    assert "s3cret" not in str(caught.value)


SPELLINGS = ["SERIALIZABLE", "serializable", "Serializable", "sErIaLiZaBlE"]
TWO_WORDS = ["REPEATABLE READ", "repeatable read", "repeatable_read", "REPEATABLE_READ"]


@pytest.mark.parametrize("level", SPELLINGS)
def test_an_isolation_level_may_be_written_in_any_case(backend: Backend, level: str) -> None:
    """This holds in a scope, in the options of an engine, and in its execution options."""
    ways: list[dict[str, Any]] = [{"isolation_level": level}, {"execution_options": {"isolation_level": level}}]
    for options in ways:
        database = Database(backend.url, engine_options=options)
        with session_scope(database, isolation_level=level) as session:
            session.add(Item(name=f"{len(backend.names())}"))
        database.dispose()
    assert backend.names() == ["0", "1"]


@pytest.mark.parametrize("level", TWO_WORDS)
@on_postgresql
def test_the_level_of_an_engine_comes_back_after_a_scope_with_another(backend: Backend, level: str) -> None:
    """The connection returns to its pool with its own level, however that is spelled."""
    database = Database(backend.url, engine_options={"isolation_level": level, "pool_size": 1, "max_overflow": 0})
    seen = []
    for other in ("serializable", None, "READ_COMMITTED", None):
        with session_scope(database, isolation_level=other) as session:
            seen.append(session.scalar(text("SHOW transaction_isolation")))
    database.dispose()
    assert seen == ["serializable", "repeatable read", "read committed", "repeatable read"]


def test_a_scope_of_the_global_db_checks_its_level_at_the_first_call(global_db: Database) -> None:
    """At import a decorator cannot check a level, but the first call can."""
    scope = session_scope(isolation_level="READ COMMITTED")
    global_db.configure("sqlite://")
    with pytest.raises(ConfigurationError, match="isolation_level='READ COMMITTED' is not one of 'AUTOCOMMIT'"), scope:
        pass


@pytest.mark.parametrize("argument", ["commit_on", "commit_parts", "read_only"])
@pytest.mark.parametrize("returning", [lambda *_: later(), Returning()], ids=["function", "object"])
async def test_a_rule_that_returns_an_awaitable_fails_the_request(
    sqlite: Backend, argument: str, returning: Any
) -> None:
    """Only the call of a plain function shows the awaitable: nothing is committed, and the error says so."""
    database = Database(sqlite.url)

    async def insert(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="a"))
        await respond(send, 201)

    arguments: Any = {argument: returning}
    call = await Call(SQLAlchemyMiddleware(insert, database, **arguments))()
    await database.async_dispose()

    assert isinstance(call.raised, ConfigurationError)
    assert f"{argument}={returning!r} returned <coroutine" in str(call.raised)
    assert "return a bool" in str(call.raised)
    assert (call.starts in ([500], []), sqlite.names()) == (True, [])


async def test_an_awaitable_of_a_begin_hook_fails_the_statement(sqlite: Backend) -> None:
    """A hook that returns an awaitable has set nothing, so the transaction must not continue."""
    database = Database(sqlite.url)
    async with session_scope(database) as session:
        current_unit().on_begin(Returning())
        with pytest.raises(ConfigurationError, match="nothing awaits it when a transaction begins"):
            await session.scalar(text("SELECT 1"))
        await session.rollback()
    await database.async_dispose()


def test_the_database_is_not_called() -> None:
    """FastAPI-SQLAlchemy's ``with db():`` is ``with session_scope(db) as session:``."""
    for arguments in ({}, {"commit_on_exit": True}):
        with pytest.raises(ConfigurationError, match=r"with session_scope\(db\) as session"):
            DATABASE(**arguments)


async def test_a_session_is_not_called() -> None:
    """``db.session`` is a session, where other libraries have a factory or a registry."""
    with session_scope(DATABASE):
        session: Any = DATABASE.session
        with pytest.raises(ConfigurationError, match=r"^a session is not callable: db\.session and"):
            session()
    async with session_scope(DATABASE):
        async_session: Any = DATABASE.async_session
        with pytest.raises(ConfigurationError, match=r"^a session is not callable: db\.session and"):
            async_session(expire_on_commit=False)
    await DATABASE.async_dispose()


def test_a_session_class_of_ones_own_may_take_options_in_a_scope() -> None:
    """The class says which options it accepts."""

    class Tenant(Session):
        def __init__(self, *, tenant: str = "none", **options: Any) -> None:
            self.tenant = tenant
            super().__init__(**options)

    database = Database("sqlite://", session_options={"class_": Tenant})
    with session_scope(database, session_options={"tenant": "acme"}) as session:
        assert cast("Tenant", session).tenant == "acme"
    with pytest.raises(ConfigurationError, match="'tennant' is not accepted; write what Tenant accepts"):
        session_scope(database, session_options={"tennant": "acme"})
