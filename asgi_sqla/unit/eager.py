"""A task whose first step runs at once, so that a COMMIT is sent before anything else is done.

asyncio has such tasks from Python 3.12 on, at the price of all others: each is recorded in a set that is weak. This one
is what the documentation of asyncio calls a third-party task. It is current while it runs, so that a timeout inside it
cancels it and not its caller.

Holds: the steps of a coroutine, and who is told of its end.
Must not know: what runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

from asgi_sqla.engine.waiter import task_on

_enter: Callable[[Any, Any], None] = asyncio._enter_task
_leave: Callable[[Any, Any], None] = asyncio._leave_task


class EagerTask:
    """Runs ``work`` to its first wait when it is made, and the rest as a task does."""

    # anyio reads two private names of the task that is current.
    __slots__ = (
        *("__weakref__", "_cancels", "_context", "_failure", "_fut_waiter", "_loop", "_must_cancel", "_told"),
        "_work",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, object]) -> None:
        self._loop: asyncio.AbstractEventLoop = loop
        self._work: Coroutine[Any, Any, object] | None = work
        self._context: Context = copy_context()
        self._fut_waiter: Any = None
        """The future that it waits for."""
        self._cancels: int = 0
        self._must_cancel: bool = False
        self._failure: BaseException | None = None
        self._told: Callable[[Any], object] | None = None
        """Called at its end, on its event loop."""
        self._context.run(self._step)

    def done(self) -> bool:
        """Whether it has ended."""
        return self._work is None

    @property
    def succeeded(self) -> bool:
        """Whether it has ended without raising anything."""
        return self._work is None and self._failure is None

    def exception(self) -> BaseException | None:
        """Return what it raised."""
        return self._failure

    def cancelled(self) -> bool:
        """Whether it ended with a cancellation."""
        return isinstance(self._failure, asyncio.CancelledError)

    def cancel(self, msg: object = None) -> bool:
        """Cancel what it waits for, or else its next step; return False if it has ended."""
        if self._work is None:
            return False
        self._cancels += 1
        if self._fut_waiter is None or not self._fut_waiter.cancel(msg):
            self._must_cancel = True
        return True

    def cancelling(self) -> int:
        """Return how many cancellations were asked for, and not taken back."""
        return self._cancels

    def uncancel(self) -> int:
        """Take one cancellation back, and return how many are left."""
        self._cancels = max(0, self._cancels - 1)
        if self._cancels == 0:
            self._must_cancel = False
        return self._cancels

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Call ``fn`` at its end, at once."""
        earlier = self._told
        if self._work is None:
            self._loop.call_soon(fn, self)
        elif earlier is None:
            self._told = fn
        else:
            self._told = lambda done: (earlier(done), fn(done))

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return its event loop."""
        return self._loop

    def get_coro(self) -> Any:
        """Return what it runs."""
        return self._work

    def get_name(self) -> str:
        """Return what it is, for messages."""
        return "the end of a unit of work"

    def _step(self, _waited: object = None) -> None:  # noqa: C901  # twice in each unit, where a helper costs a call
        loop = self._loop
        work: Any = self._work
        self._fut_waiter = None
        outer = task_on(loop)
        if outer is not None:
            _leave(loop, outer)
        _enter(loop, self)
        try:
            if self._must_cancel:
                self._must_cancel = False
                waits = work.throw(asyncio.CancelledError())
            else:
                waits = work.send(None)
            if waits is not None and not getattr(waits, "_asyncio_future_blocking", False):
                waits = work.throw(RuntimeError(f"{self.get_name()} got a bad yield: {waits!r}"))
            if waits is None:  # a bare yield, as that of sleep(0)
                loop.call_soon(self._step, context=self._context)
                return
            waits._asyncio_future_blocking = False  # as a task says that it has understood
            waits.add_done_callback(self._step, context=self._context)
            self._fut_waiter = waits
            if self._must_cancel and waits.cancel():
                self._must_cancel = False
        except StopIteration:
            self._work = None
        except BaseException as exc:
            self._failure, self._work = exc, None
        finally:
            _leave(loop, self)
            if outer is not None:
                _enter(loop, outer)
            if self._work is None and self._told is not None:
                self._told(self)  # only now, as who waits goes on in this call
            del self  # the traceback of a failure has this frame, and would keep the failure with itself
