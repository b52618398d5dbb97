"""Which callbacks are called, depending on the fate of their transaction and on the errors of other callbacks."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from anyio import to_thread
from sqlalchemy import Connection, event, insert, text
from sqlalchemy.orm import Session
from support.asgi import Call, respond
from support.databases import NO_OWNER, Backend, Item
from support.failing import BrokenError, lose_network
from support.marks import KINDS, on_deferring, on_postgresql
from support.rivals import perform

from asgi_sqla import ConfigurationError, Database, SQLAlchemyMiddleware, current_unit, on_commit, session_scope

Called = list[object]


@pytest.fixture
def flushed() -> Iterator[Called]:
    """Register a callback in each flush that inserts an item, as a search index would; return the calls."""
    called: Called = []

    def after_insert(_mapper: object, _connection: object, item: Item) -> None:
        on_commit(called.append, item.name)
        current_unit().on_rollback(called.append, f"not {item.name}")

    event.listen(Item, "after_insert", after_insert)
    yield called
    event.remove(Item, "after_insert", after_insert)


async def request(database: Database, work: Callable[[], Any], status: int = 201) -> Call:
    """Return the request of an application that awaits ``work()``, and answers ``status``."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await work()
        await respond(send, status)

    return await Call(SQLAlchemyMiddleware(app, database))()


def adding(**fields: Any) -> Callable[[Session], None]:
    """Return work that adds an item, and leaves the flush to the end of the unit."""
    return lambda session: session.add(Item(**fields))


# Registered by a flush of the COMMIT.


@on_deferring
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owner_id", [None, NO_OWNER])
async def test_a_flush_of_the_commit_registers_in_a_request(
    database: Database, backend: Backend, kind: str, owner_id: int | None, flushed: Called
) -> None:
    """A callback registered by the flush of a COMMIT runs after that COMMIT only."""
    call = await request(database, lambda: perform(database, kind, adding(name="a", owner_id=owner_id)))

    kept = owner_id is None
    assert (call.starts, flushed, backend.names()) == (([201], ["a"], ["a"]) if kept else ([500], ["not a"], []))


@on_deferring
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owner_id", [None, NO_OWNER])
async def test_a_flush_of_the_commit_registers_in_a_scope(
    database: Database, backend: Backend, kind: str, owner_id: int | None, flushed: Called
) -> None:
    """A unit that is about to end still accepts the callbacks of its last flush."""
    with suppress(backend.commit_error):
        if kind == "sync":
            with session_scope(database) as session:
                session.add(Item(name="a", owner_id=owner_id))
        else:
            async with session_scope(database) as async_session:
                async_session.add(Item(name="a", owner_id=owner_id))

    assert (flushed, backend.names()) == ((["a"], ["a"]) if owner_id is None else (["not a"], []))


@on_deferring
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owner_id", [None, NO_OWNER])
async def test_a_flush_of_the_last_commit_registers(
    database: Database, backend: Backend, kind: str, owner_id: int | None, flushed: Called
) -> None:
    """The work of a background task, after the response start, has its own callbacks."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, 200)
        await perform(database, kind, adding(name="a", owner_id=owner_id))

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert call.starts == [200]
    assert (flushed, backend.names()) == ((["a"], ["a"]) if owner_id is None else (["not a"], []))


# Work that is not there.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["rollback", "close", "reset"])
async def test_rolled_back_or_discarded_work_calls_no_on_commit(
    database: Database, backend: Backend, kind: str, end: str
) -> None:
    """Its on_commit callbacks are dropped and its on_rollback ones called, whatever the response is."""
    called: Called = []

    def work(session: Session) -> None:
        session.execute(insert(Item).values(name="a"))
        on_commit(called.append, "committed")
        current_unit().on_rollback(called.append, "rolled back")
        getattr(session, end)()

    call = await request(database, lambda: perform(database, kind, work))

    assert (call.starts, called, backend.names()) == ([201] if end == "rollback" else [500], ["rolled back"], [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_commit_of_the_applications_own_counts_under_an_error(
    database: Database, backend: Backend, kind: str
) -> None:
    """The application committed before it answered 422, so callbacks before that commit run, and later ones do not."""
    called: Called = []

    def work(session: Session) -> None:
        session.execute(insert(Item).values(name="kept"))
        on_commit(called.append, "first committed")
        current_unit().on_rollback(called.append, "first rolled back")
        session.commit()
        session.execute(insert(Item).values(name="lost"))
        on_commit(called.append, "second committed")
        current_unit().on_rollback(called.append, "second rolled back")

    call = await request(database, lambda: perform(database, kind, work), 422)

    assert (call.starts, backend.names()) == ([422], ["kept"])
    assert sorted(map(str, called)) == ["first committed", "second rolled back"]


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
async def test_in_doubt_neither_kind_is_called(database: Database, backend: Backend, kind: str) -> None:
    """If the connection is lost during COMMIT, nobody can know which kind of callback would be right."""
    called: Called = []

    def work(session: Session) -> None:
        session.execute(insert(Item).values(name="a"))
        on_commit(called.append, "committed")
        current_unit().on_rollback(called.append, "rolled back")
        event.listen(engine_of_session(session), "commit", lose_network)

    call = await request(database, lambda: perform(database, kind, work))

    assert (call.starts, called) == ([500], [])


def engine_of_session(session: Session) -> Any:
    """Return the engine of a session's connection."""
    return session.connection().engine


# What one of them raises.


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_callback_does_not_stop_the_next_one(
    database: Database, backend: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A future that is cancelled elsewhere fails only that callback: it is logged, and the response stays."""
    called: Called = []

    async def wait_for_the_cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    def work(session: Session) -> None:
        session.execute(insert(Item).values(name="a"))
        on_commit(wait_for_the_cancelled)
        on_commit(called.append, "next")

    call = await request(database, lambda: perform(database, kind, work))

    assert (call.starts, call.raised, called, backend.names()) == ([201], None, ["next"], ["a"])
    assert [r for r in caplog.records if r.levelno == logging.ERROR and "wait_for_the_cancelled" in r.getMessage()]


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_ends_the_process_waits_for_the_other_callbacks(
    database: Database, backend: Backend, kind: str, fatal: type[BaseException]
) -> None:
    """The other callbacks run and connections are returned before KeyboardInterrupt is raised; the commit is done."""
    called: Called = []

    def stop() -> None:
        raise fatal

    def work() -> None:
        with session_scope(database) as session:
            session.execute(insert(Item).values(name="a"))
            on_commit(stop)
            on_commit(called.append, "next")

    async def work_async() -> None:
        async with session_scope(database) as session:
            await session.execute(insert(Item).values(name="a"))
            on_commit(stop)
            on_commit(called.append, "next")

    def in_thread() -> None:
        try:
            if kind == "sync":
                work()
            else:
                asyncio.run(work_async())  # which raises it to whoever runs the loop
        except fatal as exc:
            called.append(type(exc))

    thread = threading.Thread(target=in_thread)
    thread.start()
    await to_thread.run_sync(thread.join)

    assert (called, backend.names()) == (["next", fatal], ["a"])


class Array:
    """An argument like numpy's: a comparison returns an array, and its truth is an error."""

    def __eq__(self, other: object) -> Array:  # type: ignore[override]  # as numpy's
        return self

    def __bool__(self) -> bool:
        raise ValueError("the truth of an array is ambiguous")

    __hash__ = None  # type: ignore[assignment]  # as numpy's


def test_callbacks_are_compared_by_identity(sqlite: Backend) -> None:
    """Their arguments may be arrays. The one in a rolled-back savepoint is dropped, and an equal one is not."""
    called: Called = []
    with session_scope(Database(sqlite.url)) as session:
        session.execute(insert(Item).values(name="a"))
        on_commit(called.append, Array())
        savepoint = session.begin_nested()
        on_commit(called.append, Array())
        savepoint.rollback()

    assert len(called) == 1


# Hooks of on_begin.


async def as_tenant(_connection: Connection) -> None:
    """Be async, which a hook must not be."""


class AsyncHook:
    async def __call__(self, _connection: Connection) -> None:
        """Be async."""


@pytest.mark.parametrize("hook", [None, "SET x = 1", as_tenant, AsyncHook()], ids=["None", "text", "async", "object"])
def test_a_hook_that_cannot_be_called_is_refused(sqlite: Backend, hook: Any) -> None:
    """It is refused when it is registered, not at the first query."""
    with session_scope(Database(sqlite.url)), pytest.raises(ConfigurationError, match=r"^hook="):
        current_unit().on_begin(hook)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hook_that_returns_something_to_await_fails_the_query(database: Database, kind: str) -> None:
    """Only the call shows it, and then no query runs without the hook's settings."""

    async def app() -> None:
        current_unit().on_begin(lambda connection: as_tenant(connection))
        await perform(database, kind, lambda session: session.execute(insert(Item).values(name="a")))

    call = await request(database, app)

    assert call.starts == []
    assert isinstance(call.raised, ConfigurationError)


async def test_a_failing_callback_does_not_fail_the_request(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit is done, so the response stays, and the exception is logged."""

    def breaks() -> None:
        raise BrokenError

    async def work() -> None:
        database.async_session.add(Item(name="a"))
        on_commit(breaks)

    call = await request(database, work)

    assert (call.starts, call.raised, backend.names()) == ([201], None, ["a"])
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [BrokenError]


# Registered while two databases are in a transaction.


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("", "", ["committed"]),
        ("commit", "", ["committed"]),
        ("commit", "commit", ["committed"]),
        ("commit", "rollback", ["rolled back"]),
        ("rollback", "commit", ["rolled back"]),
        ("", "rollback", ["rolled back"]),
    ],
)
async def test_all_databases_must_commit(backend: Backend, first: str, second: str, expected: list[str]) -> None:
    """A callback belongs to both transactions, whoever ends them; one rollback decides."""
    databases = Database(backend.url), Database(backend.url)
    called: Called = []

    async def work() -> None:
        sessions = [one.async_session for one in databases]
        for session in sessions:
            await session.execute(text("SELECT 1"))
        on_commit(called.append, "committed")
        current_unit().on_rollback(called.append, "rolled back")
        for session, end in zip(sessions, (first, second), strict=True):
            if end:
                await getattr(session, end)()
        assert called == []

    async with session_scope(databases[0]):
        await work()
    for one in databases:
        await one.async_dispose()

    assert called == expected
