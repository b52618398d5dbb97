"""Where the steps of an end run: inline, in SQLAlchemy's greenlet, or in a worker thread; all in one if possible.

A greenlet carries plain functions to where an async driver can be awaited, so the order of an end is written once. A
sync session blocks, so a thread ends it where an event loop runs.

Holds: the three places, and which one a session can be used in.
Must not know: what the steps are, or in which order they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeAlias, cast

from sqlalchemy import util
from sqlalchemy.orm import Session

from asgi_sqla.errors import OWN_SCOPE, WrongEventLoopError
from asgi_sqla.session.guard import GuardedSession, running_loop
from asgi_sqla.unit import threads
from asgi_sqla.unit.sessions import UnitSession

Operation: TypeAlias = Callable[[GuardedSession], object]
Step: TypeAlias = Callable[[Operation, UnitSession], object]
"""Does an operation to a session where that can be used; raises what the operation raises."""

_await: Callable[[Any], Any] = getattr(util, "await_", None) or util.await_only
"""SQLAlchemy's way to wait inside its greenlet: the new name, and that of 2.0."""


def start_off_the_loop(
    end: Callable[[Step], None],
    sessions: tuple[UnitSession, ...],
    inline: Step,
    fail: Callable[[Exception], None],
) -> Coroutine[Any, Any, None] | Future[None]:
    """Return what runs ``end`` where not every one of ``sessions`` is async and of the running event loop.

    Where no thread can be started, ``fail(error)`` is run instead, in this one.
    """
    if running_loop() is not None and all(one.loop is None for one in sessions):
        try:
            return threads.submit(lambda: end(inline))
        except threads.NoThreadError as exc:
            return cast("Coroutine[Any, Any, None]", util.greenlet_spawn(fail, exc))
    return cast("Coroutine[Any, Any, None]", util.greenlet_spawn(end, _elsewhere))


def give_up(step: Step, operation: Operation, one: UnitSession) -> object:
    """Take a step that gives work up: in this thread where no other can be started, as it must not be left undone."""
    try:
        return step(operation, one)
    except threads.NoThreadError:
        return operation(one.session)


def _elsewhere(operation: Operation, one: UnitSession) -> object:
    """Take a step where its session can be used, and wait for it as SQLAlchemy waits for an async driver."""
    return _await(_perform(operation, one))


async def _perform(operation: Operation, one: UnitSession) -> None:
    if one.async_session is not None:
        await _on_its_loop(operation, one)
    elif running_loop() is not None:
        await asyncio.wrap_future(threads.submit(lambda: operation(one.session)))
    else:  # trio
        import anyio

        await anyio.to_thread.run_sync(operation, one.session, limiter=anyio.CapacityLimiter(1))


async def _on_its_loop(operation: Operation, one: UnitSession) -> None:
    """Run ``operation`` on the event loop the session was made on, which may be another thread's."""
    assert one.async_session is not None
    work = one.async_session.run_sync(cast("Callable[[Session], object]", operation))
    if one.loop is asyncio.get_running_loop():
        await work
    elif one.loop is not None and one.loop.is_running():
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, one.loop))
    else:
        work.close()
        raise WrongEventLoopError(
            f"an AsyncSession of {one.session.guard_unit} was made on an event loop that has ended, and "
            f"its work with it; in code that runs on a loop of its own, open a unit of work: {OWN_SCOPE}"
        )
