"""Lets what has begun run to its end, whoever cancels its caller, and for a bounded time.

Holds: the one combination that holds against both kinds of cancellation, and the bound.
Must not know: what runs, or how it is cut short.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import Any, NamedTuple, Protocol

import anyio

from asgi_sqla.session.guard import running_loop

CANCELLED_LIMIT = 3.0
"""Seconds that a cancelled caller waits for a COMMIT, and anybody for a ROLLBACK; then the connections are cut."""
CUT_LIMIT = 1.0
"""Seconds for what was cut to end; then it is cancelled, or goes on without anybody waiting for it."""

_left: set[Running] = set()
"""What goes on by itself; an event loop holds its tasks weakly."""


class Finished(NamedTuple):
    """How something ended."""

    failure: BaseException | None = None
    """What it raised."""
    cancelled: BaseException | None = None
    """The cancellation of its caller, to be raised once the failure has been seen to."""

    def check(self) -> None:
        """Raise the cancellation, or else the failure."""
        if self.cancelled is not None:
            raise self.cancelled
        if self.failure is not None:
            raise self.failure


FINE = Finished()


class Running(Protocol):
    """What runs in another thread or task."""

    def done(self) -> bool:
        """Whether it has ended."""
        ...

    def exception(self) -> BaseException | None:
        """Return what it raised."""
        ...

    def cancelled(self) -> bool:
        """Whether it was cancelled itself."""
        ...

    def cancel(self) -> object:
        """Have it end."""

    def add_done_callback(self, fn: Callable[[Any], object], /) -> object:
        """Call ``fn`` at its end."""


async def to_completion(
    work: Coroutine[Any, Any, object] | Running, cut: Callable[[], bool] = lambda: False, *, bounded: bool = False
) -> Finished:
    """Await ``work``, a coroutine or what a thread does, until it is done, and return how it ended.

    A cancellation of the caller is kept until then: ``CANCELLED_LIMIT`` seconds at most, after which ``cut()`` is
    called to wake what waits for a server that does not answer; it says whether there was anything to cut. The same
    bound holds without a cancellation if the work is ``bounded``.

    anyio's shield alone does not stop a plain ``task.cancel()``; a separate task alone busy-loops under a cancelled
    anyio scope (26,578 wake-ups in 180 ms). The CancelledError kept is the one received: anyio does not know any
    other as its own.
    """
    loop = running_loop()
    if loop is None:  # trio knows no task.cancel(), so the shield is enough; and no thread of ours is used there
        finished: Finished = await _shielded(finish(work))
        return finished
    end: asyncio.Future[None] = loop.create_future()
    running: Any = work
    if isinstance(work, CoroutineType):  # an abstract class would take ten times as long to ask
        running = loop.create_task(_telling(end, work))
    else:
        running.add_done_callback(partial(_set_soon, loop, end))
    cancelled: BaseException | None = None
    timer = loop.call_later(CANCELLED_LIMIT, _set, end) if bounded else None
    try:
        await end
        if not running.done():  # it was the timer
            cancelled = await _shielded(_wait(loop, running, cut, 0.0))
    except asyncio.CancelledError as exc:
        # Asked now: a scope that is cancelled later must not make anyio's own of a plain task.cancel().
        kept = None if _comes_again() else exc
        # Only now, for a shield costs more than all the rest.
        cancelled = (await _shielded(_wait(loop, running, cut, CANCELLED_LIMIT))) or kept
    finally:
        if timer is not None:
            timer.cancel()
    failure = _failure_of(running)
    return FINE if failure is None and cancelled is None else Finished(failure, cancelled)


async def _telling(end: asyncio.Future[None], work: Coroutine[Any, Any, object]) -> object:
    """Do ``work``, and end ``end`` as the last thing: a turn of the event loop before a task tells of its own."""
    try:
        return await work
    finally:
        _set(end)


async def finish(work: Any) -> Finished:
    """Await ``work``, which a cancellation may cut, and return how it ended."""
    try:
        await work
    except asyncio.CancelledError:
        raise
    except BaseException as exc:
        return Finished(exc)
    return FINE


async def _shielded(work: Coroutine[Any, Any, Any]) -> Any:
    with anyio.CancelScope(shield=True):
        return await work
    raise AssertionError  # a scope that nobody cancels swallows nothing


async def _wait(
    loop: asyncio.AbstractEventLoop, running: Running, cut: Callable[[], bool], limit: float
) -> asyncio.CancelledError | None:
    """Wait until ``running`` is done, or as long as one may; return the last cancellation that came meanwhile."""
    cancelled = await _wait_until(loop, running, limit)
    if running.done():
        return cancelled
    if cut():
        cancelled = await _wait_until(loop, running, CUT_LIMIT) or cancelled
    if not running.done() and cut():  # what was woken may have sent a ROLLBACK to another dark server
        running.cancel()
        cancelled = await _wait_until(loop, running, CUT_LIMIT) or cancelled
    if not running.done():  # callbacks, with nothing open any more; or a driver that cannot be cut
        _left.add(running)
        running.add_done_callback(_left.discard)
    return cancelled


async def _wait_until(loop: asyncio.AbstractEventLoop, running: Running, limit: float) -> asyncio.CancelledError | None:
    cancelled = None
    deadline = loop.time() + limit
    while not running.done() and loop.time() < deadline:
        end: asyncio.Future[None] = loop.create_future()
        running.add_done_callback(partial(_set_soon, loop, end))
        timer = loop.call_at(deadline, _set, end)
        try:
            await end
        except asyncio.CancelledError as exc:
            cancelled = exc
        finally:
            timer.cancel()
    return cancelled


def _failure_of(running: Running) -> BaseException | None:
    if not running.done():
        return TimeoutError("the database has not answered, and nobody waits for it any longer")
    if running.cancelled():
        return asyncio.CancelledError()
    return running.exception()


def _comes_again() -> bool:
    """Whether a cancellation was anyio's, which is repeated at each await until its scope is left."""
    return anyio.current_effective_deadline() == -math.inf


def _set_soon(loop: asyncio.AbstractEventLoop, end: asyncio.Future[None], _done: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed, and nobody waits
        loop.call_soon_threadsafe(_set, end)


def _set(end: asyncio.Future[None]) -> None:
    if not end.done():
        end.set_result(None)
