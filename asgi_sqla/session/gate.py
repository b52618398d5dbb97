"""The gate of some sessions: while what is open in them is committed, the next call on them waits.

Without it a task that makes one call after the other would never leave room for a commit between two of them.

Holds: which calls wait, and which one is let through.
Must not know: units, or what happens inside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import anyio
from greenlet import getcurrent  # type: ignore[import-untyped]

from asgi_sqla.engine.loops import await_, in_greenlet
from asgi_sqla.errors import ended

PAUSE = 0.002
"""Seconds between two looks at what is waited for: a lock of threads tells no event loop when it is free."""

LIMIT = 10.0
"""Seconds that a call waits; then it finds the lock of its session free, or taken, as any call does."""


class Gate:
    """Keeps everybody out of ``sessions`` while it is entered, except the call that is let through."""

    __slots__ = ("_inside", "_sessions")

    def __init__(self, sessions: Sequence[Any]) -> None:
        self._sessions = sessions
        self._inside: object = None

    def __enter__(self) -> Self:
        for session in self._sessions:
            session.guard_gate = self
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for session in self._sessions:
            session.guard_gate = None

    def let_through(self, operation: Callable[[Any], object], session: Any) -> object:
        """Apply ``operation``, which may call ``session``."""
        self._inside = getcurrent()
        return operation(session)

    def wait(self, session: Any) -> None:
        """Wait until the gate of ``session`` is open, unless this is the call that was let through."""
        deadline = time.monotonic() + LIMIT
        while session.guard_gate is self and self._inside is not getcurrent() and time.monotonic() < deadline:
            if not _pause():
                return


def acquire_late(session: Any) -> bool:
    """Wait for the lock of ``session`` while its unit commits in the middle; return whether it was acquired.

    Only a COMMIT is waited for: the calls of others last as long as they like, and the end of a unit is a call too.
    """
    unit = session.guard_hooks
    while (
        session.guard_outcome.committing
        and unit is not None
        and unit._is_settling()
        and session._guard_end is None
        and _pause()
    ):
        if session.guard_lock.acquire(False):
            return True
    if session._guard_end is not None:
        raise ended(session.guard_unit)
    return bool(session.guard_lock.acquire(False))


def _pause() -> bool:
    """Wait a little, and return True; return False where the event loop would wait too, and so nothing would change."""
    if in_greenlet():
        await_(anyio.sleep(PAUSE))
    elif asyncio._get_running_loop() is None:
        time.sleep(PAUSE)
    else:  # a sync session on the event loop
        return False
    return True
