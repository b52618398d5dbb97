"""A handler's own failure: the database failed, nobody handled it, and the framework's 500 is answered better."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias

import pytest
from fastapi import FastAPI
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from support.asgi import Call, respond
from support.databases import Backend, Item
from support.drivers import on_drivers
from support.failing import execute
from support.marks import on_one
from support.rivals import rows

from asgi_sqla import ERROR_RESPONSES, Database, SQLAlchemyMiddleware, current_unit, session_scope

Work: TypeAlias = Callable[[], Awaitable[object]]
Frame: TypeAlias = Callable[[Work], Any]
Cause: TypeAlias = "Callable[[Databases], Awaitable[None]]"


def outside_fastapi(work: Work) -> Any:
    """Return a FastAPI, whose middleware makes a 500 of an exception, and raises it to the server too."""
    app = FastAPI()

    @app.get("/")
    async def handler() -> None:
        await work()

    return app


def with_a_page_of_its_own(work: Work) -> Any:
    """Return a Starlette with an exception handler that answers 500."""

    async def handler(_request: Request) -> PlainTextResponse:
        await work()
        return PlainTextResponse("fine")

    async def page(_request: Request, _exc: Exception) -> PlainTextResponse:
        return PlainTextResponse("sorry", 500)

    return Starlette(
        routes=[Route("/", handler)], exception_handlers=dict.fromkeys((DBAPIError, OSError, PoolTimeoutError), page)
    )


def answering_later(work: Work) -> Any:
    """Return an application that keeps the exception, and answers 500 after it has left the except clause."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        status = 200
        try:
            await work()
        except Exception:
            status = 500
        await respond(send, status)

    return app


def not_answering(work: Work) -> Any:
    """Return an application that makes an exception of its own of every other."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await work()
        except Exception as exc:
            raise RuntimeError("the application has failed") from exc
        await respond(send)

    return app


FRAMES = [outside_fastapi, with_a_page_of_its_own, answering_later, not_answering]


class Databases:
    """A database, one whose pools are exhausted, and one that refuses connections."""

    def __init__(self, backend: Backend) -> None:
        self.good = Database(backend.url)
        small = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
        self.full = Database(backend.url, engine_options=small)
        self.away = Database(make_url(backend.url).set(host="127.0.0.1", port=1, query={}))
        self.all = (self.good, self.full, self.away)


@pytest.fixture
async def databases(backend: Backend) -> AsyncIterator[Databases]:
    """Return the databases; the only connection of each pool is taken."""
    rows(backend)
    made = Databases(backend)
    taken = made.full.engine.connect(), await made.full.async_engine.connect()
    yield made
    taken[0].close()
    await taken[1].close()
    for each in made.all:
        await each.async_dispose()


async def exhausted(databases: Databases) -> None:
    await execute(databases.full, "async", "SELECT 1")


async def exhausted_in_a_thread(databases: Databases) -> None:
    await execute(databases.full, "sync", "SELECT 1")


async def refused(databases: Databases) -> None:
    await execute(databases.away, "async", "SELECT 1")


async def refused_in_a_thread(databases: Databases) -> None:
    await execute(databases.away, "sync", "SELECT 1")


async def refused_at_a_flush(databases: Databases) -> None:
    databases.away.async_session.add(Item(name="a"))
    await databases.away.async_session.flush()


async def duplicate(databases: Databases) -> None:
    databases.good.async_session.add(Item(name="row 1"))
    await databases.good.async_session.flush()


async def duplicate_in_a_savepoint(databases: Databases) -> None:
    async with databases.good.async_session.begin_nested():
        await duplicate(databases)


async def duplicate_in_a_block(databases: Databases) -> None:
    async with databases.good.async_session.begin():
        await duplicate(databases)


async def refused_and_hidden(databases: Databases) -> None:
    """Raise something that does not say what it was made from."""
    try:
        await refused(databases)
    except Exception:
        raise LookupError("nothing found") from None


async def refused_in_a_scope(databases: Databases) -> None:
    async with session_scope(databases.away) as session:
        await session.execute(text("SELECT 1"))


STATUS: dict[Cause, int] = {
    **dict.fromkeys((exhausted, exhausted_in_a_thread, refused, refused_in_a_thread, refused_at_a_flush), 503),
    **dict.fromkeys((duplicate, duplicate_in_a_savepoint, duplicate_in_a_block), 409),
    refused_and_hidden: 503,
    refused_in_a_scope: 503,
}
ROLLED_BACK: tuple[Cause, ...] = (duplicate_in_a_savepoint, duplicate_in_a_block, refused_in_a_scope)
"""Leaving the block has rolled back, so only the exception tells that nobody handled it."""
CASES = [
    (frame, cause) for frame in FRAMES for cause in STATUS if not (frame is answering_later and cause in ROLLED_BACK)
]


@pytest.mark.parametrize(("frame", "cause"), CASES)
@on_one
async def test_an_unhandled_failure_is_answered_as_mapped(databases: Databases, frame: Frame, cause: Cause) -> None:
    """The client gets the answer of the mapping and not the application's 500, wherever the database failed."""
    app = frame(lambda: cause(databases))

    call = await Call(SQLAlchemyMiddleware(app, databases.all, error_responses=ERROR_RESPONSES))()

    assert (call.raised, call.starts) == (None, [STATUS[cause]])


@pytest.mark.parametrize("frame", [outside_fastapi, answering_later])
@on_drivers("psycopg async", "sqlite3", "aiosqlite", "psycopg2", "asyncmy", "aiomysql", "pymysql")
async def test_every_driver_tells_of_it(databases: Databases, kind: str, frame: Frame) -> None:
    """So an exhausted pool and a refused connection are 503 on each database."""
    causes = [exhausted, refused] if kind == "async" else [exhausted_in_a_thread, refused_in_a_thread]
    if databases.good.engine.dialect.name == "sqlite":
        del causes[1]
    apps = [frame(functools.partial(cause, databases)) for cause in causes]

    calls = [await Call(SQLAlchemyMiddleware(one, databases.all, error_responses=ERROR_RESPONSES))() for one in apps]

    assert [(call.raised, call.starts) for call in calls] == [(None, [503])] * len(causes)


@pytest.mark.parametrize("frame", FRAMES)
@on_one
async def test_without_error_responses_the_application_answers(databases: Databases, frame: Frame) -> None:
    """Its 500 is sent, or its exception is raised, as before."""
    call = await Call(SQLAlchemyMiddleware(frame(lambda: exhausted(databases)), databases.all))()

    assert call.starts == ([] if frame is not_answering else [500])
    assert (type(call.raised) if frame is not_answering else RuntimeError) is RuntimeError


@pytest.mark.parametrize("status", [200, 409, 499])
@pytest.mark.parametrize("cause", [exhausted, refused, duplicate_in_a_savepoint])
@on_one
async def test_an_answer_below_500_stays(databases: Databases, cause: Cause, status: int) -> None:
    """The application caught the failure, and chose the answer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await cause(databases)
        except Exception:
            await respond(send, status)

    call = await Call(SQLAlchemyMiddleware(app, databases.all, error_responses=ERROR_RESPONSES))()

    assert (call.raised, call.starts) == (None, [status])


async def nothing(_databases: Databases) -> None:
    """Do not fail."""


async def handled(databases: Databases) -> None:
    """Fail, and roll back."""
    with suppress(IntegrityError):
        await duplicate(databases)
    await databases.good.async_session.rollback()


async def handled_in_a_savepoint(databases: Databases) -> None:
    """Fail inside a savepoint, whose end rolls back."""
    with suppress(IntegrityError):
        await duplicate_in_a_savepoint(databases)


@pytest.mark.parametrize("work", [nothing, handled, handled_in_a_savepoint])
@pytest.mark.parametrize("raises", [False, True])
@on_one
async def test_a_5xx_for_another_reason_stays(databases: Databases, work: Cause, raises: bool) -> None:
    """A failure that the application has handled is not why it answers 500."""

    async def fails() -> None:
        await work(databases)
        if raises:
            raise KeyError("another reason")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await fails()
        except KeyError:
            await respond(send, 500)
        else:
            await respond(send, 502)

    call = await Call(SQLAlchemyMiddleware(app, databases.all, error_responses=ERROR_RESPONSES))()

    assert (call.raised, call.starts) == (None, [500 if raises else 502])


async def refused_and_forgotten(databases: Databases) -> None:
    """Catch the failure, and then raise for another reason."""
    with suppress(DBAPIError, OSError):
        await refused(databases)
    raise KeyError("another reason")


@pytest.mark.parametrize(("cause", "levels"), [(refused, ["WARNING"]), (refused_and_forgotten, ["WARNING", "WARNING"])])
@on_one
async def test_the_log_has_both_failures(
    databases: Databases, caplog: pytest.LogCaptureFixture, cause: Cause, levels: list[str]
) -> None:
    """What the application raised is not lost when the failure behind it, or before it, is answered."""
    app = not_answering(lambda: cause(databases))

    call = await Call(SQLAlchemyMiddleware(app, databases.all, error_responses=ERROR_RESPONSES))()

    assert call.starts == [503]
    assert [one.levelname for one in caplog.records if one.exc_info] == levels
    assert "the application has failed" in caplog.text


@on_one
async def test_retries_come_before_the_answer(
    databases: Databases, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A framework's 500 for a transient failure is retried, and only the last attempt is answered."""
    monkeypatch.setattr("asgi_sqla.asgi.retry.pause", lambda attempt, kind: 0.0)
    attempts: list[int] = []

    async def work() -> None:
        attempts.append(current_unit().attempt)
        await refused(databases)

    middleware = SQLAlchemyMiddleware(outside_fastapi(work), databases.all, retries=2, error_responses=ERROR_RESPONSES)
    call = await Call(middleware)()

    assert (call.raised, call.starts, attempts) == (None, [503], [1, 2, 3])
