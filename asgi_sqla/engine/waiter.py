"""What a task waits for instead of a future, to go on in the turn of the event loop that wakes it, not in the next.

asyncio lets a task wait for any object with the methods of a future. Each wait for a database saves one turn.

Holds: the one class, and which task runs.
Must not know: what is waited for.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any

task_on: Callable[[asyncio.AbstractEventLoop], asyncio.Task[Any] | None] = asyncio.current_task
"""Return the task that runs on an event loop; None between two."""
if sys.version_info < (3, 12):  # not yet written in C, and called seven times in each unit
    task_on = vars(asyncio.tasks)["_current_tasks"].get


class Waiter:
    """A future with one waiter; wake it on its event loop."""

    __slots__ = ("_asyncio_future_blocking", "_callback", "_context", "_failure", "_is_done", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: asyncio.AbstractEventLoop = loop
        self._asyncio_future_blocking: bool = False
        self._is_done: bool = False
        self._failure: BaseException | None = None
        self._callback: Callable[[Any], object] | None = None
        self._context: Context | None = None

    def __await__(self) -> Generator[Any, None, None]:
        if not self._is_done:
            self._asyncio_future_blocking = True  # as a future says to its task
            yield self
        if self._failure is not None:
            raise self._failure

    def wake(self, _ended: object = None) -> None:
        """Let the waiter go on, in this call if no task is running; do nothing if it has been woken or cancelled."""
        if self._is_done:
            return
        self._is_done = True
        callback, context = self._callback, self._context
        if callback is None or context is None:  # nobody waits yet
            return
        if task_on(self._loop) is None:
            context.run(callback, self)
        else:
            self._loop.call_soon(callback, self, context=context)

    def set_result(self, _result: object) -> None:
        """Do what ``wake`` does."""
        self.wake()

    def set_exception(self, failure: BaseException) -> None:
        """Raise ``failure`` in the waiter."""
        if not self._is_done:
            self._failure = failure
            self.wake()

    def cancel(self, msg: object = None) -> bool:
        """Cancel the wait, in the next turn; return False if it is over."""
        if self._is_done:
            return False
        self._is_done = True
        self._failure = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        if self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)
        return True

    def done(self) -> bool:
        """Whether it was woken or cancelled."""
        return self._is_done

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return isinstance(self._failure, asyncio.CancelledError)

    def result(self) -> None:
        """Raise what the waiter has to raise, if that is anything."""
        if self._failure is not None:
            raise self._failure

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return its event loop."""
        return self._loop

    def add_done_callback(self, callback: Callable[[Any], object], /, *, context: Context) -> None:
        """Call ``callback`` when it is woken; a task asks for this once."""
        self._callback, self._context = callback, context
