"""Runs what a unit does to its sessions, step by step, each where its session can be used.

Lives here: the three places: inline, in SQLAlchemy's greenlet, in a worker thread; if possible, all steps in one.
Must not know: what the steps are, or in which order they come.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeAlias, cast

import anyio
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn

from asgi_sqla.errors import WrongEventLoopError
from asgi_sqla.guard import OWN_SCOPE, GuardedSession


class Work:
    """One session of a unit: its sync core, and the ``AsyncSession`` around that, if it has one."""

    __slots__ = ("async_session", "loop", "session", "source")

    def __init__(
        self,
        source: object,
        session: GuardedSession,
        async_session: AsyncSession | None,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self.source: object = source
        self.session: GuardedSession = session
        self.async_session: AsyncSession | None = async_session
        self.loop: asyncio.AbstractEventLoop | None = loop


Operation: TypeAlias = Callable[[GuardedSession], object]
Step: TypeAlias = Callable[[Operation, Work], object]
"""Does an operation to the session of a work, where that can be used; raises what the operation raises."""
Running: TypeAlias = Coroutine[Any, Any, None] | Future[None]
"""Ends with the last step, or with what they raise."""


def here(operation: Operation, work: Work) -> object:
    """Take a step here and now."""
    return operation(work.session)


def run_without_blocking(function: Callable[[Step], None], works: tuple[Work, ...]) -> Running:
    """Return what runs ``function``, whose steps are with ``works``; where it is a thread's, it has begun."""
    loop = running_loop()
    loops = {work.loop for work in works}
    if loop is not None and loops == {loop}:
        return greenlet_spawn(function, here)
    if loop is not None and loops == {None}:
        return _threads.submit(copy_context().run, function, here)
    return greenlet_spawn(function, _elsewhere)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the asyncio event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # trio
        return None


def _elsewhere(operation: Operation, work: Work) -> object:
    """Take a step where its session can be used, and wait for it as SQLAlchemy waits for an async driver."""
    return await_only(_perform(operation, work))


async def _perform(operation: Callable[..., object], work: Work) -> None:
    if work.async_session is not None:
        await _on_its_loop(operation, work.async_session, work.loop)
    else:
        # A limiter of its own: on a shared one, handlers waiting for a connection in every thread
        # would starve the very commit that frees one.
        await anyio.to_thread.run_sync(operation, work.session, limiter=anyio.CapacityLimiter(1))


async def _on_its_loop(operation: Operation, session: AsyncSession, loop: asyncio.AbstractEventLoop | None) -> None:
    """Run ``operation`` on the event loop the session was made on, which may be another thread's."""
    work = session.run_sync(cast("Callable[[Session], object]", operation))
    if loop is asyncio.get_running_loop():
        await work
    elif loop is not None and loop.is_running():
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))
    else:
        work.close()
        unit = cast("GuardedSession", session.sync_session).guard_unit
        raise WrongEventLoopError(
            f"an AsyncSession of {unit} was made on an event loop that has ended, and its work with it; "
            f"in code that runs on a loop of its own, open a unit of work: {OWN_SCOPE}"
        )


def _make_threads() -> None:
    """Make the threads for sync sessions: never one too few, or handlers waiting would starve a COMMIT."""
    global _threads  # a forked child has the object, but none of the threads
    _threads = ThreadPoolExecutor(10_000, "asgi_sqla")


_threads: ThreadPoolExecutor
_make_threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_threads)
