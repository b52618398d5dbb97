"""Runs what a unit does to its sessions, step by step, each where its session can be used.

Lives here: the three places: inline, in SQLAlchemy's greenlet, in a worker thread.
Must not know: what the steps are, or in which order they come.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TypeAlias

from anyio import CapacityLimiter, to_thread
from sqlalchemy.ext.asyncio import AsyncSession

from asgi_sqla.guard import GuardedSession


class Work:
    """One session of a unit: its sync core, and the ``AsyncSession`` around that, if it has one."""

    __slots__ = ("async_session", "session", "source")

    def __init__(self, source: object, session: GuardedSession, async_session: AsyncSession | None) -> None:
        self.source = source
        self.session = session
        self.async_session = async_session


Operation: TypeAlias = Callable[[GuardedSession], object]
Steps: TypeAlias = Generator[tuple[Operation, Work], None, None]
"""Yields what is to be done to which session; what that raises is thrown back in."""


def walk(steps: Steps) -> None:
    """Run each step here and now."""
    with suppress(StopIteration):
        operation, work = next(steps)
        while True:
            try:
                operation(work.session)
            except Exception as exc:
                operation, work = steps.throw(exc)
            else:
                operation, work = next(steps)


async def walk_async(steps: Steps) -> None:
    """Run each step where its session can be used without blocking the event loop."""
    with suppress(StopIteration):
        operation, work = next(steps)
        while True:
            try:
                await _perform(operation, work)
            except Exception as exc:
                operation, work = steps.throw(exc)
            else:
                operation, work = next(steps)


async def _perform(operation: Callable[..., object], work: Work) -> None:
    if work.async_session is not None:
        await work.async_session.run_sync(operation)
    else:
        # A limiter of its own: on a shared one, handlers waiting for a connection in every thread
        # would starve the very commit that frees one.
        await to_thread.run_sync(operation, work.session, limiter=CapacityLimiter(1))
