"""The lifespan: databases are checked before the start, and engines disposed after the end."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from support.databases import Backend, Item

from asgi_sqla import Database, NoUnitOfWorkError, SQLAlchemyMiddleware, current_unit, session_scope

STARTUP, SHUTDOWN = {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}
STARTED, STOPPED = {"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}
SCOPE = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}


class Server:
    """A server's calls of an application: startup, work, shutdown."""

    def __init__(self, app: Any, work: Callable[[], Awaitable[None]] | None = None) -> None:
        self.app = app
        self.work = work
        self.sent: list[Any] = []
        self.on_send: Callable[[Any], None] = lambda _message: None
        self._events = [STARTUP, SHUTDOWN]

    async def receive(self) -> Any:
        """Give startup, and after the work shutdown."""
        if len(self._events) == 1 and self.work is not None:
            await self.work()
        return self._events.pop(0)

    async def send(self, message: Any) -> None:
        """Keep the message."""
        self.on_send(message)
        self.sent.append(message)

    async def run(self) -> list[Any]:
        """Run the whole lifespan; return what the application sent."""
        await self.app(dict(SCOPE), self.receive, self.send)
        return self.sent


async def speaks(scope: Any, receive: Any, send: Any) -> None:
    """Be an application that supports lifespan."""
    assert await receive() == STARTUP
    await send(STARTED)
    assert await receive() == SHUTDOWN
    await send(STOPPED)


async def raises(scope: Any, receive: Any, send: Any) -> None:
    """Be an application that refuses unknown scopes, as Django does."""
    raise ValueError(scope["type"])


async def returns(scope: Any, receive: Any, send: Any) -> None:
    """Be an application that ignores unknown scopes."""


def connections(database: Database) -> int:
    """Return how many connections the pool of the sync engine keeps."""
    return int(database.engine.pool.checkedin())  # type: ignore[attr-defined]  # a queue pool


def use(database: Database, name: str = "a") -> Callable[[], Awaitable[None]]:
    """Return work that uses both engines."""

    async def work() -> None:
        async with session_scope(database) as session:
            session.add(Item(name=name))
        with session_scope(database) as sync_session:
            assert sync_session.get(Item, 1) is not None

    return work


@pytest.mark.parametrize("app", [speaks, raises, returns])
async def test_our_engines_are_disposed_at_shutdown(sqlite: Backend, app: Any) -> None:
    """They are disposed before the server learns of the end, whether the application supports lifespan or not."""
    database = Database(sqlite.url)
    server = Server(SQLAlchemyMiddleware(app, database), use(database))
    engines: list[object] = []
    server.on_send = lambda _message: engines.append((database.engine, database.async_engine))
    assert await server.run() == [STARTED, STOPPED]
    before, after = engines
    assert after[0] is not before[0]  # type: ignore[index]  # a pair
    assert after[1] is not before[1]  # type: ignore[index]
    assert sqlite.names() == ["a"]
    await database.async_dispose()


async def test_every_database_is_disposed(sqlite: Backend) -> None:
    """This holds for all that the middleware names."""
    databases = [Database(sqlite.url), Database("sqlite://")]
    engines = [database.engine for database in databases]
    await Server(SQLAlchemyMiddleware(speaks, databases)).run()
    assert [database.engine is engine for database, engine in zip(databases, engines, strict=True)] == [False, False]


async def test_an_engine_that_was_passed_in_is_not_disposed(sqlite: Backend) -> None:
    """It belongs to its owner."""
    engine = create_engine(sqlite.url)
    database = Database(sqlite.url, engine=engine)
    await Server(SQLAlchemyMiddleware(speaks, database), use(database)).run()
    assert (database.engine, connections(database)) == (engine, 1)
    engine.dispose()


async def test_it_is_passed_through(sqlite: Backend) -> None:
    """The scope has no unit of work, and events and messages of the application are unchanged."""
    seen: list[Any] = []
    failed = {"type": "lifespan.shutdown.failed", "message": "mine"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(NoUnitOfWorkError):
            current_unit()
        seen.append(dict(scope))
        seen.append(await receive())
        await send(STARTED)
        seen.append(await receive())
        await send(failed)

    assert await Server(SQLAlchemyMiddleware(app, Database(sqlite.url))).run() == [STARTED, failed]
    assert seen == [SCOPE, STARTUP, SHUTDOWN]


@pytest.mark.parametrize("where", ["start-up", "shutdown"])
async def test_a_genuine_failure_goes_through(sqlite: Backend, where: str) -> None:
    """The server gets the same exception, and the engines are disposed."""
    database = Database(sqlite.url)
    error = RuntimeError("broken")
    used: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await use(database)()
        used.append(database.engine)
        if where == "shutdown":
            await send(STARTED)
            await receive()
        raise error

    server = Server(SQLAlchemyMiddleware(app, database))
    with pytest.raises(RuntimeError, match="broken") as caught:
        await server.run()
    assert caught.value is error
    assert server.sent == ([STARTED] if where == "shutdown" else [])
    assert database.engine is not used[0]


async def test_a_start_up_that_says_it_failed_goes_through(sqlite: Backend) -> None:
    """Its message is forwarded, and the engines are disposed before."""
    database = Database(sqlite.url)
    failed = {"type": "lifespan.startup.failed", "message": "mine"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await use(database)()
        await send(failed)

    server = Server(SQLAlchemyMiddleware(app, database))
    engine = database.engine
    disposed: list[bool] = []
    server.on_send = lambda _message: disposed.append(database.engine is not engine)
    assert await server.run() == [failed]
    assert disposed == [True]


async def test_databases_are_checked_first(backend: Backend) -> None:
    """They answer, and then the application starts."""
    database = Database(backend.url)
    server = Server(SQLAlchemyMiddleware(speaks, database, check_on_startup=True))
    assert await server.run() == [STARTED, STOPPED]


@pytest.mark.parametrize("app", [speaks, raises, returns])
async def test_an_unreachable_database_stops_the_start(
    sqlite: Backend, app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The message names it without its password, the application is not called, and the log has the cause."""
    asked: list[object] = []

    async def recorded(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope)
        await app(scope, receive, send)

    good, bad = Database(sqlite.url), Database("postgresql://me:s3cret@127.0.0.1:9/shop?connect_timeout=2")
    server = Server(SQLAlchemyMiddleware(recorded, [good, bad], check_on_startup=True))
    with caplog.at_level(logging.ERROR, "asgi_sqla"), pytest.raises(OSError, match="Connect call failed"):
        await server.run()
    (answer,) = server.sent
    assert answer["type"] == "lifespan.startup.failed"
    assert answer["message"].startswith(
        "<Database postgresql://me:***@127.0.0.1:9/shop?connect_timeout=2> cannot be used: "
    )
    assert "s3cret" not in answer["message"] + caplog.text
    assert asked == []
    (record,) = caplog.records
    assert record.exc_info is not None


@pytest.mark.filterwarnings("ignore:Using .httpx. with")  # Starlette's test client prefers a newer one
def test_a_start_up_that_fails_ends_a_test_client(sqlite: Backend) -> None:
    """The client gets the error, as from Starlette's own lifespan, and does not wait."""
    from fastapi.testclient import TestClient  # warns when it is imported

    async def start() -> None:
        raise LookupError("no such tenant")

    app = FastAPI()
    app.add_middleware(SQLAlchemyMiddleware, database=Database(sqlite.url), on_startup=start)
    with pytest.raises(LookupError, match="no such tenant"), TestClient(app):
        raise AssertionError("it has started")


async def test_without_a_check_nothing_connects(sqlite: Backend) -> None:
    """The first request that needs a database notices that it is down."""
    bad = Database("postgresql://me@127.0.0.1:9/shop")
    assert await Server(SQLAlchemyMiddleware(speaks, bad)).run() == [STARTED, STOPPED]


async def test_a_check_without_an_async_driver(sqlite: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It uses the sync engine, and not on the event loop."""
    monkeypatch.setattr("asgi_sqla.engine.engines._installed", lambda module: module == "sqlite3")
    database = Database(sqlite.url)
    assert await Server(SQLAlchemyMiddleware(speaks, database, check_on_startup=True)).run() == [STARTED, STOPPED]


async def test_a_database_that_is_not_configured_is_skipped(global_db: Database) -> None:
    """The global database, for example, is skipped if an application never configures it."""
    assert await Server(SQLAlchemyMiddleware(speaks, global_db)).run() == [STARTED, STOPPED]


async def test_a_check_uses_the_async_engine_that_was_passed_in(sqlite: Backend) -> None:
    """Without a URL no other engine can be made."""
    engine = create_async_engine(sqlite.url.replace("sqlite:", "sqlite+aiosqlite:"))
    database = Database(async_engine=engine)
    assert await Server(SQLAlchemyMiddleware(speaks, database, check_on_startup=True)).run() == [STARTED, STOPPED]
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]  # a queue pool
    await engine.dispose()


def test_under_trio_the_sync_engine_is_disposed(sqlite: Backend) -> None:
    """Under trio there are no async engines."""
    database = Database(sqlite.url)

    async def work() -> None:
        with session_scope(database) as session:
            session.add(Item(name="a"))
        assert connections(database) == 1

    assert trio.run(Server(SQLAlchemyMiddleware(speaks, database), work).run) == [STARTED, STOPPED]
    assert connections(database) == 0
