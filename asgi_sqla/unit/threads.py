"""Worker threads that end sync sessions: one for each call, none queued, and idle ones end.

They do not use anyio's default limiter, which frameworks share. Handlers that wait for a connection in every thread
would starve the COMMIT that frees one (160 of 200 requests failed). A ThreadPoolExecutor is no alternative: it queues a
call before it starts a thread. If no thread can be started, the caller gets an error, and an idle thread commits later.

Holds: the threads.
Must not know: what is called in them.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from asgi_sqla.errors import AsgiSqlaError

if TYPE_CHECKING:
    from queue import SimpleQueue

IDLE_LIMIT = 10.0
"""Seconds after which an idle thread ends."""
EXIT_LIMIT = 10.0
"""Seconds that the interpreter waits at its exit for a running COMMIT."""

Told: TypeAlias = "Callable[[Call], object]"


class NoThreadError(AsgiSqlaError, RuntimeError):
    """No thread can be started; nothing was done."""


class Call:
    """A call in a thread, in a copy of the context of its caller; it cannot be cancelled, and ends by itself.

    It is what a future is, without its condition variable: two thirds of the time of a hop.
    """

    __slots__ = ("_context", "_failure", "_function", "_is_done", "_told")

    def __init__(self, function: Callable[[], object]) -> None:
        self._context: Any = copy_context()
        self._function: Any = function
        self._failure: BaseException | None = None
        self._is_done = False
        self._told: list[Told] = []

    def begin(self) -> tuple[Any, Any]:
        """Return the context and the function of the call, and forget them; who waits may keep the call for longer."""
        begun = self._context, self._function
        self._context = self._function = None
        return begun

    def end(self, failure: BaseException | None) -> None:
        """Tell everybody that the call has ended, and with which ``failure``."""
        self._failure, self._is_done = failure, True
        self._tell()

    def done(self) -> bool:
        """Whether it has ended."""
        return self._is_done

    @property
    def succeeded(self) -> bool:
        """Whether it has ended without raising anything."""
        return self._is_done and self._failure is None

    def cancelled(self) -> bool:
        """Whether it was cancelled: never."""
        return False

    def cancel(self) -> bool:
        """Return False, and do nothing."""
        return False

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what it raised; wait for its end, for ``timeout`` seconds if that is not None."""
        if not self._is_done:
            ended = threading.Event()
            self.add_done_callback(lambda _call: ended.set())
            if not ended.wait(timeout):
                raise TimeoutError
        return self._failure

    def result(self, timeout: float | None = None) -> None:
        """Do what ``exception`` does, and raise that."""
        failure = self.exception(timeout)
        if failure is not None:
            raise failure

    def add_done_callback(self, function: Told, /) -> None:
        """Call ``function(call)`` when it has ended, in its thread, or now; it must not raise."""
        self._told.append(function)
        if self._is_done:  # its thread may not have seen the function; the thread that takes it off the list calls it
            self._tell()

    def _tell(self) -> None:
        while self._told:
            try:
                function = self._told.pop(0)
            except IndexError:  # another thread has just taken the last one
                return
            function(self)


class Threads:
    """Threads that are started on demand."""

    def __init__(self) -> None:
        # What is done to them takes one step of the interpreter, and so needs no lock.
        self._idle: list[SimpleQueue[Call]] = []
        self._busy: set[Call] = set()

    def submit(self, function: Callable[[], object]) -> Call:
        """Call ``function`` in a thread and a copy of this context, and return the call.

        Raises NoThreadError, and has done nothing, if no thread can be started.
        """
        call = Call(function)
        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = self._start()
        self._busy.add(call)
        inbox.put(call)
        return call

    def finish(self) -> None:
        """Wait for the running calls: the interpreter stops daemon threads in the middle when it exits."""
        for call in list(self._busy):
            try:
                call.exception(EXIT_LIMIT)
            except TimeoutError:
                return

    def _start(self) -> SimpleQueue[Call]:
        from queue import SimpleQueue  # only who has sync sessions pays for it

        inbox: SimpleQueue[Call] = SimpleQueue()
        try:
            threading.Thread(target=self._work, args=(inbox,), name="asgi_sqla", daemon=True).start()
        except RuntimeError as exc:
            raise NoThreadError(*exc.args) from exc
        return inbox

    def _work(self, inbox: SimpleQueue[Call]) -> None:
        from queue import Empty

        while True:
            try:
                call = inbox.get(timeout=IDLE_LIMIT)
            except Empty:
                try:
                    self._idle.remove(inbox)
                except ValueError:  # another call has just taken this thread
                    continue
                return
            context, function = call.begin()
            failure: BaseException | None = None
            try:  # in this frame, which no traceback of the failure keeps alive with the call
                context.run(function)
            except BaseException as exc:
                failure = exc
            self._busy.discard(call)
            self._idle.append(inbox)  # before it ends, or a caller that submits again would start another thread
            call.end(failure)
            del call, context, function, failure  # an idle thread must not keep them alive


def _make() -> None:
    global _threads  # a forked child inherits the object, but none of its threads
    _threads = Threads()


def submit(function: Callable[[], object]) -> Call:
    """Call ``function`` in a thread of this process; see ``Threads.submit``."""
    return _threads.submit(function)


def future_of(call: Call) -> asyncio.Future[None]:
    """Return a future of the running event loop for ``call``; a cancellation of it does not end the call."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    call.add_done_callback(partial(call_on, loop, _end, future))
    return future


def call_on(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
    """Call ``function`` on an event loop, from any thread; do nothing if the loop is closed, as nothing waits then."""
    try:  # without contextlib, as every end in a thread comes this way
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return


def _end(future: asyncio.Future[None], call: Call) -> None:
    failure = call.exception()
    if future.done():  # it was cancelled
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)


_threads: Threads
_make()
atexit.register(lambda: _threads.finish())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make)
