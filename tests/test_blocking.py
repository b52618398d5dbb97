"""Frequent mistakes: a sync session that blocks the event loop, code outside any unit, an aborted transaction."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from support.asgi import App, Call, respond
from support.databases import Backend, Item
from support.marks import KINDS, on_postgresql
from support.rivals import perform

from asgi_sqla import (
    BlockingSessionWarning,
    ConfigurationError,
    Database,
    NoUnitOfWorkError,
    SQLAlchemyMiddleware,
    current_unit,
    session_scope,
)
from asgi_sqla.session.listeners import blocking_warnings
from asgi_sqla.testing import rolled_back
from asgi_sqla.unit import context

TEXT = (
    "a sync session ran SQL on a thread with a running event loop, so the loop and every request wait for it; "
    "write await db.async_session..., or make the handler a plain def"
)

COPIES = True
"""The databases are copied, which their witness must not prevent."""


@pytest.fixture
def told() -> Iterator[list[warnings.WarningMessage]]:
    """Return the warnings of the test, filtered as Python filters them by default."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("default")
        yield caught


def blocking(told: list[warnings.WarningMessage]) -> list[tuple[str, int]]:
    """Return the line that each of our warnings points to."""
    return [(each.filename, each.lineno) for each in told if each.category is BlockingSessionWarning]


@pytest.fixture
def database(sqlite: Backend) -> Iterator[Database]:
    """Return a database in a file."""
    database = Database(sqlite.url)
    yield database
    database.dispose()


def line() -> int:
    """Return the line number of the caller."""
    return sys._getframe(1).f_lineno


def ways(database: Database) -> dict[str, Callable[[Session], object]]:
    """Return calls that begin a transaction and send a statement, or are about to."""
    return {
        "execute": lambda session: session.execute(text("SELECT 1")),
        "scalar": lambda session: session.scalar(select(Item.id)),
        "scalars": lambda session: session.scalars(select(Item)).all(),
        "query": lambda session: session.query(Item).all(),
        "get": lambda session: session.get(Item, 1),
        "flush": lambda session: (session.add(Item(name=f"{time.monotonic()}")), session.flush()),
        "commit": lambda session: (session.add(Item(name=f"{time.monotonic()}")), session.commit()),
        "begin_nested": lambda session: (session.begin_nested(), session.execute(text("SELECT 1"))),
        "connection": lambda session: session.connection(),
    }


@pytest.mark.parametrize("way", ways(Database("sqlite://")))
async def test_a_sync_session_on_the_event_loop_is_warned_of(
    database: Database, told: list[warnings.WarningMessage], way: str
) -> None:
    """The first statement warns, however it is sent, and the warning points to the user's line."""
    work = ways(database)[way]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        work(database.session)
        work(database.session)
        await respond(send)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    (warning,) = [each for each in told if each.category is BlockingSessionWarning]
    assert call.status == 200
    assert str(warning.message) == TEXT
    assert issubclass(BlockingSessionWarning, RuntimeWarning)
    assert (warning.filename, warning.lineno) == (__file__, work.__code__.co_firstlineno)


async def test_the_warning_skips_methods_of_a_session_class(
    sqlite: Backend, told: list[warnings.WarningMessage]
) -> None:
    """The warning points to the line that calls ``exec()`` of SQLModel, or of the user's own class."""
    sqlmodel = pytest.importorskip("sqlmodel")
    database = Database(sqlite.url, session_options={"class_": sqlmodel.Session})
    with session_scope(database) as session:
        where = line() + 1
        session.exec(text("SELECT 1"))  # type: ignore[attr-defined]
    database.dispose()
    assert blocking(told) == [(__file__, where)]


async def test_each_call_site_is_warned_of_once(database: Database, told: list[warnings.WarningMessage]) -> None:
    """With Python's default filter a busy handler warns once, and a second handler warns too."""
    lines = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/one":
            lines.append(line() + 1)
            database.session.execute(text("SELECT 1"))
        else:
            lines.append(line() + 1)
            database.session.execute(text("SELECT 1"))
        await respond(send)

    wrapped = SQLAlchemyMiddleware(app, database)
    for path in ("/one", "/two", "/one", "/two", "/one"):
        call = Call(wrapped)
        call.scope["path"] = path
        await call()

    assert blocking(told) == [(__file__, number) for number in lines[:2]]


async def test_a_scope_on_the_event_loop_is_warned_of(database: Database, told: list[warnings.WarningMessage]) -> None:
    """``with session_scope()`` in a coroutine blocks like ``db.session``, also if only its end writes."""
    with session_scope(database) as session:
        where = line() + 1
        session.execute(text("SELECT 1"))
    with session_scope(database) as session:
        session.add(Item(name="a"))
    assert blocking(told)[:1] == [(__file__, where)]
    assert [name for name, _ in blocking(told)] == [__file__] * len(blocking(told))


async def test_a_filter_of_ones_own_makes_it_an_error(database: Database) -> None:
    """A test suite or a CI run can turn the warning into an error and find every place."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", BlockingSessionWarning)
        with session_scope(database) as session, pytest.raises(BlockingSessionWarning, match="write await"):
            session.execute(text("SELECT 1"))


async def test_a_session_in_a_worker_thread_is_not_warned_of(
    database: Database, told: list[warnings.WarningMessage]
) -> None:
    """Neither the session in a worker thread nor the end of its unit, in a thread of ours, warns."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, "sync", lambda session: session.execute(insert(Item).values(name="a")))
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert (call.status, blocking(told)) == (201, [])


async def test_an_async_session_is_not_warned_of(database: Database, told: list[warnings.WarningMessage]) -> None:
    """The sync session inside an AsyncSession runs in a greenlet, and does not block the event loop."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="a"))
        await database.async_session.flush()
        await database.async_session.run_sync(lambda session: session.scalars(select(Item)).all())
        async with session_scope(database, read_only=True) as session:
            await session.scalar(select(Item.id))
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    await database.async_dispose()
    assert (call.status, blocking(told)) == (201, [])


def test_a_session_without_an_event_loop_is_not_warned_of(
    database: Database, told: list[warnings.WarningMessage]
) -> None:
    """A script blocks only itself."""
    with session_scope(database) as session:
        session.add(Item(name="a"))
    assert blocking(told) == []


def use(database: Database) -> None:
    """Run SQL in a sync scope."""
    with session_scope(database) as session:
        session.execute(text("SELECT 1"))


async def test_nothing_is_warned_of_inside_rolled_back(database: Database, told: list[warnings.WarningMessage]) -> None:
    """A test may read its rows on its own event loop, where nothing else waits. Outside, the warning is back."""
    with rolled_back(database):
        use(database)
        with rolled_back(Database("sqlite://")):
            use(database)
        use(database)
    inside = blocking(told)
    use(database)
    assert (inside, len(blocking(told))) == ([], 1)


async def fail_inside(world: rolled_back) -> None:
    """Leave the block with an exception."""
    async with world:
        assert blocking_warnings[-1] is False
        raise ZeroDivisionError


@pytest.mark.parametrize("mode", ["transaction", "copy"])
async def test_the_warning_is_back_however_rolled_back_ends(sqlite: Backend, mode: Any) -> None:
    """It is back after an exception inside, a refused start, a second entry, and ends in the wrong order."""
    database, other = Database(sqlite.url), Database("sqlite://")
    before = list(blocking_warnings)
    with pytest.raises(ZeroDivisionError):
        await fail_inside(rolled_back(database, mode=mode))
    assert blocking_warnings == before

    first, second = rolled_back(database, mode=mode), rolled_back(other, mode=mode)
    await first.__aenter__()
    await second.__aenter__()
    with pytest.raises(ConfigurationError, match="is open already"):
        await second.__aenter__()
    await first.__aexit__(None, None, None)
    assert blocking_warnings[-1] is False
    await second.__aexit__(None, None, None)
    assert blocking_warnings == before
    for each in (database, other):
        await each.async_dispose()


def test_a_refused_rolled_back_changes_nothing(global_db: Database) -> None:
    """The global database is not configured, so there is nothing to roll back."""
    before = list(blocking_warnings)
    with pytest.raises(ConfigurationError, match="is not configured"), rolled_back(global_db):
        raise NotImplementedError
    assert blocking_warnings == before


# Outside any unit of work


@pytest.fixture
def no_middleware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the middlewares that other tests have made."""
    monkeypatch.setattr(context, "_middlewares", 0)


def why(call: Callable[[], object]) -> str:
    """Return the message of the error that a call outside any unit raises."""
    with pytest.raises(NoUnitOfWorkError) as caught:
        call()
    assert isinstance(caught.value, LookupError)
    return str(caught.value)


SCOPE = "with session_scope() as session: ..., async with session_scope() as session: ..."


@pytest.mark.usefixtures("no_middleware")
async def test_without_a_middleware_the_error_says_to_wrap_the_application(database: Database) -> None:
    """Each way to ask says so: both kinds of session, the functions for dependencies, and the unit itself."""
    expected = (
        "no unit of work: wrap the application in SQLAlchemyMiddleware(app, database), or outside a request, open one: "
        + SCOPE
    )
    asked: list[Callable[[], object]] = [
        lambda: database.session,
        lambda: database.async_session,
        current_unit,
    ]
    assert [why(each) for each in asked] == [expected] * 3
    assert why(database.get_session).startswith(f"{expected} (a session is injected before")
    with pytest.raises(NoUnitOfWorkError, match="wrap the application"):
        await database.get_async_session()


def outside(database: Database) -> dict[str, Any]:
    """Return applications that ask for a session outside the middleware that they have."""

    def ask(request: Request) -> Response:
        return PlainTextResponse(why(lambda: database.session))

    class Outer:
        """Added last, so it is outermost, and asks before the middleware inside it has opened a unit."""

        def __init__(self, app: App) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await respond(send, 200, why(lambda: database.session).encode())

    async def handle(request: Request, exc: Exception) -> Response:
        return PlainTextResponse(why(lambda: database.async_session))

    def fail(request: Request) -> Response:
        raise ZeroDivisionError

    ours = Middleware(SQLAlchemyMiddleware, database=database)
    order = Starlette(routes=[Route("/", ask)], middleware=[Middleware(Outer), ours])
    handler = Starlette(routes=[Route("/", fail)], middleware=[ours], exception_handlers={Exception: handle})
    bare = Starlette(routes=[Route("/", ask)])
    SQLAlchemyMiddleware(bare, database)  # the result is thrown away, and the application itself is served
    return {"order of middleware": order, "exception handler outside": handler, "served unwrapped": bare}


@pytest.mark.parametrize("name", ["order of middleware", "exception handler outside", "served unwrapped"])
async def test_the_error_mentions_a_middleware_that_is_elsewhere(database: Database, name: str) -> None:
    """The error names the likely causes, and what to write for each."""
    call = await Call(outside(database)[name])()
    said = call.body.decode()
    assert said.startswith("no unit of work: there is a SQLAlchemyMiddleware, but not around this code: ")
    for part in ("inside this middleware or error handler", "served without it", "as the outermost", SCOPE):
        assert part in said


async def test_the_error_names_a_thread_without_a_copy_of_the_context(database: Database) -> None:
    """An executor and a new thread have no copy of the context; ``asyncio.to_thread()`` and a manual copy have one."""
    found: dict[str, str] = {}

    def ask(name: str) -> None:
        try:
            found[name] = type(database.session).__name__
        except NoUnitOfWorkError as exc:
            found[name] = str(exc)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            await loop.run_in_executor(None, ask, "default executor")
            await loop.run_in_executor(pool, ask, "executor")
            await loop.run_in_executor(pool, contextvars.copy_context().run, ask, "copied by hand")
        thread = threading.Thread(target=ask, args=["thread"])
        thread.start()
        await asyncio.to_thread(thread.join)
        await asyncio.to_thread(ask, "to_thread")
        await respond(send)

    await Call(SQLAlchemyMiddleware(app, database))()

    without = [found.pop(name) for name in ("default executor", "executor", "thread")]
    assert found == {"copied by hand": "GuardedSession", "to_thread": "GuardedSession"}
    for message in without:
        assert message.startswith("no unit of work: this thread has no copy of the request's context")
        assert "loop.run_in_executor()" in message
        assert "await asyncio.to_thread(...)" in message


def test_the_error_does_not_blame_the_thread_of_an_event_loop(database: Database) -> None:
    """A server may run in its own thread, as in test clients, so the error names another cause."""
    said: list[str] = []

    async def main() -> None:
        said.append(why(lambda: database.session))

    thread = threading.Thread(target=asyncio.run, args=[main()])
    thread.start()
    thread.join()
    assert "this thread" not in said[0]


# An aborted transaction of PostgreSQL


def notes(error: BaseException) -> list[str]:
    """Return the notes of an error."""
    return list(getattr(error, "__notes__", []))


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_the_aborted_transaction_of_postgresql_names_begin_nested(backend: Backend, kind: str) -> None:
    """The first statement after a failed one raises 25P02, and its note says how to continue."""
    database = Database(backend.url)
    seen: list[BaseException] = []

    def work(session: Session) -> None:
        session.execute(insert(Item).values(name="a"))
        with pytest.raises(IntegrityError) as first:
            session.execute(insert(Item).values(name="a"))
        seen.append(first.value)
        with pytest.raises(DBAPIError) as second:
            session.execute(text("SELECT 1"))
        seen.append(second.value)
        session.rollback()
        session.execute(insert(Item).values(name="b"))
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(insert(Item).values(name="b"))
        session.execute(text("SELECT 1"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    await database.async_dispose()

    assert (call.raised, call.status, backend.names()) == (None, 201, ["b"])
    assert notes(seen[0]) == []
    (note,) = notes(seen[1])
    assert note == (
        "after a statement has failed, PostgreSQL refuses every other one until a rollback; to continue after a "
        "failure that you expect, write: with session.begin_nested(): ..."
    )


def test_the_filter_of_the_suite_hides_only_this_warning() -> None:
    """The suite runs sync sessions on the event loop on purpose, so it ignores the warning; this file does not."""
    written = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert f'"ignore:{TEXT.partition(",")[0]}:RuntimeWarning"' in written
