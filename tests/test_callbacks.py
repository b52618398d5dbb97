"""Callbacks: what runs after a commit or a rollback, in which order, and in which unit."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from anyio import to_thread
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from support.asgi import Call, Message, respond
from support.databases import NO_OWNER, Backend, Item, sqlite_backend
from support.failing import BrokenError, insert
from support.marks import KINDS

from asgi_sqla import (
    ConfigurationError,
    Database,
    NoUnitOfWorkError,
    SQLAlchemyMiddleware,
    UnitOfWorkEndedError,
    current_unit,
    on_commit,
    session_scope,
)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return every line at ERROR."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


async def count(database: Database) -> int:
    """Return how many items the current unit sees."""
    return await database.async_session.scalar(select(func.count()).select_from(Item)) or 0


def doing(work: Callable[[Session], None], database: Database, kind: str) -> Any:
    """Return an application that runs ``work`` on its session, and answers 201."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if kind == "sync":
            await to_thread.run_sync(lambda: work(database.session))
        else:
            await database.async_session.run_sync(work)
        await respond(send, 201)

    return app


@pytest.mark.parametrize("kind", KINDS)
async def test_callbacks_run_in_order_after_the_commit_and_before_the_start(
    database: Database, backend: Backend, kind: str
) -> None:
    """Sync and async callbacks have all run, with their arguments, when the client sees the status."""
    called: list[object] = []

    async def later(word: str, *, mark: str) -> None:
        await asyncio.sleep(0)
        called.append((word + mark, backend.names()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        unit = current_unit()
        unit.on_commit(called.append, 1)
        unit.on_rollback(called.append, "no")
        await insert(database, kind, name="a")
        unit.on_commit(later, "two", mark="!")
        unit.on_commit(functools.partial(later, "three"), mark="?")
        unit.on_commit(called.append, 4)
        await respond(send, 201)

    call = Call(SQLAlchemyMiddleware(app, database))

    async def on_start(_message: Message) -> None:
        called.append("start")

    call.on_start = on_start
    await call()

    assert (call.raised, call.starts) == (None, [201])
    assert called == [1, ("two!", ["a"]), ("three?", ["a"]), 4, "start"]


@pytest.mark.parametrize("how", ["status", "exception", "rollback_only"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_rollback_calls_on_rollback_callbacks(
    database: Database, backend: Backend, kind: str, how: str
) -> None:
    """Whatever caused the rollback, on_rollback callbacks run in order, and on_commit ones do not."""
    called: list[object] = []

    async def later() -> None:
        called.append(("later", backend.names()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        unit = current_unit()
        unit.on_commit(called.append, "no")
        await insert(database, kind, name="a")
        unit.on_commit(called.append, "no")
        unit.on_rollback(later)
        unit.on_rollback(called.append, 2)
        if how == "exception":
            raise BrokenError
        if how == "rollback_only":
            unit.rollback_only()
        await respond(send, 422 if how == "status" else 200)

    await Call(SQLAlchemyMiddleware(app, database))()

    assert called == [("later", []), 2]


def rolled_back(backend: Backend) -> list[object]:
    """Return the on_rollback callbacks that a failed COMMIT calls: none on MariaDB, where it is in doubt."""
    return [] if backend.is_mariadb else ["rolled back"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failed_commit_is_a_rollback(database: Database, backend: Backend, kind: str) -> None:
    """If COMMIT fails, on_commit callbacks do not run, and on_rollback ones do unless it is in doubt."""
    called: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_unit().on_commit(called.append, "no")
        current_unit().on_rollback(called.append, "rolled back")
        await insert(database, kind, name="a", owner_id=NO_OWNER)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.starts, called, backend.names()) == ([500], rolled_back(backend), [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_savepoint_takes_its_callbacks_with_it(database: Database, backend: Backend, kind: str) -> None:
    """A rolled-back savepoint drops its on_commit callbacks, and those of savepoints inside it."""
    called: list[str] = []

    def work(session: Session) -> None:
        unit = current_unit()
        session.add(Item(name="a"))
        unit.on_commit(called.append, "before")
        with session.begin_nested():
            unit.on_commit(called.append, "released")
            unit.on_rollback(called.append, "no: released")
        outer = session.begin_nested()
        unit.on_commit(called.append, "no: rolled back")
        with session.begin_nested():
            unit.on_commit(called.append, "no: released inside one that is rolled back")
            unit.on_rollback(called.append, "rolled back inside")
        outer.rollback()
        unit.on_rollback(called.append, "no")
        unit.on_commit(called.append, "after")

    call = await Call(SQLAlchemyMiddleware(doing(work, database, kind), database))()

    assert (call.raised, call.starts) == (None, [201])
    assert called == ["rolled back inside", "before", "released", "after"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_rollback_in_the_middle_drops_what_was_registered(
    database: Database, backend: Backend, kind: str
) -> None:
    """Work that the application rolled back is never committed, however the unit ends."""
    called: list[str] = []

    def work(session: Session) -> None:
        session.add(Item(name="lost"))
        session.flush()
        current_unit().on_commit(called.append, "no")
        current_unit().on_rollback(called.append, "rolled back")
        session.rollback()
        session.add(Item(name="kept"))
        current_unit().on_commit(called.append, "kept")

    await Call(SQLAlchemyMiddleware(doing(work, database, kind), database))()

    assert (called, backend.names()) == (["rolled back", "kept"], ["kept"])


async def test_a_nested_scope_is_a_savepoint_too(database: Database, backend: Backend) -> None:
    """A failed session_scope(propagation="nested") drops the callbacks that were registered in it."""
    called: list[str] = []

    async with session_scope(database):
        current_unit().on_commit(called.append, "outer")
        with suppress(BrokenError):
            async with session_scope(database, propagation="nested"):
                current_unit().on_commit(called.append, "no")
                raise BrokenError
        async with session_scope(database, propagation="join"):
            current_unit().on_commit(called.append, "joined")
        assert called == []

    assert called == ["outer", "joined"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_callback_has_a_unit_of_its_own(database: Database, backend: Backend, kind: str) -> None:
    """It sees the committed rows, and its own writes are committed after it."""
    seen: list[object] = []

    async def later() -> None:
        seen.append((str(current_unit()), await count(database)))
        database.async_session.add(Item(name="b"))

    def at_once() -> None:
        seen.append(database.session.scalar(select(func.count()).select_from(Item)))
        database.session.add(Item(name="c"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, kind, name="a")
        current_unit().on_commit(later)
        await to_thread.run_sync(current_unit().on_commit, at_once)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    name = f"on_commit callback {later.__qualname__} of GET /"
    assert (call.raised, call.starts) == (None, [201])
    assert seen == [(f"<UnitOfWork {name} open>", 1), 2]
    assert backend.names() == ["a", "b", "c"]


@pytest.mark.parametrize("moment", ["commit", "rollback"])
async def test_a_failing_callback_is_logged_and_the_others_run(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    """The response reports the transaction, which is done; the callback's own writes are rolled back."""
    called: list[str] = []

    async def breaks() -> None:
        database.async_session.add(Item(name="lost"))
        await database.async_session.flush()
        raise BrokenError

    async def fails_to_commit() -> None:
        database.async_session.add(Item(name="lost", owner_id=NO_OWNER))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        register = current_unit().on_commit if moment == "commit" else current_unit().on_rollback
        register(breaks)
        register(called.append, "next")
        register(fails_to_commit)
        register(called.append, "last")
        await insert(database, "async", name="a")
        await respond(send, 201 if moment == "commit" else 400)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.status) == (None, 201 if moment == "commit" else 400)
    assert called == ["next", "last"]
    assert backend.names() == (["a"] if moment == "commit" else [])
    assert errors(caplog) == [
        f"on_{moment} callback {function.__qualname__} of GET /: failed" for function in (breaks, fails_to_commit)
    ]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_callback_registers_another(database: Database, backend: Backend, kind: str) -> None:
    """The new callback belongs to the unit of the first, so it runs after that unit's commit, before the next one."""
    called: list[object] = []

    def first() -> None:
        if kind == "sync":
            database.session.add(Item(name="b"))
        else:
            database.async_session.add(Item(name="b"))
        on_commit(lambda: called.append(backend.names()))
        called.append("first")

    with_or_async = session_scope(database)
    if kind == "sync":
        with with_or_async as session:
            session.add(Item(name="a"))
            current_unit().on_commit(first)
            current_unit().on_commit(called.append, "second")
    else:
        async with with_or_async as async_session:
            async_session.add(Item(name="a"))
            current_unit().on_commit(first)
            current_unit().on_commit(called.append, "second")

    assert called == ["first", ["a", "b"], "second"]


async def test_callbacks_wait_for_every_database(
    database: Database, backend: Backend, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One failed COMMIT counts as a rollback, although another database had committed."""
    (tmp_path / "second").mkdir()
    witness = sqlite_backend(tmp_path / "second")
    second = Database(witness.url)
    called: list[object] = []

    async def work(owner_id: int | None) -> None:
        async with session_scope(second) as session:
            unit = current_unit()
            unit.on_commit(lambda: called.append((witness.names(), backend.names())))
            unit.on_rollback(called.append, "rolled back")
            session.add(Item(name="a"))
            await session.flush()
            database.async_session.add(Item(name=f"b{owner_id}", owner_id=owner_id))

    await work(None)
    assert called == [(["a"], ["bNone"])]

    with witness.witness.begin() as connection:
        connection.execute(Item.__table__.delete())  # type: ignore[attr-defined]  # it is a table
    with pytest.raises(backend.commit_error):
        await work(NO_OWNER)
    assert called == [(["a"], ["bNone"]), *rolled_back(backend)]
    await second.async_dispose()
    witness.witness.dispose()


async def test_outside_any_unit_it_is_called_at_once(database: Database) -> None:
    """on_commit() needs no unit, unlike current_unit(), and an exception of the callback is raised."""
    called: list[object] = []

    on_commit(called.append, 1)
    assert called == [1]
    with pytest.raises(ZeroDivisionError):
        on_commit(lambda: 1 / 0)
    with pytest.raises(NoUnitOfWorkError):
        current_unit()


async def later() -> None:
    """Be async."""


class Async:
    """An object that is called like an async function."""

    async def __call__(self) -> None:
        """Be async."""


@pytest.mark.parametrize("callback", [later, functools.partial(later), Async()], ids=["function", "partial", "object"])
def test_an_async_callback_is_refused_in_a_sync_scope(sqlite: Backend, callback: Any) -> None:
    """Nothing could await it, and the error is raised when it is registered."""
    database = Database(sqlite.url)
    with session_scope(database):
        for register in (on_commit, current_unit().on_commit, current_unit().on_rollback):
            with pytest.raises(ConfigurationError, match=r"is async, but .* nothing can be awaited"):
                register(callback)
    with pytest.raises(ConfigurationError, match="is async"):
        on_commit(callback)


@pytest.mark.parametrize("wrong", [None, "later", 1])
async def test_what_cannot_be_called_is_refused(sqlite: Backend, wrong: Any) -> None:
    """The error says to pass the function, not its result."""
    async with session_scope(Database(sqlite.url)):
        with pytest.raises(ConfigurationError, match="pass the function and its arguments"):
            current_unit().on_commit(wrong)


def test_a_callback_that_returns_an_awaitable_in_a_sync_scope_is_logged(
    sqlite: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the call of a plain function shows that it returns a coroutine, and that is logged as an error."""
    with session_scope(Database(sqlite.url)):
        on_commit(lambda: later())

    assert len(errors(caplog)) == 1
    assert caplog.records[0].exc_info is not None
    assert isinstance(caplog.records[0].exc_info[1], ConfigurationError)


async def test_a_plain_function_runs_where_it_was_registered(database: Database, backend: Backend) -> None:
    """It runs on the event loop or in a worker thread. In a thread it may block, and use the sync session."""
    loops: list[bool] = []

    def note() -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            loops.append(False)
        else:
            loops.append(True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_unit().on_commit(note)
        await to_thread.run_sync(lambda: on_commit(note))
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, loops) == (None, [True, False])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_unit_without_a_database_has_callbacks_too(database: Database, kind: str) -> None:
    """A unit with nothing to commit counts as committed."""
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        on_commit(called.append, "done")
        await respond(send, 204)

    await Call(SQLAlchemyMiddleware(app, database))()
    with session_scope(database):
        on_commit(called.append, "scope")

    assert called == ["done", "scope"]


async def test_what_is_registered_after_the_start_follows_that_work(database: Database, backend: Backend) -> None:
    """A streaming body and a background task have their own transaction, and callbacks for it."""
    called: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        on_commit(called.append, "before the start")
        await respond(send, 200)
        await insert(database, "async", name="background")
        on_commit(lambda: called.append(backend.names()))

    await Call(SQLAlchemyMiddleware(app, database))()

    assert called == ["before the start", ["background"]]


async def test_a_cancelled_request_calls_on_rollback_callbacks(database: Database, backend: Backend) -> None:
    """on_rollback callbacks run to their end before the cancellation is raised."""
    called: list[str] = []
    reached = asyncio.Event()

    async def note() -> None:
        await asyncio.sleep(0.01)
        called.append("rolled back")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_unit().on_rollback(note)
        await insert(database, "async", name="a")
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(Call(SQLAlchemyMiddleware(app, database))())
    await reached.wait()
    task.cancel()
    call = await task

    assert isinstance(call.raised, asyncio.CancelledError)
    assert (called, backend.names()) == (["rolled back"], [])


async def test_a_unit_that_has_ended_takes_no_callback(database: Database) -> None:
    """Nothing would call it, so registering raises."""
    async with session_scope(database):
        unit = current_unit()

    with pytest.raises(UnitOfWorkEndedError):
        unit.on_commit(print)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_decorated_function_has_callbacks(database: Database, backend: Backend, kind: str) -> None:
    """They run before the caller gets the result, in sync and in async scopes."""
    called: list[object] = []

    @session_scope(database)
    def write(name: str) -> None:
        database.session.add(Item(name=name))
        on_commit(lambda: called.append(backend.names()))

    @session_scope(database)
    async def write_async(name: str) -> None:
        database.async_session.add(Item(name=name))
        on_commit(lambda: called.append(backend.names()))

    if kind == "sync":
        await to_thread.run_sync(write, "a")
    else:
        await write_async("a")

    assert called == [["a"]]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_callback_whose_own_commit_fails_is_logged(
    sqlite: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The unit before it is committed, and the next callback is called."""
    database = Database(sqlite.url)
    called: list[str] = []

    def callback(name: str) -> None:
        called.append(name)
        if name == "first":
            session = database.session if kind == "sync" else database.async_session
            session.add(Item(name=name, owner_id=NO_OWNER))

    def register() -> None:
        current_unit().on_commit(callback, "first")
        current_unit().on_commit(callback, "second")

    if kind == "sync":
        with session_scope(database) as session:
            session.add(Item(name="a"))
            register()
    else:
        async with session_scope(database) as async_session:
            async_session.add(Item(name="a"))
            register()
    await database.async_dispose()

    assert (called, sqlite.names()) == (["first", "second"], ["a"])
    assert len(errors(caplog)) == 1


class Later:
    """Something to await that is no coroutine, such as a future."""

    def __await__(self) -> Any:
        """Never run."""
        raise AssertionError


def test_what_nothing_awaits_is_refused(sqlite: Backend) -> None:
    """A callback outside any unit, and a begin hook, must not return an awaitable."""
    with pytest.raises(ConfigurationError, match="awaits"):
        on_commit(Later)
    database = Database(sqlite.url)
    with session_scope(database) as session:
        current_unit().on_begin(lambda _connection: Later())
        with pytest.raises(ConfigurationError, match="awaits"):
            session.connection()
        session.rollback()
    database.dispose()
