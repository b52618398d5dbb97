"""The task that runs the end of a unit: its first step at once, and otherwise as any other."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from sqlalchemy import event
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.util import await_only
from support.databases import Backend, Item
from support.marks import on_deferring

from asgi_sqla import Database, session_scope
from asgi_sqla.unit import cancellation
from asgi_sqla.unit.cancellation import Finished, to_completion
from asgi_sqla.unit.eager import EagerTask


def begun(work: Any) -> EagerTask:
    return EagerTask(asyncio.get_running_loop(), work)


async def test_the_first_step_runs_at_once() -> None:
    """Before whatever the event loop has to do; work that waits for nothing has ended then."""
    order: list[str] = []

    async def work() -> None:
        order.append("work")

    asyncio.get_running_loop().call_soon(order.append, "loop")
    running = begun(work())

    assert (order, running.done(), running.exception()) == (["work"], True, None)
    assert await to_completion(running) == Finished()


async def test_it_is_the_task_that_runs() -> None:
    """From its first step to its last; its caller is current again after each."""
    outer = asyncio.current_task()
    seen: list[Any] = []

    async def work() -> None:
        for _ in range(2):
            seen.append(asyncio.current_task())
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        seen.append(asyncio.current_task())

    running = begun(work())
    assert asyncio.current_task() is outer
    assert (await to_completion(running), asyncio.current_task()) == (Finished(), outer)
    assert seen == [running] * 3


async def with_asyncio() -> None:
    async with asyncio.timeout(0.02):
        await asyncio.sleep(10)


async def with_wait_for() -> None:
    await asyncio.wait_for(asyncio.sleep(10), 0.02)


async def with_anyio() -> None:
    with anyio.fail_after(0.02):
        await anyio.sleep(10)


@pytest.mark.parametrize("limited", [with_asyncio, with_wait_for, with_anyio])
async def test_a_time_limit_inside_it(limited: Callable[[], Awaitable[None]]) -> None:
    """It ends what it is around, and not who waits for the end."""
    told: list[str] = []

    async def work() -> None:
        with pytest.raises(TimeoutError):
            await limited()
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0.01))
        told.append("went on")

    assert (await to_completion(begun(work())), told) == (Finished(), ["went on"])


async def test_it_may_be_cancelled() -> None:
    """While it waits, or before its next step; then it says so."""

    async def waits(future: asyncio.Future[None]) -> None:
        await future

    async def yields() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    loop = asyncio.get_running_loop()
    for work in (waits(loop.create_future()) if waiting else yields() for waiting in (True, False)):
        running = begun(work)
        assert running.cancel()
        await to_completion(running)
        assert (running.done(), running.cancelled(), running.cancel()) == (True, True, False)
        assert isinstance(running.exception(), asyncio.CancelledError)


async def test_its_failure_is_told() -> None:
    """Of its first step or of a later one; more than one may ask for its end."""
    failure = OSError("no")

    async def work(first: bool) -> None:
        if not first:
            await asyncio.sleep(0)
        raise failure

    for first in (True, False):
        running = begun(work(first))
        told: list[Any] = []
        running.add_done_callback(told.append)
        running.add_done_callback(told.append)
        assert (await to_completion(running)).failure is failure
        await asyncio.sleep(0)
        assert told == [running, running]


async def test_its_failure_is_freed_with_it() -> None:
    """Without the collector: no frame of its own keeps what it has raised."""

    async def work() -> None:
        await asyncio.sleep(0)
        raise OSError("no")

    gc.collect()
    gc.disable()
    try:
        running = begun(work())
        await to_completion(running)
        gone = weakref.ref(running)
        del running
        await asyncio.sleep(0)  # who waits goes on within its last step
        assert gone() is None
    finally:
        gc.enable()


async def test_what_cannot_be_awaited() -> None:
    """It is an error where it is awaited, which may handle it."""
    told: list[str] = []

    class Odd:
        def __await__(self) -> Any:
            yield "odd"

    async def work() -> None:
        with pytest.raises(RuntimeError, match="bad yield: 'odd'"):
            await Odd()
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        told.append("handled")

    assert (await to_completion(begun(work())), told) == (Finished(), ["handled"])


async def test_a_failure_that_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can neither be cut nor cancelled is left, and its failure goes to the event loop's handler."""
    monkeypatch.setattr(cancellation, "CANCELLED_LIMIT", 0.02)
    monkeypatch.setattr(cancellation, "CUT_LIMIT", 0.02)
    told: list[Any] = []
    loop, failure = asyncio.get_running_loop(), OSError("no")
    loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))

    async def work() -> None:
        await asyncio.sleep(0.1)
        raise failure

    finished = await to_completion(begun(work()), lambda: False, bounded=True)
    assert isinstance(finished.failure, TimeoutError)
    await asyncio.sleep(0.2)
    loop.set_exception_handler(None)

    assert told == [failure]


async def test_what_its_first_step_sets_stays_inside() -> None:
    """A variable of the context too, as of any task."""
    variable: ContextVar[str] = ContextVar("variable", default="outside")
    seen: list[str] = []

    async def work() -> None:
        variable.set("inside")
        await asyncio.sleep(0)
        seen.append(variable.get())

    outcome = await to_completion(begun(work()))
    assert (outcome, seen, variable.get()) == (Finished(), ["inside"], "outside")


@on_deferring
async def test_commit_is_sent_before_anything_else_is_done(backend: Backend) -> None:
    """What the event loop has to do already comes after it; on MariaDB the tests ask something before each COMMIT."""
    database, order = Database(backend.url), []
    database.listen("commit", lambda _connection: order.append("COMMIT"))
    async with session_scope(database):
        await database.async_session.connection()
        asyncio.get_running_loop().call_soon(order.append, "loop")
    await database.async_dispose()

    assert order[:1] == ["COMMIT"]


async def test_a_full_pool_at_the_end(backend: Backend) -> None:
    """A flush that needs a connection waits for it as long as ``pool_timeout`` says, and fails."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}
    database = Database(backend.url, engine_options=options)
    async with database.async_engine.connect():
        with anyio.fail_after(5), pytest.raises(PoolTimeoutError):
            async with session_scope(database):
                database.async_session.add(Item(name="late"))
    await database.async_dispose()

    assert backend.names() == []


async def test_a_listener_that_waits(backend: Backend) -> None:
    """It may use the time limits of asyncio and of anyio during the COMMIT."""
    database, seen = Database(backend.url), []

    async def waits() -> None:
        with anyio.move_on_after(0.02) as scope:
            await anyio.sleep(10)
        seen.append(scope.cancelled_caught)

    async with session_scope(database):
        session = database.async_session
        event.listen(session.sync_session, "before_commit", lambda _session: await_only(waits()))
        session.add(Item(name="in time"))
    await database.async_dispose()

    assert (seen, backend.names()) == ([True], ["in time"])
