"""The published types: mypy checks this file with the other tests, and running it checks that they are true.

Each wrong use has a ``# type: ignore[code]``, which is an error itself if mypy no longer objects.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, assert_type, get_type_hints

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.middleware import Middleware

import asgi_sqla
from asgi_sqla import (
    ERROR_RESPONSES,
    Database,
    SQLAlchemyMiddleware,
    UnitOfWork,
    current_unit,
    db,
    on_commit,
    session_scope,
)

if TYPE_CHECKING:
    from asgiref.typing import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope


@pytest.fixture
def database() -> Database:
    """Return a database in memory."""
    return Database("sqlite://")


async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Be an application with the types of asgiref."""


async def test_what_a_database_gives(database: Database) -> None:
    """The types are SQLAlchemy's own, one for each property."""
    async with session_scope(database):
        session = assert_type(database.session, Session)
        async_session = assert_type(database.async_session, AsyncSession)
    engine = assert_type(database.engine, Engine)
    async_engine = assert_type(database.async_engine, AsyncEngine)
    assert_type(db, Database)
    assert isinstance(session, Session)
    assert isinstance(async_session, AsyncSession)
    assert isinstance(engine, Engine)
    assert isinstance(async_engine, AsyncEngine)
    await database.async_dispose()


async def test_what_a_scope_gives(database: Database) -> None:
    """``with`` gives a Session, and ``async with`` an AsyncSession."""
    with session_scope(database) as session:
        assert_type(session, Session)
        unit = assert_type(current_unit(), UnitOfWork)
        unit.rollback_only()
    async with session_scope(database) as async_session:
        assert_type(async_session, AsyncSession)
    assert (isinstance(session, Session), isinstance(async_session, AsyncSession)) == (True, True)


async def test_a_decorated_function_keeps_its_type(database: Database) -> None:
    """Its parameters and its result are unchanged."""

    @session_scope(database)
    def plain(number: int, *, name: str = "") -> str:
        return f"{number}{name}"

    @session_scope(database, propagation="join")
    async def coroutine(number: int) -> list[int]:
        return [number]

    assert_type(plain(1, name="a"), str)
    result = assert_type(await coroutine(1), list[int])
    typed: Callable[[int], Coroutine[Any, Any, list[int]]] = coroutine
    assert (plain(1, name="a"), result, typed) == ("1a", [1], coroutine)
    with pytest.raises(TypeError):
        plain("1", "a")  # type: ignore[call-arg, arg-type]


def test_the_middleware_is_an_application(database: Database) -> None:
    """It fits asgiref's types, Starlette's ``app`` and its ``add_middleware``."""
    wrapped: ASGI3Application = SQLAlchemyMiddleware(app, database)
    around_starlette = SQLAlchemyMiddleware(Starlette(), database)
    around_itself = SQLAlchemyMiddleware(around_starlette, [database, db])
    starlette = Starlette(middleware=[Middleware(SQLAlchemyMiddleware, database=database)])
    starlette.add_middleware(SQLAlchemyMiddleware, database=database, commit_on=range(200, 300))
    assert [isinstance(each, SQLAlchemyMiddleware) for each in (wrapped, around_starlette, around_itself)] == [True] * 3


def test_what_may_be_given(database: Database) -> None:
    """The type checker accepts every form of an argument."""

    def verdict(scope: Scope, message: Any) -> bool:
        return bool(message["status"] == 200)

    made = [
        SQLAlchemyMiddleware(app, database, commit_on={200, 201}),
        SQLAlchemyMiddleware(app, database, commit_on=verdict),
        SQLAlchemyMiddleware(app, database, commit_on=lambda scope, message: message["status"] < 500),
        SQLAlchemyMiddleware(app, database, error_responses=ERROR_RESPONSES),
        SQLAlchemyMiddleware(app, database, error_responses={**ERROR_RESPONSES, IntegrityError: 422, KeyError: app}),
    ]
    made += [
        SQLAlchemyMiddleware(app, database, read_only={"GET", "HEAD"}, retries=3, replay_limit=1024),
        SQLAlchemyMiddleware(app, database, read_only=lambda scope: scope["path"] == "/"),
    ]
    on_commit(print, end="")
    assert len(made) == 7


async def test_what_is_injected_and_scoped(database: Database) -> None:
    """Functions for injection and decorated functions keep their types."""

    @session_scope(database, retries=1)
    def count(start: int) -> int:
        return start + assert_type(current_unit().attempt, int)

    async with session_scope(database, read_only=True):
        assert isinstance(assert_type(database.get_session(), Session), Session)
        assert isinstance(assert_type(await database.get_async_session(), AsyncSession), AsyncSession)
    assert assert_type(count(1), int) == 2
    await database.async_dispose()


def test_what_may_not_be_given(database: Database) -> None:
    """The type checker refuses it before we do."""
    engine = create_engine("sqlite://")
    wrong: list[Callable[[], object]] = [
        lambda: Database(5),  # type: ignore[arg-type]
        lambda: Database(async_engine=engine),  # type: ignore[arg-type]
        lambda: Database("sqlite://", transaction_mode="exclusive"),  # type: ignore[arg-type]
        lambda: SQLAlchemyMiddleware(database, app),  # type: ignore[arg-type]
        lambda: SQLAlchemyMiddleware(app, engine),  # type: ignore[arg-type]
        lambda: SQLAlchemyMiddleware(app, database, commit_on=200),  # type: ignore[arg-type]
        lambda: SQLAlchemyMiddleware(app, database, error_responses={IntegrityError: "409"}),  # type: ignore[dict-item]
        lambda: session_scope(engine),  # type: ignore[arg-type]
        lambda: session_scope(database, propagation="joined"),  # type: ignore[arg-type]
    ]
    for use in wrong:
        with pytest.raises(asgi_sqla.ConfigurationError):
            use()
    untyped: Any = Database  # mypy calls this error by one name or another
    with pytest.raises(TypeError):
        untyped("sqlite://", engine)


def test_sessions_cannot_be_set(database: Database) -> None:
    """They belong to the unit."""
    with pytest.raises(AttributeError), session_scope(database) as session:
        database.session = session  # type: ignore[misc]


@pytest.mark.parametrize("name", [name for name in asgi_sqla.__all__ if callable(getattr(asgi_sqla, name))])
def test_the_types_can_be_read_at_run_time(name: str) -> None:
    """Frameworks that inject by annotation read them, and every name exists."""
    thing = getattr(asgi_sqla, name)
    members = [vars(thing).get(name) for name in ("__init__", "__call__")] if inspect.isclass(thing) else [thing]
    functions = [member for member in members if inspect.isfunction(member)]
    hints = [get_type_hints(function) for function in functions]
    assert [found.keys() for found in hints] == [function.__annotations__.keys() for function in functions]
