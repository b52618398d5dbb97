"""A sync session whose driver can wait on the event loop ends there, if others are at work; else in a thread."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
import test_at_once
from anyio import to_thread
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from support.asgi import Call, respond
from support.dark import Loss, dark
from support.databases import NO_OWNER, Backend, Item, connections_out
from support.drivers import on_drivers
from support.failing import until
from support.hops import Hops
from support.marks import alone, pipelined
from support.servers import wait_until
from test_at_once import Work, begin_nested, fail, hear_engine, hear_session, options_of, read

from asgi_sqla import (
    Database,
    SessionInUseError,
    SQLAlchemyMiddleware,
    UnitOfWorkEndedError,
    current_unit,
    session_scope,
)
from asgi_sqla.engine.loops import awaits
from asgi_sqla.unit import at_once, cancellation

PATIENCE = 30.0
LOCK = 1401
"""The advisory lock that the COMMIT of an item waits for, if somebody holds it."""
FUNCTION = f"""
CREATE OR REPLACE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN PERFORM pg_advisory_xact_lock_shared({LOCK}); RETURN NULL; END'
"""
TRIGGER = """
CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION wait_at_commit()
"""

pytestmark = [pipelined, on_drivers("psycopg"), pytest.mark.usefixtures("hops", "kind")]


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every unit believe that it is not alone."""
    monkeypatch.setattr(at_once, "count_in_use", lambda: 1_000)


class Gate:
    """What the COMMIT of an item waits for."""

    def __init__(self, backend: Backend) -> None:
        self._witness = backend.witness
        self._engine = create_engine(backend.witness.url, poolclass=NullPool)
        self._lock: Connection | None = self._engine.connect()
        self._lock.execute(text(f"SELECT pg_advisory_lock({LOCK})"))

    async def reached(self) -> None:
        """Wait until a COMMIT waits."""
        await until(self._is_reached)

    def _is_reached(self) -> bool:
        with self._witness.connect() as connection:
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND query = 'COMMIT'"
            return bool(connection.execute(text(waiting)).scalar())

    def open(self) -> None:
        """Let every COMMIT go on."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


@pytest.fixture
def gate(backend: Backend) -> Iterator[Gate]:
    """Make the COMMIT of an item wait."""
    with backend.witness.begin() as connection:
        connection.execute(text(FUNCTION))
        connection.execute(text(TRIGGER))
    gate = Gate(backend)
    yield gate
    gate.open()
    with backend.witness.begin() as connection:
        connection.execute(text("DROP TRIGGER wait_at_commit ON item"))


def write(session: Session) -> None:
    """INSERT a row."""
    session.add(Item(name="a"))
    session.flush()


serve = partial(test_at_once.serve, status=201, read_only=())
"""Return an application whose handler does some work in a worker thread, and no request of which only reads."""


@asynccontextmanager
async def another(database: Database) -> AsyncIterator[None]:
    """Have another unit in a transaction meanwhile."""
    async with session_scope(database):
        await to_thread.run_sync(lambda: read(database.session))
        yield


# Who ends there.


@alone
@pytest.mark.parametrize("work", [read, write])
async def test_who_is_alone_has_a_thread(database: Database, hops: Hops, work: Work) -> None:
    """It is quicker where no other thread wants to run."""
    call = await Call(serve(database, work))()

    assert (call.starts, hops.count) == ([201], 1)


@pytest.mark.parametrize("status", [201, 404])
@pytest.mark.parametrize("work", [read, write])
async def test_who_is_not_alone_ends_on_the_loop(
    database: Database, backend: Backend, hops: Hops, work: Work, status: int
) -> None:
    """The COMMIT or the ROLLBACK is done when the response starts; the connection is back, and nothing else awaits."""
    found: list[Any] = []

    async def look(_message: Any) -> None:
        found.append((backend.names(), connections_out(database), awaits.get()))

    async with another(database):
        call = Call(serve(database, work, status=status))
        call.on_start = look
        await call()
        count = hops.count

    assert (call.starts, count) == ([status], 0)
    assert found == [(["a"] if work is write and status == 201 else [], 1, False)]


@pytest.mark.usefixtures("crowd")
async def test_the_loop_goes_on_meanwhile(database: Database, backend: Backend, hops: Hops, gate: Gate) -> None:
    """It serves others while a COMMIT waits, whose client hears nothing before it is done."""
    call = Call(serve(database, write))
    task = asyncio.create_task(call())
    await gate.reached()
    others = [await Call(serve(database, read))() for _ in range(3)]
    told_too_early = call.starts.copy()
    gate.open()
    await asyncio.wait_for(task, PATIENCE)

    assert (told_too_early, call.starts, [one.starts for one in others]) == ([], [201], [[201]] * 3)
    assert (backend.names(), hops.count) == (["a"], 0)


@pytest.mark.usefixtures("crowd")
async def test_sixteen_at_once(backend: Backend, hops: Hops) -> None:
    """Each has its row, and nobody's connection stays out."""

    def writing(name: str) -> Work:
        def work(session: Session) -> None:
            session.add(Item(name=name))
            session.flush()

        return work

    names = sorted(f"item {number}" for number in range(16))
    database = Database(backend.url, engine_options={"pool_size": 16})
    calls = await asyncio.gather(*[Call(serve(database, writing(name)))() for name in names])
    out = connections_out(database)
    await database.async_dispose()

    assert [call.starts for call in calls] == [[201]] * 16
    assert (backend.names(), out, hops.count) == (names, 0, 0)


CAREFUL: dict[str, Callable[[Database], Work]] = {
    **{f"engine {name}": hear_engine(name) for name in ("commit", "reset", "checkin")},
    **{f"session {name}": hear_session(name) for name in (*at_once._HEARD, *at_once._HEARD_OF_OBJECTS)},
    "a savepoint": lambda _database: begin_nested,
    "an error": lambda _database: fail,
    "something to flush": lambda _database: lambda session: session.add(Item(name="b")),
}


@pytest.mark.parametrize("case", CAREFUL)
@pytest.mark.usefixtures("crowd")
async def test_what_may_wait_for_more_has_a_thread(database: Database, backend: Backend, hops: Hops, case: str) -> None:
    """Code of the application runs at this end, or more than one answer is waited for."""
    with backend.witness.begin() as connection:
        connection.execute(text("INSERT INTO item (name) VALUES ('a')"))

    call = await Call(serve(database, CAREFUL[case](database)))()

    assert (call.starts, hops.count) == ([201], 1)


@pytest.mark.parametrize("case", ["a session class", "no pool", "a pool"])
@pytest.mark.usefixtures("crowd")
async def test_what_is_of_the_users_own_has_a_thread(backend: Backend, hops: Hops, case: str) -> None:
    """Nobody knows what it waits for."""
    database = Database(backend.url, **options_of(case))

    call = await Call(serve(database, write))()
    await database.async_dispose()

    assert (call.starts, hops.count, backend.names()) == ([201], 1, ["a"])


@pytest.mark.parametrize("way", ["handed in", "plain", "psycopg2"])
@pytest.mark.usefixtures("crowd")
async def test_a_connection_that_cannot_has_a_thread(backend: Backend, hops: Hops, way: str) -> None:
    """Only psycopg's connections of our own engines can wait on an event loop."""
    url = backend.witness.url
    if way == "handed in":
        database = Database(engine=create_engine(url))
    elif way == "plain":
        database = Database(url, pipelining=False)
    else:
        database = Database(url.set(drivername="postgresql+psycopg2"))

    call = await Call(serve(database, write))()
    await database.async_dispose()
    if way == "handed in":
        database.engine.dispose()

    assert (call.starts, hops.count, backend.names()) == ([201], 1, ["a"])


@pytest.mark.usefixtures("crowd")
async def test_a_system_whose_loops_watch_no_sockets_has_threads(
    database: Database, hops: Hops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""

    def work(session: Session) -> None:
        write(session)
        raw: Any = session.connection().connection.driver_connection
        monkeypatch.setattr(type(raw), "can_await", False)

    call = await Call(serve(database, work))()

    assert (call.starts, hops.count) == ([201], 1)


@pytest.mark.usefixtures("crowd")
async def test_two_databases_commit_in_their_order(backend: Backend, hops: Hops) -> None:
    """If the second one fails, the error says that the first has committed."""
    first, second = Database(backend.url), Database(backend.url)
    begun: list[str] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for name, owner, database in (("a", None, first), ("b", NO_OWNER, second)):
            row = Item(name=name, owner_id=owner)

            def work(row: Item = row, database: Database = database) -> None:
                begun.append(row.name)
                database.session.add(row)
                database.session.flush()

            await to_thread.run_sync(work)
        await respond(send)

    call = await Call(SQLAlchemyMiddleware(app, database=(first, second)))()
    out = connections_out(first) + connections_out(second)
    for database in (first, second):
        await database.async_dispose()

    assert (begun, call.starts, backend.names(), out, hops.count) == (["a", "b"], [500], ["a"], 0, 0)
    assert any("these had been committed" in note for note in call.raised.__notes__)  # type: ignore[union-attr]


# What may go wrong.


@pytest.mark.usefixtures("crowd")
async def test_a_refused_commit_is_an_error(database: Database, backend: Backend, hops: Hops) -> None:
    """Nothing is kept, and the next unit has the connection."""

    def work(session: Session) -> None:
        session.add(Item(name="a", owner_id=NO_OWNER))
        session.flush()

    call = await Call(serve(database, work))()
    after = await Call(serve(database, write))()

    assert (call.starts, type(call.raised), after.starts) == ([500], IntegrityError, [201])
    assert (backend.names(), hops.count, backend.backends()) == (["a"], 0, 1)


@pytest.mark.usefixtures("crowd")
async def test_a_backend_killed_in_its_commit_is_an_error(
    database: Database, backend: Backend, hops: Hops, gate: Gate
) -> None:
    """The server has said so, and nothing is kept; the connection leaves its pool."""
    task = asyncio.create_task(Call(serve(database, write))())
    await gate.reached()
    with backend.witness.connect() as connection:
        killed = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'COMMIT' AND state = 'active'"
        connection.execute(text(killed))
    call = await asyncio.wait_for(task, PATIENCE)

    assert (call.starts, type(call.raised), hops.count) == ([500], OperationalError, 0)
    assert (backend.names(), connections_out(database), backend.backends("active")) == ([], 0, 0)


@pytest.mark.parametrize("way", ["task", "twice", "scope"])
@pytest.mark.usefixtures("crowd")
async def test_a_cancelled_request_waits_for_its_commit(
    database: Database, backend: Backend, gate: Gate, way: str
) -> None:
    """The row is kept, and the connection is back when the cancellation is raised."""
    call, around = Call(serve(database, write)), anyio.CancelScope()

    async def request() -> None:
        with around:
            await call.app(call.scope, call.receive, call.send)

    task = asyncio.create_task(request())
    await gate.reached()
    if way == "scope":
        around.cancel()
    for _ in range(("scope", "task", "twice").index(way)):
        task.cancel()
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)
    waited = not task.done()
    gate.open()
    await asyncio.wait([task], timeout=PATIENCE)

    assert (waited, backend.names(), connections_out(database)) == (True, ["a"], 0)
    assert task.cancelled() is (way != "scope")


@pytest.mark.parametrize("lost", ["answers", "everything"])
@pytest.mark.usefixtures("crowd")
async def test_a_silent_server_is_cut(
    backend: Backend,
    hops: Hops,
    lost: Loss,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A cancelled client waits for the limit, the loop goes on, and the log says that the COMMIT is in doubt."""
    monkeypatch.setattr(cancellation, "CANCELLED_LIMIT", 0.3)
    with dark(backend) as (proxy, url):

        def work(session: Session) -> None:
            write(session)
            proxy.go_dark(lost)

        database = Database(url)
        call = Call(serve(database, work))
        task = asyncio.create_task(call())
        await until(lambda: proxy.is_dark)
        await asyncio.sleep(0.1)
        task.cancel()
        began = time.monotonic()
        await asyncio.wait([task], timeout=PATIENCE)
        took = time.monotonic() - began
        out = connections_out(database)
        proxy.let_through()
        await database.async_dispose()

    assert (call.starts, hops.count, out) == ([], 0, 0)
    assert isinstance(call.raised, asyncio.CancelledError)
    assert 0.2 < took < PATIENCE / 3
    assert any("in doubt" in one for one in caplog.messages)
    await until(lambda: backend.names() == (["a"] if lost == "answers" else []))


@pytest.mark.parametrize("where", ["a task of the same loop", "a thread"])
@pytest.mark.usefixtures("crowd")
async def test_nobody_else_has_the_session_meanwhile(
    database: Database, backend: Backend, gate: Gate, where: str
) -> None:
    """A call in the middle of the COMMIT is refused, or waits for it; it never comes between."""
    sessions: list[Session] = []

    def work(session: Session) -> None:
        write(session)
        sessions.append(session)

    task = asyncio.create_task(Call(serve(database, work))())
    await gate.reached()
    (session,) = sessions
    if where == "a thread":
        reading = asyncio.ensure_future(asyncio.to_thread(session.execute, text("SELECT 1")))
        await asyncio.sleep(0.05)
        assert not reading.done()
        gate.open()
        await asyncio.wait([reading], timeout=PATIENCE)
        refused = reading.exception()
    else:
        with pytest.raises(SessionInUseError) as caught:
            session.execute(text("SELECT 1"))
        refused = caught.value
        gate.open()
    call = await asyncio.wait_for(task, PATIENCE)

    assert (call.starts, backend.names(), connections_out(database)) == ([201], ["a"], 0)
    assert refused is None or isinstance(refused, SessionInUseError | UnitOfWorkEndedError)


@pytest.mark.usefixtures("crowd")
async def test_callbacks_come_after_it(database: Database, backend: Backend) -> None:
    """And before the response, as ever."""
    seen: list[Any] = []

    async def callback() -> None:
        seen.append((backend.names(), threading.current_thread() is threading.main_thread()))

    def work(session: Session) -> None:
        write(session)
        current_unit().on_commit(callback)

    call = await Call(serve(database, work))()

    assert (call.starts, seen) == ([201], [(["a"], True)])


@pytest.mark.usefixtures("crowd")
def test_a_loop_that_ends_in_the_middle_keeps_no_connection(
    backend: Backend, gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be awaited any more, so the connection is closed, and the next unit has another."""
    for name in ("asyncio", "sqlalchemy.pool"):  # they say truly what becomes of such a task
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    database = Database(backend.url)
    loop = asyncio.new_event_loop()
    request = Call(serve(database, write))()
    task = loop.create_task(request)
    loop.run_until_complete(gate.reached())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    request.close()
    del task, request
    caplog.clear()
    gc.collect()
    gate.open()

    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a queue
    assert wait_until(lambda: backend.backends("idle in transaction") == 0)
    with session_scope(database) as session:
        session.add(Item(name="b"))
    database.dispose()
    assert "b" in backend.names()


@pytest.mark.usefixtures("crowd")
async def test_a_listener_of_the_pool_that_comes_later_is_heard(database: Database, hops: Hops) -> None:
    """What is heard is asked at each end."""
    first = await Call(serve(database, read))()
    heard: list[str] = []
    event.listen(database.engine, "checkin", lambda *_arguments: heard.append(threading.current_thread().name))
    second = await Call(serve(database, read))()

    assert (first.starts, second.starts, hops.count, heard) == ([201], [201], 1, ["asgi_sqla"])
