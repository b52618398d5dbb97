"""Engines: one per event loop and process, each disposed by its owner."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.util import greenlet_spawn
from support.asgi import Call, respond
from support.databases import Backend, Item
from support.failing import BrokenError
from support.services import missing

from asgi_sqla import ConfigurationError, Database, SQLAlchemyMiddleware, WrongEventLoopError, session_scope
from asgi_sqla.engine.urls import parse, translate

JOBS = 5


def insert(database: Database, name: str) -> None:
    """Insert an item in a scope."""
    with session_scope(database) as session:
        session.add(Item(name=name))


async def insert_async(database: Database, name: str) -> None:
    """Insert an item in an async scope."""
    async with session_scope(database) as session:
        session.add(Item(name=name))


def connections(backend: Backend) -> int:
    """Return how many connections there are: known to the server, or on the file."""
    if backend.name != "sqlite":
        return backend.backends()
    path = str(backend.witness.url.database)
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(str(link.readlink()) == path for link in links if link.is_symlink())


@pytest.fixture(autouse=True)
def _nobody_else_is_connected(request: pytest.FixtureRequest) -> None:
    """Cut what an earlier test of this process has left, as the tests here count connections."""
    backend: Backend | None = request.getfixturevalue("backend") if "backend" in request.fixturenames else None
    if backend is not None and backend.name != "sqlite":
        backend.terminate()


def left(backend: Backend, expected: int = 0) -> int:
    """Return how many connections stay; a server may take a moment to notice that one has closed.

    The witness's own last connection counts too, if it is asked again and again at once.
    """
    for attempt in range(8):
        if connections(backend) == expected:
            return expected
        time.sleep(0.01 * 2**attempt)
    return connections(backend)


def async_url(backend: Backend) -> URL:
    """Return the URL with which an owner would make an async engine."""
    return translate(parse(backend.url), asynchronous=True, installed=lambda module: find_spec(module) is not None).url


def run_uvloop(job: Any) -> None:
    """Run on uvloop, as ``asyncio.run`` does on asyncio's own loop."""
    import uvloop  # not everywhere

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(job)


def run_by_hand(job: Any) -> None:
    """Run on a loop that is shut down as the documentation of asyncio says."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(job)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.mark.parametrize("run", [asyncio.run, run_by_hand, run_uvloop], ids=["asyncio.run", "by hand", "uvloop"])
def test_every_loop_leaves_nothing_behind(backend: Backend, run: Callable[[Any], object]) -> None:
    """Five jobs on five loops and one ``Database`` leave no error, no warning and no connection."""
    if run is run_uvloop and find_spec("uvloop") is None:
        missing("uvloop is not installed")
    database = Database(backend.url)
    counts = []
    for number in range(JOBS):
        run(insert_async(database, str(number)))
        counts.append(left(backend))
    gc.collect()
    assert backend.names() == [str(number) for number in range(JOBS)]
    assert counts == [0] * JOBS


def test_loops_in_several_threads_at_once(backend: Backend) -> None:
    """Each thread runs its jobs on its own loops, all on one ``Database``."""
    database = Database(backend.url)
    together = threading.Barrier(6)

    def work(number: int) -> None:
        for turn in range(3):
            together.wait(timeout=20)
            asyncio.run(insert_async(database, f"{number}.{turn}"))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert backend.names() == sorted(f"{number}.{turn}" for number in range(6) for turn in range(3))
    assert left(backend) == 0


def test_two_threads_that_come_first_share_one_engine(sqlite: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits until the first has made it, and makes none."""
    database = Database(sqlite.url)
    making, go_on = threading.Event(), threading.Event()

    def create(*arguments: Any, **options: Any) -> Engine:
        making.set()
        assert go_on.wait(20)
        return create_engine(*arguments, **options)

    monkeypatch.setattr(sqlalchemy, "create_engine", create)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: database.engine)
        assert making.wait(20)
        second = pool.submit(lambda: database.engine)
        time.sleep(0.05)  # until it waits as well
        go_on.set()
        assert first.result(20) is second.result(20)
    database.dispose()


def test_a_loop_closed_carelessly_harms_no_other(backend: Backend) -> None:
    """Without ``shutdown_asyncgens()`` its connections cannot be closed, but they do not accumulate."""
    database = Database(backend.url)

    def run_carelessly(number: int) -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(insert_async(database, str(number)))
        loop.close()
        gc.collect()

    # The complaints of asyncio and of the drivers about the careless loop are true.
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore", ResourceWarning)
        patch.setattr(sys, "unraisablehook", lambda _unraisable: None)
        for number in range(JOBS):
            run_carelessly(number)
        assert connections(backend) < JOBS
        asyncio.run(insert_async(database, "careful"))
        gc.collect()
    assert backend.names() == [*map(str, range(JOBS)), "careful"]
    assert left(backend) == 0


async def test_disposed_engines_may_be_used_again(backend: Backend) -> None:
    """Both kinds of engine are made again."""
    database = Database(backend.url)
    for name in ("a", "b"):
        insert(database, f"{name} sync")
        await insert_async(database, f"{name} async")
        before = left(backend, 2)
        await database.async_dispose()
        assert (before, left(backend)) == (2, 0)
    assert backend.names() == ["a async", "a sync", "b async", "b sync"]


async def test_a_loop_has_one_engine(backend: Backend) -> None:
    """Asking for the engine opens no connection."""
    database = Database(backend.url)
    assert database.async_engine is database.async_engine
    assert database.engine is database.engine
    other = await asyncio.to_thread(asyncio.run, engine_of(database))
    assert other is not database.async_engine
    assert left(backend) == 0
    await database.async_dispose()


async def engine_of(database: Database) -> object:
    """Return the async engine of the running loop."""
    return database.async_engine


def test_without_a_loop_there_is_no_async_engine(sqlite: Backend) -> None:
    """The error says what to use instead."""
    with pytest.raises(WrongEventLoopError, match="no asyncio event loop is running; use the sync session and"):
        _ = Database(sqlite.url).async_engine


# Engines handed in


async def test_an_engine_that_was_passed_in_is_its_owners(backend: Backend) -> None:
    """``dispose()``, a shutdown and the end of the loop leave it alone."""
    engine = create_engine(backend.witness.url)
    async_engine = create_async_engine(async_url(backend))
    database = Database(engine=engine, async_engine=async_engine)
    insert(database, "a")
    await insert_async(database, "b")

    database.dispose()
    await database.async_dispose()
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> Any:
        return next(events)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError

    await SQLAlchemyMiddleware(app, database)({"type": "lifespan"}, receive, send)

    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert (database.engine, database.async_engine) == (engine, async_engine)
    assert [pool.checkedin() for pool in (engine.pool, async_engine.pool)] == [1, 1]  # type: ignore[attr-defined]
    assert left(backend, 2) == 2
    engine.dispose()
    await async_engine.dispose()
    assert backend.names() == ["a", "b"]
    assert left(backend) == 0


async def test_one_engine_that_was_passed_in_and_one_of_ours(backend: Backend) -> None:
    """Beside the engine that was passed in, a URL gives the other kind."""
    engine = create_engine(backend.witness.url)
    database = Database(backend.url, engine=engine)
    insert(database, "a")
    await insert_async(database, "b")
    await database.async_dispose()
    assert left(backend, 1) == 1
    engine.dispose()
    assert backend.names() == ["a", "b"]


def test_configuring_again_needs_a_disposed_database(sqlite: Backend) -> None:
    """The same arguments change nothing, and others are refused while engines are in use."""
    database = Database(sqlite.url)
    insert(database, "a")
    database.configure(sqlite.url)
    with pytest.raises(ConfigurationError, match=r"is configured and in use; .* or dispose\(\) this one first"):
        database.configure("sqlite://")
    database.dispose()
    database.configure("sqlite://")
    assert "memdb" in repr(database)


# Forks

FORK = '''
import asyncio, gc, json, os, sys, traceback
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from asgi_sqla import Database, current_unit, session_scope

url, witness, handed_in, numbered = sys.argv[1:]
database = Database(url)
if handed_in == "handed in":
    database = Database(engine=create_engine(witness), async_engine=create_async_engine(url))
query = text(f"SELECT {numbered}")
results = {}

def job():
    with session_scope(database) as session:
        return session.scalar(query)

async def async_job():
    async with session_scope(database) as session:
        return await session.scalar(query)

def in_child(work):
    """Fork; the child answers through a pipe with what ``work`` returned, and dies without clean-up."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, json.dumps(work()).encode())
            gc.collect()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(write)
    answer = b"".join(iter(lambda: os.read(read, 4096), b""))
    os.close(read)
    os.waitpid(pid, 0)
    return json.loads(answer or "null")

def use():
    try:
        unit = repr(current_unit())
    except LookupError:
        unit = None
    if handed_in == "handed in":  # an engine of one loop, as its owner wants it
        return [unit, job(), asyncio.run(async_job_and_dispose())]
    return [unit, job(), *[asyncio.run(async_job()) for _ in range(5)]]

async def async_job_and_dispose():
    answer = await async_job()
    await database.async_engine.dispose()
    return answer

async def main():
    before = await async_job()
    async with session_scope(database) as session:
        open_before = await session.scalar(query)
        results["from a loop"] = in_child(use)
        open_after = await session.scalar(query)
    results["open transaction"] = open_before == open_after
    results["async"] = before == await asyncio.wait_for(async_job(), 5)
    if handed_in == "handed in":
        await database.async_engine.dispose()

before = job()
asyncio.run(main())
results["from none"] = in_child(use)
results["sync"] = before == job()
results["mine"] = before
database.engine.dispose()
print(json.dumps(results))
'''


@pytest.mark.parametrize(("handed_in", "filters"), [("by url", "error"), ("by url", "default"), ("handed in", "error")])
def test_a_forked_child_starts_afresh(backend: Backend, handed_in: str, filters: str) -> None:
    """It has no unit and no connection of its parent, and the parent's go on, also inside a loop."""
    if backend.name == "sqlite":
        number = "41"
    elif backend.is_postgresql:
        number = "pg_backend_pid()"
    else:
        number = "connection_id()"
    urls = [url.render_as_string(hide_password=False) for url in (async_url(backend), backend.witness.url)]
    ran = subprocess.run(
        [sys.executable, "-W", filters, "-W", "ignore::DeprecationWarning", "-c", FORK, *urls, handed_in, number],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert ran.stderr == ""
    results = json.loads(ran.stdout)
    assert [results[key] for key in ("open transaction", "async", "sync")] == [True, True, True]
    for key in ("from a loop", "from none"):
        unit, *numbers = results[key]
        assert unit is None
        assert len(numbers) == (2 if handed_in == "handed in" else 6)
        if backend.name != "sqlite":
            assert results["mine"] not in numbers
    assert left(backend) == 0


async def test_a_check_leaves_its_connection_in_the_pool(backend: Backend) -> None:
    """The async engine made it, and the first request uses it."""
    database = Database(backend.url)
    await database.check()
    async with session_scope(database) as session:
        assert await session.scalar(text("SELECT 1")) == 1
    assert left(backend, 1) == 1
    await database.async_dispose()


async def test_the_end_of_an_event_loop_closes_its_connections(backend: Backend) -> None:
    """Work that a handler left on its own loop is lost with an error, and no connection stays in a transaction."""
    database = Database(backend.url)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def work() -> None:
            database.async_session.add(Item(name="a"))
            await database.async_session.flush()

        await asyncio.to_thread(asyncio.run, work())
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert isinstance(call.raised, WrongEventLoopError)
    assert (call.starts, backend.names()) == ([500], [])
    if backend.is_postgresql:
        assert left(backend) == 0


async def test_a_connection_in_use_outlives_a_dispose(database: Database, backend: Backend) -> None:
    """Its unit continues and commits, and the next unit has a connection of a new pool."""
    pool = database.async_engine.pool
    async with session_scope(database) as session:
        session.add(Item(name="a"))
        await session.flush()
        await database.async_dispose()
        assert await session.scalar(text("SELECT count(*) FROM item")) == 1
    async with session_scope(database) as session:
        session.add(Item(name="b"))
    await greenlet_spawn(pool.dispose)  # of what came back to it

    assert backend.names() == ["a", "b"]
    assert database.async_engine.pool is not pool


def test_a_database_may_outlive_its_loop_and_be_dropped(sqlite: Backend) -> None:
    """Engines of a carelessly closed loop cannot be closed, and no error says so."""
    database = Database(sqlite.url)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(insert_async(database, "a"))
    loop.close()
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore", ResourceWarning)
        patch.setattr(sys, "unraisablehook", lambda _unraisable: None)
        del database
        gc.collect()
    assert sqlite.names() == ["a"]


def test_a_connection_that_cannot_be_closed_with_its_loop_is_logged(
    sqlite: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing listener stops neither the end of the loop nor that of the engine."""
    database = Database(sqlite.url)

    def fail(*_arguments: Any) -> None:
        raise BrokenError

    database.listen("invalidate", fail)

    async def job() -> AsyncConnection:
        connection = await database.async_engine.connect()
        await connection.execute(text("SELECT 1"))
        return connection

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(sys, "unraisablehook", lambda _unraisable: None)
        kept = asyncio.run(job())
        del kept
        gc.collect()
    failed = [record.exc_info for record in caplog.records if record.name == "asgi_sqla"]
    assert [one and one[0] for one in failed] == [BrokenError]
