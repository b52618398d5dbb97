"""A server that no longer answers: a cancelled caller goes on in bounded time, and the pool recovers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import event
from support.asgi import App, Call, http_scope, respond
from support.dark import Dark, Loss, dark
from support.databases import ASKED_FOR, Backend, connections_out, make_backend
from support.failing import BrokenError, engine_of, execute, insert, until

from asgi_sqla import Database, SQLAlchemyMiddleware, session_scope
from asgi_sqla.engine import loops
from asgi_sqla.unit import cancellation

ASYNC = ["asyncpg", "psycopg", "asyncmy", "aiomysql"]
SYNC = ["psycopg", "psycopg2", "pymysql"]
DRIVERS = [(name, "async") for name in ASYNC] + [(name, "sync") for name in SYNC]
ASKED = [one for one in DRIVERS if not ASKED_FOR or one[0] in ASKED_FOR.split(",")]
PATIENCE = 30.0
"""Seconds after which a wait counts as endless."""

on_every_driver = pytest.mark.parametrize(("backend", "kind"), ASKED, indirect=["backend"])
on_async_drivers = pytest.mark.parametrize("backend", [n for n, kind in ASKED if kind == "async"], indirect=True)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "CANCELLED_LIMIT", 0.3)
    monkeypatch.setattr(cancellation, "CUT_LIMIT", 0.3)
    monkeypatch.setattr(loops, "DISPOSE_LIMIT", 0.3)


@pytest.fixture(params=[1], ids=["pool of 1"])
def pool_size(request: pytest.FixtureRequest) -> int:
    """Return how many connections each pool may have."""
    return int(request.param)


def through(url: str, pool_size: int) -> Database:
    """Return a database behind a proxy, whose pool soon reports that it is exhausted."""
    return Database(url, engine_options={"pool_size": pool_size, "max_overflow": 0, "pool_timeout": 5})


@pytest.fixture
def proxy(backend: Backend) -> Iterator[tuple[Dark, str]]:
    """Put a proxy before the server; it forwards again after the test."""
    with dark(backend) as proxy:
        yield proxy


@pytest.fixture
async def database(proxy: tuple[Dark, str], pool_size: int) -> AsyncIterator[Database]:
    """Return a database behind the proxy, with no connection checked out at the end."""
    database = through(proxy[1], pool_size)
    yield database
    proxy[0].let_through()
    out = connections_out(database)
    await asyncio.wait_for(database.async_dispose(), PATIENCE)
    assert out == 0


class Limit:
    """A time limit around an application; it fires when the server has gone dark."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.attempts: list[str] = []
        self.began: float | None = None
        """When the time limit fired."""
        self._timeout = asyncio.timeout(None)

    def over(self) -> None:
        """Let the time limit fire, from any thread."""
        self._loop.call_soon_threadsafe(self._over)

    def _over(self) -> None:
        self.began = time.monotonic()
        self._timeout.reschedule(self._loop.time())

    def around(self, app: App) -> App:
        """Return ``app`` with 504 as the answer to everything that takes too long."""

        async def limited(scope: Any, receive: Any, send: Any) -> None:
            self._timeout = asyncio.timeout(None)
            try:
                async with self._timeout:
                    await app(scope, receive, send)
            except TimeoutError:
                await respond(send, 504)

        return limited


def darken(database: Database, kind: str, where: str, proxy: Dark, loss: Loss, limit: Limit) -> None:
    """Make the server go dark at the next COMMIT, ROLLBACK or statement, and let the time limit fire."""
    left = [1]

    def on_event(*_arguments: Any) -> None:
        if left:
            left.clear()
            proxy.go_dark(loss)
            limit.over()

    event.listen(engine_of(database, kind), where, on_event)


ENDS: list[tuple[str, Loss, bool]] = [
    ("commit", "everything", True),
    ("commit", "answers", False),
    ("rollback", "everything", True),
    ("rollback", "everything", False),
]
"""Where it goes dark, what is lost then, and whether the time limit is inside the middleware or around it."""


def serve(database: Database, kind: str, where: str, limit: Limit, *, inside: bool) -> App:
    """Return a limited application that writes a row, and answers so that the unit commits or rolls back."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        limit.attempts.append(scope["path"])
        await insert(database, kind, name=scope["path"])
        await respond(send, 422 if where == "rollback" else 201)

    if inside:
        return SQLAlchemyMiddleware(limit.around(app), database, retries=2)
    return limit.around(SQLAlchemyMiddleware(app, database, retries=2))


@pytest.mark.parametrize(("where", "loss", "inside"), ENDS)
@on_every_driver
@pytest.mark.usefixtures("_impatient")
async def test_a_request_whose_server_goes_dark(
    database: Database,
    backend: Backend,
    kind: str,
    proxy: tuple[Dark, str],
    where: str,
    loss: Loss,
    inside: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client gets the 504, the request runs once, the log reports the doubt, and the only connection recovers."""
    limit = Limit()
    app = serve(database, kind, where, limit, inside=inside)
    usual = 422 if where == "rollback" else 201
    assert (await Call(app, http_scope("/before"))()).starts == [usual]
    darken(database, kind, where, proxy[0], loss, limit)

    call = await asyncio.wait_for(Call(app, http_scope("/dark"))(), PATIENCE)
    proxy[0].let_through()
    out = connections_out(database)
    after = [await asyncio.wait_for(Call(app, http_scope(f"/{n}"))(), PATIENCE) for n in range(3)]

    assert (call.raised, call.starts) == (None, [504])
    assert limit.attempts.count("/dark") == 1
    doubts = [one for one in caplog.messages if "in doubt" in one]
    assert (doubts != []) is (where == "commit")
    assert [one for one in caplog.messages if "has not answered COMMIT or ROLLBACK" in one] != []
    assert (out, [one.starts for one in after]) == (0, [[usual]] * 3)
    written = [] if where == "rollback" else ["/0", "/1", "/2", "/before"]
    assert [name for name in backend.names() if name != "/dark"] == written
    assert ("/dark" in backend.names()) is (loss == "answers")


@pytest.mark.parametrize("pool_size", [2], indirect=True, ids=["pool of 2"])
@on_every_driver
@pytest.mark.usefixtures("_impatient")
async def test_every_connection_of_a_pool_recovers(
    database: Database, backend: Backend, kind: str, proxy: tuple[Dark, str]
) -> None:
    """Two requests wait for their COMMIT at once, and both return their connections."""
    limits = [Limit(), Limit()]
    both = asyncio.Barrier(2)

    def serve_together(limit: Limit) -> App:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await insert(database, kind, name=scope["path"])
            await both.wait()
            if scope["path"].startswith("/dark"):
                proxy[0].go_dark()
                limit.over()
            await respond(send, 201)

        return limit.around(SQLAlchemyMiddleware(app, database))

    apps = [serve_together(limit) for limit in limits]

    async def call(path: str) -> list[list[int]]:
        calls = [Call(app, http_scope(f"{path}/{number}/{backend.name}")) for number, app in enumerate(apps)]
        await asyncio.wait_for(asyncio.gather(*[one() for one in calls]), PATIENCE)
        return [one.starts for one in calls]

    before, in_the_dark = await call("/before"), await call("/dark")
    proxy[0].let_through()
    after = [await call(f"/after/{turn}") for turn in range(2)]

    assert (before, in_the_dark, after) == ([[201]] * 2, [[504]] * 2, [[[201]] * 2] * 2)
    names = [f"{path}/{number}/{backend.name}" for path in ("/after/0", "/after/1", "/before") for number in range(2)]
    assert backend.names() == names


@pytest.mark.parametrize("backend", ["asyncpg"], indirect=True)
async def test_the_documented_bound(
    database: Database, backend: Backend, proxy: tuple[Dark, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Without any patch a cancelled caller waits as long as the constants say, and the log says so."""
    limit = Limit()
    app = serve(database, "async", "commit", limit, inside=False)
    await Call(app, http_scope("/before"))()
    darken(database, "async", "commit", proxy[0], "everything", limit)

    call = await asyncio.wait_for(Call(app, http_scope("/dark"))(), PATIENCE)

    assert limit.began is not None
    waited = time.monotonic() - limit.began
    assert call.starts == [504]
    # A second of the machine's own is not the library's.
    assert cancellation.CANCELLED_LIMIT - 0.1 < waited < cancellation.CANCELLED_LIMIT + cancellation.CUT_LIMIT + 1
    assert f"for {cancellation.CANCELLED_LIMIT:g} seconds" in caplog.text


@pytest.mark.parametrize("backend", ["mysqldb"], indirect=True)
@pytest.mark.usefixtures("_impatient")
async def test_a_driver_that_cannot_be_cut(backend: Backend) -> None:
    """With mysqlclient no other thread can use a busy connection: our thread waits for it, the caller does not."""
    pytest.importorskip("MySQLdb")
    limit = Limit()
    with dark(backend) as (proxy, url):
        database = through(url, 1)
        app = serve(database, "sync", "commit", limit, inside=False)
        await Call(app, http_scope("/before"))()
        darken(database, "sync", "commit", proxy, "everything", limit)
        call = await asyncio.wait_for(Call(app, http_scope("/dark"))(), PATIENCE)
        assert (call.starts, connections_out(database)) == ([504], 1)
    await until(lambda: connections_out(database) == 0)  # the sockets are closed, which tells the driver
    await database.async_dispose()


# (psycopg itself waits ten seconds for its own request to cancel the statement.)
@pytest.mark.parametrize("backend", [n for n, kind in ASKED if kind == "async" and n != "psycopg"], indirect=True)
@pytest.mark.usefixtures("_impatient")
async def test_a_statement_in_the_dark(database: Database, backend: Backend, proxy: tuple[Dark, str]) -> None:
    """A request cancelled during a statement ends too; nothing of it is kept, and the pool recovers."""
    limit = Limit()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "async", name=scope["path"])
        if scope["path"] == "/dark":
            proxy[0].go_dark()
            limit.over()
        await execute(database, "async", "SELECT count(*) FROM item")
        await respond(send, 201)

    limited = limit.around(SQLAlchemyMiddleware(app, database))
    await Call(limited, http_scope("/before"))()
    call = await asyncio.wait_for(Call(limited, http_scope("/dark"))(), PATIENCE)
    proxy[0].let_through()
    out = connections_out(database)
    after = await asyncio.wait_for(Call(limited, http_scope("/after"))(), PATIENCE)

    assert (call.starts, out, after.starts) == ([504], 0, [201])
    assert backend.names() == ["/after", "/before"]


@pytest.mark.parametrize("kinds", [("async", "async"), ("sync", "sync"), ("sync", "async")], ids="-".join)
@pytest.mark.parametrize("where", ["commit", "rollback"])
@pytest.mark.usefixtures("_impatient")
async def test_two_databases_go_dark(where: str, kinds: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """The bound is for both together."""
    limit = Limit()
    backends = [make_backend("psycopg", Path())] * 2
    with ExitStack() as stack:
        proxies = [stack.enter_context(dark(one)) for one in backends]
        databases = [through(url, 1) for _, url in proxies]

        async def app(scope: Any, receive: Any, send: Any) -> None:
            for number, (database, kind) in enumerate(zip(databases, kinds, strict=True)):
                await insert(database, kind, name=f"{scope['path']}/{number}")
            if scope["path"] == "/dark":
                for proxy, _ in proxies:
                    proxy.go_dark()
                limit.over()
            await respond(send, 422 if where == "rollback" else 201)

        limited = limit.around(SQLAlchemyMiddleware(app, databases))
        before = await Call(limited, http_scope("/before"))()
        call = await asyncio.wait_for(Call(limited, http_scope("/dark"))(), PATIENCE)
        for proxy, _ in proxies:
            proxy.let_through()
        out = [connections_out(one) for one in databases]
        after = await asyncio.wait_for(Call(limited, http_scope("/after"))(), PATIENCE)
        for one in databases:
            await asyncio.wait_for(one.async_dispose(), PATIENCE)

    usual = [422 if where == "rollback" else 201]
    assert (before.starts, call.starts, out, after.starts) == (usual, [504], [0, 0], usual)
    assert ("in doubt" in caplog.text) is (where == "commit")


@pytest.mark.parametrize("way", ["task", "scope"])
@pytest.mark.parametrize("where", ["commit", "rollback"])
@on_async_drivers
@pytest.mark.usefixtures("_impatient")
async def test_a_session_scope_whose_server_goes_dark(
    database: Database,
    backend: Backend,
    proxy: tuple[Dark, str],
    where: str,
    way: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A scope cancelled in either way ends, and the next one works on the same pool of one."""
    around = anyio.CancelScope()
    loop = asyncio.get_running_loop()

    async def job() -> None:
        with around:
            async with session_scope(database):
                await insert(database, "async", name="dark")
                proxy[0].go_dark()
                loop.call_soon(task.cancel if way == "task" else around.cancel)
                if where == "rollback":
                    raise BrokenError

    async with session_scope(database):
        await insert(database, "async", name="before")
    task = asyncio.create_task(job())
    await asyncio.wait_for(asyncio.wait([task]), PATIENCE)
    proxy[0].let_through()
    out = connections_out(database)
    async with asyncio.timeout(PATIENCE), session_scope(database):
        await insert(database, "async", name="after")

    if way == "task":
        assert task.cancelled()
    else:  # anyio lets an error through that comes up while its scope is cancelled
        assert isinstance(task.exception(), BrokenError if where == "rollback" else Exception)
    assert (out, backend.names()) == (0, ["after", "before"])
    assert ("in doubt" in caplog.text) is (where == "commit")


Dispose = Callable[[Database], Any]


async def shut_down(database: Database) -> None:
    """Run a lifespan to its end, as a server does."""
    incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event_ in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event_}.complete"})

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await SQLAlchemyMiddleware(app, database)({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize("pool_size", [2], indirect=True, ids=["pool of 2"])
@pytest.mark.parametrize("dispose", [Database.async_dispose, shut_down], ids=["async_dispose", "lifespan"])
@on_every_driver
@pytest.mark.usefixtures("_impatient")
async def test_idle_connections_in_the_dark_are_not_waited_for(
    database: Database, backend: Backend, kind: str, proxy: tuple[Dark, str], dispose: Dispose
) -> None:
    """The server gets no goodbye; the database is usable once it answers again."""
    both = asyncio.Barrier(2)

    async def use() -> int:
        async with session_scope(database):
            one = int(await execute(database, kind, "SELECT 1"))
            await both.wait()  # so that there are two connections
            return one

    before = await asyncio.gather(use(), use())
    proxy[0].go_dark()
    await asyncio.wait_for(dispose(database), PATIENCE)
    proxy[0].let_through()
    after = await asyncio.wait_for(asyncio.gather(use(), use()), PATIENCE)

    assert [*before, *after] == [1] * 4


@pytest.mark.parametrize("out", [False, True], ids=["idle", "in a transaction"])
@on_async_drivers
@pytest.mark.usefixtures("_impatient")
def test_an_event_loop_ends_in_the_dark(
    backend: Backend, proxy: tuple[Dark, str], out: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """``asyncio.run()`` returns, with idle connections and with one of a cancelled task."""
    database = through(proxy[1], 1)
    caplog.set_level(logging.CRITICAL, "sqlalchemy.pool")

    async def hold() -> None:
        async with session_scope(database):
            await insert(database, "async", name="held")
            await asyncio.Event().wait()

    async def job() -> None:
        async with session_scope(database):
            await insert(database, "async", name="before")
        if out:
            tasks.append(asyncio.create_task(hold()))
            await asyncio.sleep(0.2)
        proxy[0].go_dark()

    tasks: list[asyncio.Task[None]] = []
    begun = time.monotonic()
    asyncio.run(job())
    assert time.monotonic() - begun < PATIENCE
    proxy[0].let_through()

    async def again() -> None:
        async with session_scope(database):
            await insert(database, "async", name="after")

    asyncio.run(again())
    assert backend.names() == ["after", "before"]


@pytest.mark.parametrize("pool_size", [2], indirect=True, ids=["pool of 2"])
@pytest.mark.parametrize("backend", ["asyncpg"], indirect=True)
@pytest.mark.usefixtures("_impatient")
async def test_a_dispose_ends_whatever_the_driver_does(
    database: Database, backend: Backend, proxy: tuple[Dark, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cancels a connection that not even a cut wakes, and ignores one that was lost before."""
    cuts: list[object] = []
    monkeypatch.setattr(loops, "cut", lambda connection, _dialect: cuts.append(connection))
    both = asyncio.Barrier(2)

    async def use(*, lose: bool) -> None:
        async with session_scope(database) as session:
            await execute(database, "async", "SELECT 1")
            await both.wait()
            if lose:
                await (await session.connection()).invalidate()
                await session.rollback()

    await asyncio.gather(use(lose=False), use(lose=True))
    proxy[0].go_dark()
    await asyncio.wait_for(database.async_dispose(), PATIENCE)
    proxy[0].let_through()

    assert len(cuts) == 1
    async with asyncio.timeout(PATIENCE), session_scope(database):
        assert await execute(database, "async", "SELECT 1") == 1
