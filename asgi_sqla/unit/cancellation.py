"""Runs work to its end even if its caller is cancelled, but waits only for a bounded time.

Holds: the one combination that withstands both kinds of cancellation, and the bound.
Must not know: what runs, or how it is cut short.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from asgi_sqla.engine.waiter import Waiter
from asgi_sqla.session.guard import running_loop
from asgi_sqla.unit.eager import EagerTask
from asgi_sqla.unit.threads import Call, call_on

CANCELLED_LIMIT = 3.0
"""Seconds that a cancelled caller waits for a COMMIT, and any caller for a ROLLBACK; then the connections are cut."""
CUT_LIMIT = 1.0
"""Seconds that cut work has to end; then it is cancelled, or goes on without anybody waiting for it."""

_OURS = (EagerTask, Call)
_left: set[Running] = set()
"""Work that goes on by itself; an event loop keeps only weak references to its tasks."""


class Finished(NamedTuple):
    """How some work ended."""

    failure: BaseException | None = None
    """What it raised."""
    cancelled: BaseException | None = None
    """The cancellation of its caller, to raise after the failure has been handled."""

    def check(self) -> None:
        """Raise the cancellation, or else the failure."""
        if self.cancelled is not None:
            raise self.cancelled
        if self.failure is not None:
            raise self.failure


FINE = Finished()


if TYPE_CHECKING:
    from typing import Protocol

    class Running(Protocol):
        """Work in another thread or task."""

        def done(self) -> bool:
            """Whether it has ended."""
            ...

        def exception(self) -> BaseException | None:
            """Return what it raised."""
            ...

        def cancelled(self) -> bool:
            """Whether it was itself cancelled."""
            ...

        def cancel(self) -> object:
            """Cancel it."""

        def add_done_callback(self, fn: Callable[[Any], object], /) -> object:
            """Call ``fn`` when it has ended."""


def begun(work: Coroutine[Any, Any, object] | Running) -> Coroutine[Any, Any, object] | Running:
    """Take the first step of a coroutine now, and return it for ``to_completion()``; what runs already is returned."""
    if isinstance(work, CoroutineType) and (loop := running_loop()) is not None:  # trio has no tasks of this kind
        return EagerTask(loop, work)
    return work


async def to_completion(
    work: Coroutine[Any, Any, object] | Running, cut: Callable[[], bool] = lambda: False, *, bounded: bool = False
) -> Finished:
    """Await ``work``, a coroutine or a call in a thread, until it is done, and return how it ended.

    A cancellation of the caller is kept until then, for ``CANCELLED_LIMIT`` seconds at most. After that ``cut()`` wakes
    work that waits for a silent server, and returns whether there was anything to cut. The same bound holds without a
    cancellation if the work is ``bounded``.

    anyio's shield alone does not stop a plain ``task.cancel()``; a separate task alone busy-loops under a cancelled
    anyio scope (26,578 wake-ups in 180 ms). The CancelledError kept is the one received: anyio recognises no other as
    its own.
    """
    loop = running_loop()
    if loop is None:  # trio has no task.cancel(), so the shield is enough, and our threads are not used there
        finished: Finished = await _shielded(finish(work))
        return finished
    running: Any = work
    if isinstance(work, CoroutineType):  # isinstance with an abstract class takes ten times as long
        end = Waiter(loop)
        running = loop.create_task(_telling(end, work))
    elif running.done():
        return _ended(running, None)
    else:
        end = Waiter(loop)
        here = type(running) is EagerTask  # it ends on this event loop
        running.add_done_callback(end.wake if here else partial(call_on, loop, end.wake))
    cancelled: BaseException | None = None
    timer = loop.call_later(CANCELLED_LIMIT, end.wake) if bounded else None
    try:
        await end
        if timer is not None and not running.done():  # it fired
            cancelled = await _shielded(_wait(loop, running, cut, 0.0))
    except asyncio.CancelledError as exc:
        # Checked now: if a scope is cancelled later, a plain task.cancel() must not be taken for anyio's.
        kept = None if _comes_again() else exc
        # Only now, because a shield costs more than everything else.
        cancelled = (await _shielded(_wait(loop, running, cut, CANCELLED_LIMIT))) or kept
    finally:
        if timer is not None:
            timer.cancel()
    if cancelled is None and type(running) in _OURS and running.succeeded:  # as nearly always
        return FINE
    return _ended(running, cancelled)


def _ended(running: Running, cancelled: BaseException | None) -> Finished:
    failure: BaseException | None
    if not running.done():
        failure = TimeoutError("the database has not answered in time, and the caller does not wait any longer")
    elif running.cancelled():
        failure = asyncio.CancelledError()
    else:
        failure = running.exception()
    return FINE if failure is None and cancelled is None else Finished(failure, cancelled)


async def _telling(end: Waiter, work: Coroutine[Any, Any, object]) -> object:
    """Do ``work``, and wake ``end`` last: one turn of the event loop before the task would report its own end."""
    try:
        return await work
    finally:
        end.wake()


async def finish(work: Any) -> Finished:
    """Await ``work``, which a cancellation may interrupt, and return how it ended."""
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
    raise AssertionError  # unreachable: a scope that is not cancelled suppresses nothing


async def _wait(
    loop: asyncio.AbstractEventLoop, running: Running, cut: Callable[[], bool], limit: float
) -> asyncio.CancelledError | None:
    """Wait until ``running`` is done or the limits are over; return the last cancellation that arrived meanwhile."""
    cancelled = await _wait_until(loop, running, limit)
    if running.done():
        return cancelled
    if cut():
        cancelled = await _wait_until(loop, running, CUT_LIMIT) or cancelled
    if not running.done() and cut():  # the woken work may have sent a ROLLBACK to another silent server
        running.cancel()
        cancelled = await _wait_until(loop, running, CUT_LIMIT) or cancelled
    if not running.done():  # callbacks, with no transaction open; or a driver that cannot be cut
        _left.add(running)
        running.add_done_callback(_forget)
    return cancelled


def _forget(running: Running) -> None:
    """Let go of work that nobody waited for; a failure that nobody will see is told, as asyncio tells it of a task."""
    _left.discard(running)
    if isinstance(running, EagerTask) and (failure := running.exception()) is not None:
        said = "the end of a unit of work failed after its caller had stopped waiting"
        running.get_loop().call_exception_handler({"message": said, "exception": failure})


async def _wait_until(loop: asyncio.AbstractEventLoop, running: Running, limit: float) -> asyncio.CancelledError | None:
    cancelled = None
    deadline = loop.time() + limit
    while not running.done() and loop.time() < deadline:
        end = Waiter(loop)
        running.add_done_callback(partial(call_on, loop, end.wake))
        timer = loop.call_at(deadline, end.wake)
        try:
            await end
        except asyncio.CancelledError as exc:
            cancelled = exc
        finally:
            timer.cancel()
    return cancelled


def _comes_again() -> bool:
    """Return whether a cancellation was anyio's, which repeats it at each await until its scope is left."""
    return anyio.current_effective_deadline() == -math.inf
