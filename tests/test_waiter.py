"""What a task of the package waits for: it goes on in the call that wakes it, and is otherwise as a future."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from asgi_sqla.engine.waiter import Waiter
from asgi_sqla.unit.eager import EagerTask

who: ContextVar[str] = ContextVar("who")


def waiter() -> Waiter:
    return Waiter(asyncio.get_running_loop())


async def wait_for(one: Waiter, told: list[Any], *, name: str = "went on") -> None:
    await one
    told.append(name)


async def test_its_task_goes_on_at_once() -> None:
    """Before whatever else the event loop has to do in the same turn."""
    told: list[Any] = []
    loop, one = asyncio.get_running_loop(), waiter()
    task = loop.create_task(wait_for(one, told))
    await asyncio.sleep(0)

    loop.call_soon(one.wake)
    loop.call_soon(told.append, "the next")
    await task

    assert told == ["went on", "the next"]


async def test_a_task_cannot_run_within_another() -> None:
    """If a task wakes it, it goes on in the next turn."""
    told: list[Any] = []
    one = waiter()
    task = asyncio.ensure_future(wait_for(one, told))
    await asyncio.sleep(0)

    one.wake()
    assert told == []
    await task
    assert told == ["went on"]


async def test_an_eager_task_may_wait_for_it() -> None:
    """Whoever waits for that one goes on in the same call."""
    told: list[Any] = []
    loop, inner, outer, outside = asyncio.get_running_loop(), waiter(), waiter(), asyncio.current_task()
    eager = EagerTask(loop, wait_for(inner, told, name="eager"))
    eager.add_done_callback(outer.wake)
    task = loop.create_task(wait_for(outer, told))
    await asyncio.sleep(0)

    loop.call_soon(inner.wake)
    loop.call_soon(told.append, "the next")
    await task

    assert told == ["eager", "went on", "the next"]
    assert asyncio.current_task() is outside


async def test_it_may_be_woken_before() -> None:
    """Then nobody waits; a second time changes nothing."""
    one = waiter()
    one.wake()
    one.wake()
    assert (one.done(), one.cancelled(), one.cancel()) == (True, False, False)
    await one


async def test_its_context_is_its_own() -> None:
    """The task goes on in its own context, and not in that of who wakes it."""
    told: list[Any] = []
    loop, one = asyncio.get_running_loop(), waiter()

    async def work() -> None:
        who.set("the task")
        await one
        told.append(who.get())

    task = loop.create_task(work())
    await asyncio.sleep(0)
    who.set("another")
    loop.call_soon(one.wake)
    await task
    assert told == ["the task"]
    assert who.get() == "another"


async def test_a_failure() -> None:
    """It is raised where it is awaited, also if nobody has awaited it yet."""
    for first in (True, False):
        one = waiter()
        task = asyncio.ensure_future(wait_for(one, []))
        if not first:
            await asyncio.sleep(0)
        one.set_exception(OSError("no"))
        one.set_result(None)
        with pytest.raises(OSError, match="no"):
            await task


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task


async def cancel_with_anyio(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with anyio.move_on_after(0.02):
        await waiter()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("cancelling", [cancel, cancel_with_anyio])
async def test_a_cancellation(cancelling: Callable[[asyncio.Task[Any]], Awaitable[None]]) -> None:
    """Of a task, with its message, or by a scope; whoever wakes it afterwards does nothing."""
    told: list[Any] = []
    one = waiter()
    task = asyncio.ensure_future(wait_for(one, told))
    await asyncio.sleep(0)
    await cancelling(task)
    one.wake()
    one.set_exception(OSError("too late"))
    await asyncio.sleep(0)
    assert (told, one.done(), one.cancelled()) == ([], True, True)


async def test_a_time_limit() -> None:
    """It ends the wait."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await waiter()


async def test_a_cancellation_comes_first() -> None:
    """If both come in one turn, in this order, the task is cancelled once, and goes on with nothing else."""
    told: list[Any] = []
    loop, one = asyncio.get_running_loop(), waiter()
    task = loop.create_task(wait_for(one, told))
    await asyncio.sleep(0)
    loop.call_soon(task.cancel)
    loop.call_soon(one.wake)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == []


async def test_whoever_is_woken_may_be_cancelled_later() -> None:
    """The task that went on is not the waiter's any more."""
    loop, first, second = asyncio.get_running_loop(), waiter(), waiter()

    async def work() -> None:
        await first
        await second

    task = loop.create_task(work())
    await asyncio.sleep(0)
    loop.call_soon(first.wake)
    await asyncio.sleep(0)
    assert (first.done(), task.done()) == (True, False)
    await cancel(task)
