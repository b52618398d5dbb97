"""Wrong arguments raise at construction; the error names the argument and its value, and says what to write."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from starlette.applications import Starlette

from asgi_sqla import ConfigurationError, Database, MissingDriverError, SQLAlchemyMiddleware, session_scope
from asgi_sqla.errors import needing

ENGINE = create_engine("sqlite://")
ASYNC_ENGINE = create_async_engine("sqlite+aiosqlite://")
DATABASE = Database("sqlite://")
PG = "postgresql+psycopg://u:s3cret@h/d"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Do nothing."""


async def one_argument(scope: Any) -> None:
    """Have the signature of an ASGI 2 application."""


async def async_verdict(scope: Any, message: Any) -> bool:
    """Return a verdict that is never awaited."""
    return True


class AsyncVerdict:
    """A callable whose result is never awaited."""

    async def __call__(self, scope: Any, message: Any) -> bool:
        return True


def generator() -> Iterator[int]:
    """Run while it is consumed."""
    yield 1


async def async_generator() -> AsyncIterator[int]:
    """Run while it is consumed."""
    yield 1


class Other:
    """A class that is not a session class."""


def middleware(**arguments: Any) -> SQLAlchemyMiddleware:
    """Return a middleware with a wrong argument."""
    return SQLAlchemyMiddleware(arguments.pop("app", app), arguments.pop("database", DATABASE), **arguments)


def database(url: str | None = "sqlite://", **options: Any) -> Database:
    """Return a database with a wrong argument; mypy accepts no ``partial()`` of a class with type defaults."""
    return Database(url, **options)


def named(argument: str, value: Any, call: Callable[..., object], *, hint: str) -> Any:
    """Return a case: ``call(argument=value)`` raises an error that contains both, and ``hint``."""
    return pytest.param(
        functools.partial(call, **{argument: value}),
        (f"{argument}={value!r}", hint),
        id=f"{argument}={getattr(value, '__name__', None) or type(value).__name__}",
    )


def case(name: str, call: Callable[[], object], *parts: str) -> Any:
    """Return a case: ``call()`` raises an error that contains ``parts``."""
    return pytest.param(call, parts, id=name)


CASES = [
    # Database
    case("no arguments", Database, "url=None", 'Database("sqlite:///app.db")'),
    named("url", "", Database, hint='write one such as "sqlite:///app.db"'),
    case("url without a scheme", lambda: Database("app.db"), "url", "write one such as"),
    case("url that is a path", lambda: Database(42), "url", "write one such as"),  # type: ignore[arg-type]
    case("unknown dialect", lambda: Database("nosql://h"), "url=nosql://h", "'nosql'", "postgresql, sqlite"),
    named("engine", ASYNC_ENGINE, Database, hint="an AsyncEngine as async_engine="),
    named("async_engine", ENGINE, Database, hint="a sync Engine as engine="),
    named("engine", "sqlite://", Database, hint="pass what create_engine() returned"),
    named("engine_options", 5, database, hint='{"name": value}'),
    named("session_options", ["x"], database, hint='{"name": value}'),
    named("engine_options", {"echo": True}, functools.partial(database, None, engine=ENGINE), hint="leave it out"),
    named("transaction_mode", "exclusive", database, hint='"deferred" and "immediate"'),
    named("transaction_mode", "immediate", functools.partial(database, PG), hint="leave it out"),
    named("transaction_mode", "deferred", functools.partial(database, None, engine=ENGINE), hint="leave it out"),
    *(
        case(
            f"session_options {name}",
            functools.partial(database, session_options={name: value}),
            "session_options",
            f"{name}={value!r}",
            hint,
        )
        for name, value, hint in [
            ("close_resets_only", True, "leave it out"),
            ("bind", ENGINE, "leave it out, and pass engine="),
            ("class_", Other, "not a subclass of Session or AsyncSession"),
            ("class_", "Session", "not a subclass of Session or AsyncSession"),
            ("sync_session_class", Other, "not a subclass of sqlalchemy.orm.Session"),
        ]
    ),
    # SQLAlchemyMiddleware
    named("app", None, middleware, hint="SQLAlchemyMiddleware(app, database), the application first"),
    named("app", one_argument, middleware, hint="a callable of (scope, receive, send)"),
    named("app", Starlette, middleware, hint="a callable of (scope, receive, send)"),
    case("swapped", lambda: SQLAlchemyMiddleware(DATABASE, app), "app=<Database", "the application first"),  # type: ignore[arg-type]
    named("database", ENGINE, middleware, hint="SQLAlchemyMiddleware(app, Database(url))"),
    named("database", (), middleware, hint="SQLAlchemyMiddleware(app, Database(url))"),
    named("database", (DATABASE, ENGINE), middleware, hint="SQLAlchemyMiddleware(app, Database(url))"),
    case("url as database", lambda: middleware(database=PG), "database=", "SQLAlchemyMiddleware(app, Database(url))"),
    named("url", "sqlite://", middleware, hint="url= is for the global db; pass one"),
    named("commit_on", 200, middleware, hint="such as range(200, 300)"),
    named("commit_on", "200", middleware, hint="such as range(200, 300)"),
    named("commit_on", None, middleware, hint="such as range(200, 300)"),
    case("no status", lambda: middleware(commit_on=[200, 99]), "commit_on holds 99", "from 100 to 599"),
    case("status as text", lambda: middleware(commit_on=["200"]), "commit_on holds '200'", "whole numbers"),
    case("status as a bool", lambda: middleware(commit_on=[True]), "commit_on holds True", "whole numbers"),
    case("status 600", lambda: middleware(commit_on=range(200, 601)), "commit_on holds 600", "from 100 to 599"),
    named("commit_on", async_verdict, middleware, hint="write a plain function (scope, message) -> bool"),
    named("commit_on", AsyncVerdict(), middleware, hint="write a plain function (scope, message) -> bool"),
    named("error_responses", [IntegrityError], middleware, hint="write {IntegrityError: 409}"),
    *(
        case(f"error_responses {given!r:.40}", functools.partial(middleware, error_responses=given), *parts)
        for given, parts in [
            ({"IntegrityError": 409}, ("error_responses has the key 'IntegrityError'", "write an exception class")),
            ({int: 409}, ("error_responses has the key <class 'int'>", "write an exception class")),
            ({IntegrityError: 200}, ("error_responses has the value 200", "a status from 400 to 599")),
            ({IntegrityError: 600}, ("error_responses has the value 600", "a status from 400 to 599")),
            ({IntegrityError: "409"}, ("error_responses has the value '409'", "a status from 400 to 599")),
            ({IntegrityError: True}, ("error_responses has the value True", "a status from 400 to 599")),
        ]
    ),
    # session_scope
    named("database", "sqlite://", session_scope, hint="write session_scope(Database(...))"),
    case(
        "no parentheses",
        lambda: session_scope(app),  # type: ignore[arg-type]
        "database=<function app",
        "parentheses as a decorator: @session_scope()",
    ),
    named("propagation", "joined", session_scope, hint='"new", "join" and "nested"'),
    case(
        "options for another's session",
        lambda: session_scope(DATABASE, propagation="join", session_options={"autoflush": False}),
        "session_options={'autoflush': False}",
        'write propagation="new"',
    ),
    *(
        case(
            f"scope with {name}",
            functools.partial(session_scope, DATABASE, session_options={name: value}),
            f"session_options: {name}=",
            "db.sessionmaker(bind=connection)" if name == "bind" else "Database(session_options=...)",
        )
        for name, value in [("close_resets_only", True), ("class_", Session), ("bind", ENGINE)]
    ),
    case("generator", lambda: session_scope(DATABASE)(generator), "generator", "write the with statement inside it"),
    case("async generator", lambda: session_scope(DATABASE)(async_generator), "generator", "inside it"),
]


@pytest.mark.parametrize(("call", "parts"), CASES)
def test_a_wrong_argument_raises_at_construction(call: Callable[[], object], parts: tuple[str, ...]) -> None:
    """The error is a ValueError. It names the argument and its value, says what to write, and shows no password."""
    with pytest.raises(ConfigurationError) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert [part for part in parts if part not in message] == []
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("url", "extra"), [("oracle+oracledb://u:s3cret@h/d", "oracle"), ("mssql+pyodbc://u:s3cret@h/d", "mssql")]
)
def test_a_missing_driver_raises_at_construction(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is raised before the first query, and names the extra to install."""
    monkeypatch.setattr("asgi_sqla.engine.engines._installed", lambda _module: False)
    with pytest.raises(MissingDriverError) as caught:
        Database(url)
    assert f"pip install 'asgi-sqla[{extra}]'" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_one_kind_of_driver_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """An async application needs no sync driver until it uses the sync engine."""
    monkeypatch.setattr("asgi_sqla.engine.engines._installed", lambda module: module == "asyncpg")
    database = Database("postgresql://u:s3cret@h/d")
    with pytest.raises(MissingDriverError, match="needs psycopg or psycopg2 as its sync driver"):
        _ = database.engine


async def test_the_other_kind_of_engine_must_be_passed_in_too() -> None:
    """No second engine can be made from an engine that was passed in."""
    with pytest.raises(ConfigurationError, match="has neither a URL nor async_engine=; pass one of them to Database"):
        _ = Database(engine=ENGINE).async_engine
    with pytest.raises(ConfigurationError, match="has neither a URL nor engine=; pass one of them to Database"):
        _ = Database(async_engine=ASYNC_ENGINE).engine


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("click", "asgi_sqla.cli needs click, which is not installed; write: pip install 'asgi-sqla[cli]'"),
        ("asgi_sqla.nothing", "No module named 'asgi_sqla.nothing'"),  # a fault of ours, which no extra mends
        (None, "No module named 'asgi_sqla.nothing'"),
    ],
)
def test_what_an_extra_brings_is_named(missing: str | None, message: str) -> None:
    with pytest.raises(ModuleNotFoundError) as caught, needing("cli", "asgi_sqla.cli"):
        raise ModuleNotFoundError("No module named 'asgi_sqla.nothing'", name=missing)

    assert str(caught.value) == message


def test_a_database_needs_a_url_or_an_engine() -> None:
    """Only the global one may be configured later."""
    with pytest.raises(ConfigurationError, match=r"a Database needs a URL, .*, or engine= or async_engine="):
        Database()
