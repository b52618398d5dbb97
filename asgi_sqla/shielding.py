"""Lets work that has begun run to its end, whoever cancels its caller.

Lives here: the one combination that holds against both kinds of cancellation.
Must not know: what the work is.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from anyio import CancelScope, current_effective_deadline

T = TypeVar("T")
logger: logging.Logger = logging.getLogger("asgi_sqla")


async def to_completion(work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """Await ``work`` until it is done; only then let a cancellation of the caller through.

    anyio's shield alone does not stop a plain ``task.cancel()``; a task of its own alone is woken
    without pause under a cancelled anyio scope. The CancelledError raised is the one received: anyio
    does not know any other as its own. A failure of ``work`` that it would hide is logged, and its cause.
    """
    if isinstance(work, asyncio.Future):
        task = work
    else:
        try:
            task = asyncio.create_task(work)
        except RuntimeError:  # trio knows no task.cancel(), so the shield is enough
            return await _shielded(work)
    cancelled: asyncio.CancelledError | None = None
    try:
        await _end_of(task)
    except asyncio.CancelledError as exc:
        # Only now, for a shield costs more than all the rest.
        cancelled = await _shielded(_wait(task)) or (None if _comes_again() else exc)
    if cancelled is None:
        return task.result()
    failure = None if task.cancelled() else task.exception()
    if failure is not None:
        logger.error("failed while its caller was being cancelled", exc_info=failure)
    raise cancelled from failure


async def _shielded(work: Coroutine[Any, Any, T]) -> T:
    with CancelScope(shield=True):
        return await work
    raise AssertionError  # a scope that nobody cancels swallows nothing


async def _wait(task: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until ``task`` is done, and return the last cancellation that came meanwhile."""
    cancelled = None
    while not task.done():
        try:
            await _end_of(task)
        except asyncio.CancelledError as exc:
            cancelled = exc
    return cancelled


def _comes_again() -> bool:
    """Whether a cancellation was anyio's, which is repeated at each await until its scope is left."""
    return current_effective_deadline() == -math.inf


def _end_of(task: asyncio.Future[Any]) -> asyncio.Future[None]:
    """Return a future that ends with ``task``, and can be cancelled without it; asyncio's own ways cost more."""
    end: asyncio.Future[None] = task.get_loop().create_future()
    task.add_done_callback(partial(_set, end))
    return end


def _set(end: asyncio.Future[None], _task: asyncio.Future[Any]) -> None:
    if not end.done():
        end.set_result(None)
