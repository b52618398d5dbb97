"""Turns on one connection: of several nested transactions only the innermost may run statements.

Holds: which transaction is innermost, which may begin inside which, and how the others wait.
Must not know: databases, or what a turn is used for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from itertools import count
from threading import Lock, Thread, current_thread

from sqlalchemy.util import await_only

from asgi_sqla.errors import SessionInUseError

PATIENCE = 5.0
"""Seconds to wait for a turn."""

_numbers = count(1)


class Turn:
    """The turn of one connection, from its checkout to its return."""

    __slots__ = ("begun", "holder", "name", "over", "read_only")

    def __init__(self) -> None:
        self.name: str = f"asgi_sqla_{next(_numbers)}"
        self.holder: str = _holder()
        self.begun: bool = False
        self.over: bool = False
        self.read_only: bool = False
        """Whether its transaction was asked to only read, on a database where a savepoint cannot."""


_inside: ContextVar[tuple[Turn, ...]] = ContextVar("asgi_sqla_turns", default=())
"""The turns of this context, or of the one it was copied from: code in it may begin inside them."""


class Turns:
    """The turns on one connection, the innermost last."""

    def __init__(self, *, awaits: bool) -> None:
        self._wait = _wait_async if awaits else _wait
        self._stack: list[Turn] = []
        self._waiting: list[Future[None]] = []
        self._lock = Lock()

    @property
    def innermost(self) -> Turn:
        """The turn that may run statements."""
        return self._stack[-1]

    def take(self) -> Turn:
        """Wait until only transactions around this code are open, and return a new turn."""
        inside = tuple(turn for turn in _inside.get() if not turn.over)
        turn = Turn()

        def push_if_free() -> bool:
            free = not self._stack or self._stack[-1] in inside
            if free:
                self._stack.append(turn)
            return free

        self._wait_until(push_if_free)
        _inside.set((*inside, turn))
        return turn

    def wait_for(self, turn: Turn) -> None:
        """Wait until everything inside ``turn`` has ended."""
        if not turn.over and self._stack and self._stack[-1] is not turn:
            self._wait_until(lambda: turn.over or self._stack[-1] is turn)

    def give_back(self, turn: Turn) -> None:
        """End ``turn``."""
        with self._lock:
            turn.over = True
            if turn in self._stack:
                self._stack.remove(turn)
            waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.set_result(None) if one.set_running_or_notify_cancel() else None

    def end(self) -> None:
        """End every turn, because the connection has ended."""
        for turn in list(self._stack):
            self.give_back(turn)

    def _wait_until(self, true: Callable[[], bool]) -> None:
        while True:
            with self._lock:
                if true():
                    return
                holder = self.innermost.holder
                changed: Future[None] = Future()
                self._waiting.append(changed)
            try:
                self._wait(changed)
            except TimeoutError:
                raise SessionInUseError(
                    f"inside rolled_back() transactions take turns, as they share one connection: {holder} has been "
                    f"in one for {PATIENCE:g} seconds; let it commit, or leave its session_scope(), before that"
                ) from None


def _wait(changed: Future[None]) -> None:
    changed.result(PATIENCE)


def _wait_async(changed: Future[None]) -> None:
    await_only(asyncio.wait_for(asyncio.wrap_future(changed), PATIENCE))


def _holder() -> str:
    holder: asyncio.Task[object] | Thread | None
    try:
        holder = asyncio.current_task()
    except RuntimeError:
        holder = None
    return f"the task {holder.get_name()}" if holder is not None else f"the thread {current_thread().name}"
