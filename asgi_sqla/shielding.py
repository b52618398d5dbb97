"""Lets work that has begun run to its end, whoever cancels its caller.

Lives here: the one combination that holds against both kinds of cancellation.
Must not know: what the work is.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar, cast

import anyio

T = TypeVar("T")
logger: logging.Logger = logging.getLogger("asgi_sqla")


async def to_completion(work: Coroutine[Any, Any, T] | Future[T]) -> T:
    """Await ``work``, a coroutine or what a thread does, until it is done; only then let a cancellation through.

    anyio's shield alone does not stop a plain ``task.cancel()``; a task of its own alone is woken
    without pause under a cancelled anyio scope. The CancelledError raised is the one received: anyio
    does not know any other as its own. A failure of ``work`` that it would hide is logged, and its cause.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # trio knows no task.cancel(), so the shield is enough; and we use no thread there
        return await _shielded(cast("Coroutine[Any, Any, T]", work))
    end: asyncio.Future[None] = loop.create_future()
    task: asyncio.Task[T] | Future[T]
    if isinstance(work, Future):
        task = work
        task.add_done_callback(partial(_set_soon, loop, end))
    else:
        task = loop.create_task(_telling(end, work))
    cancelled: asyncio.CancelledError | None = None
    try:
        await end
    except asyncio.CancelledError as exc:
        # Only now, for a shield costs more than all the rest.
        cancelled = await _shielded(_wait(loop, task)) or (None if _comes_again() else exc)
    if cancelled is None:
        return task.result()
    failure = None if task.cancelled() else task.exception()
    if failure is not None:
        logger.error("failed while its caller was being cancelled", exc_info=failure)
    raise cancelled from failure


async def _telling(end: asyncio.Future[None], work: Coroutine[Any, Any, T]) -> T:
    """Do ``work``, and end ``end`` as the last thing: a turn of the event loop before a task tells of its own."""
    try:
        return await work
    finally:
        _set(end)


async def _shielded(work: Coroutine[Any, Any, T]) -> T:
    with anyio.CancelScope(shield=True):
        return await work
    raise AssertionError  # a scope that nobody cancels swallows nothing


async def _wait(
    loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | Future[Any]
) -> asyncio.CancelledError | None:
    """Wait until ``task`` is done, and return the last cancellation that came meanwhile."""
    cancelled = None
    while not task.done():
        end: asyncio.Future[None] = loop.create_future()
        task.add_done_callback(partial(_set_soon, loop, end))
        try:
            await end
        except asyncio.CancelledError as exc:
            cancelled = exc
    return cancelled


def _comes_again() -> bool:
    """Whether a cancellation was anyio's, which is repeated at each await until its scope is left."""
    return anyio.current_effective_deadline() == -math.inf


def _set_soon(loop: asyncio.AbstractEventLoop, end: asyncio.Future[None], _done: object) -> None:
    loop.call_soon_threadsafe(_set, end)


def _set(end: asyncio.Future[None]) -> None:
    if not end.done():
        end.set_result(None)
