"""Worker threads that end sync sessions: one for each call, none queued, and idle ones end.

They do not use anyio's default limiter, which frameworks share. Handlers that wait for a connection in every thread
would starve the COMMIT that frees one (160 of 200 requests failed). A ThreadPoolExecutor is no alternative: it queues a
call before it starts a thread. If no thread can be started, the caller gets an error, and an idle thread commits later.

Holds: the threads.
Must not know: what is called in them.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import TypeAlias

IDLE_LIMIT = 10.0
"""Seconds after which an idle thread ends."""
EXIT_LIMIT = 10.0
"""Seconds that the interpreter waits at its exit for a running COMMIT."""

Call: TypeAlias = "tuple[Future[None], Callable[[], object]]"


class NoThreadError(RuntimeError):
    """No thread can be started; nothing was done."""


class Threads:
    """Threads that are started on demand."""

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[Call]] = []
        self._busy: set[Future[None]] = set()
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], object]) -> Future[None]:
        """Call ``function`` in a thread and a copy of this context; return its future.

        Raises NoThreadError, and has done nothing, if no thread can be started.
        """
        context = copy_context()
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # a call in a thread cannot be cancelled, and ends by itself
        call = (future, lambda: context.run(function))
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
            self._busy.add(future)
        if inbox is None:
            inbox = SimpleQueue()
            try:
                threading.Thread(target=self._work, args=(inbox,), name="asgi_sqla", daemon=True).start()
            except RuntimeError as exc:
                self._busy.discard(future)
                raise NoThreadError(*exc.args) from exc
        inbox.put(call)
        return future

    def finish(self) -> None:
        """Wait for the running calls: the interpreter stops daemon threads in the middle when it exits."""
        for future in list(self._busy):
            try:
                future.exception(EXIT_LIMIT)
            except TimeoutError:
                return

    def _work(self, inbox: SimpleQueue[Call]) -> None:
        while True:
            try:
                future, function = inbox.get(timeout=IDLE_LIMIT)
            except Empty:
                with self._lock:
                    if inbox in self._idle:
                        self._idle.remove(inbox)
                        return
                continue  # another call has just taken this thread
            failure: BaseException | None = None
            try:
                function()
            except BaseException as exc:
                failure = exc
            self._busy.discard(future)
            with self._lock:  # before the result, or a caller that submits again would start another thread
                self._idle.append(inbox)
            future.set_result(None) if failure is None else future.set_exception(failure)
            del future, function, failure  # an idle thread must not keep them alive


def _make() -> None:
    global _threads  # a forked child inherits the object, but none of its threads
    _threads = Threads()


def submit(function: Callable[[], object]) -> Future[None]:
    """Call ``function`` in a thread of this process; see ``Threads.submit``."""
    return _threads.submit(function)


_threads: Threads
_make()
atexit.register(lambda: _threads.finish())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make)
