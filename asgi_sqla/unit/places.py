"""Where the steps of an end run: inline, in SQLAlchemy's greenlet, or in a worker thread; all in one place if possible.

A greenlet runs plain functions where an async driver can be awaited, so the order of an end is written once. A sync
session blocks, so under an event loop a thread ends it, unless it can end ``at_once``.

Holds: the three places, and which one suits a session.
Must not know: what the steps are, or their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeAlias, cast

from sqlalchemy import util
from sqlalchemy.orm import Session

from asgi_sqla.engine.loops import await_
from asgi_sqla.errors import OWN_SCOPE, WrongEventLoopError
from asgi_sqla.session.guard import GuardedSession, running_loop
from asgi_sqla.unit import threads
from asgi_sqla.unit.sessions import UnitSession

Operation: TypeAlias = Callable[[GuardedSession], object]
Step: TypeAlias = Callable[[Operation, UnitSession], object]
"""Applies an operation to a session in the place that suits it; raises what the operation raises."""


def inline(operation: Operation, one: UnitSession) -> object:
    """Take a step in this thread, now."""
    return operation(one.session)


def start_off_the_loop(
    end: Callable[[Step], None], sessions: tuple[UnitSession, ...], fail: Callable[[Exception], None]
) -> Coroutine[Any, Any, None] | threads.Call:
    """Return what runs ``end`` if not all ``sessions`` are async sessions of the running event loop.

    If no thread can be started, ``fail(error)`` runs instead, in this thread.
    """
    if running_loop() is not None and all(one.loop is None for one in sessions):
        try:
            return threads.submit(lambda: end(inline))
        except threads.NoThreadError as exc:
            return cast("Coroutine[Any, Any, None]", util.greenlet_spawn(fail, exc))
    return cast("Coroutine[Any, Any, None]", util.greenlet_spawn(end, _elsewhere))


def give_up(step: Step, operation: Operation, one: UnitSession) -> object:
    """Take a step that discards work; in this thread if no other can be started.

    It must not be left undone.
    """
    try:
        return step(operation, one)
    except threads.NoThreadError:
        return operation(one.session)


def end_readers_at_once(operation: Operation, sessions: Iterable[UnitSession], done: list[UnitSession]) -> None:
    """Apply ``operation`` to async sessions of the running event loop that only read, all at the same time.

    Those that succeed are added to ``done``; then the first failure is raised. They go before sessions that wrote:
    under SERIALIZABLE what was read holds only if its transaction commits.
    """
    loop = running_loop()
    readers = [one for one in sessions if loop is not None and one.loop is loop and not one.outcome.wrote]
    if len(readers) < 2:
        return
    failures: list[BaseException | None] = await_(_gather([_on_its_loop(operation, one) for one in readers]))
    done += [one for one, failure in zip(readers, failures, strict=True) if failure is None]
    for failure in failures:
        if failure is not None:
            raise failure


async def _gather(work: list[Coroutine[Any, Any, None]]) -> list[BaseException | None]:
    return await asyncio.gather(*work, return_exceptions=True)


def _elsewhere(operation: Operation, one: UnitSession) -> object:
    """Take a step in the place of its session, and wait for it as SQLAlchemy waits for an async driver."""
    return await_(_perform(operation, one))


async def _perform(operation: Operation, one: UnitSession) -> None:
    if one.async_session is not None:
        await _on_its_loop(operation, one)
    elif running_loop() is not None:
        await threads.future_of(threads.submit(lambda: operation(one.session)))
    else:  # trio
        import anyio

        await anyio.to_thread.run_sync(operation, one.session, limiter=anyio.CapacityLimiter(1))


async def _on_its_loop(operation: Operation, one: UnitSession) -> None:
    """Run ``operation`` on the event loop of the session, which may run in another thread."""
    assert one.async_session is not None
    work = one.async_session.run_sync(cast("Callable[[Session], object]", operation))
    if one.loop is asyncio.get_running_loop():
        await work
    elif one.loop is not None and one.loop.is_running():
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, one.loop))
    else:
        work.close()
        raise WrongEventLoopError(
            f"an AsyncSession of {one.session.guard_unit} was made on an event loop that has ended, so its work is "
            f"lost; code that runs on its own event loop must open its own unit of work: {OWN_SCOPE}"
        )
