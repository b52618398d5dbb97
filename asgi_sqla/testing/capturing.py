"""Capturing the callbacks that units of work register.

Holds: ``captured_callbacks()``.
Must not know: how a callback is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.unit.callbacks import Callback, Callbacks


@contextmanager
def captured_callbacks(*, call: bool = False) -> Iterator[list[Callback]]:
    """Collect the callbacks that are due inside the block, in order, instead of calling them.

    Each has ``moment`` ("commit" or "rollback"), ``function``, ``args`` and ``kwargs``. The on_commit callbacks of a
    unit that is rolled back are never due.

    - ``call``: True calls them too; default: False.

    Raises ConfigurationError if ``call`` is not a bool.
    """
    if not isinstance(call, bool):
        raise ConfigurationError(f"call={hidden(call)} is neither True nor False")
    captured: list[Callback] = []
    before = Callbacks.watch

    def watch(due: list[Callback]) -> list[Callback]:
        captured.extend(due)
        left = due if call else []
        return left if before is None else before(left)

    Callbacks.watch = staticmethod(watch)
    try:
        yield captured
    finally:
        Callbacks.watch = before
