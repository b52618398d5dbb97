"""Keeps coverage's tracer from stopping a whole run, on Python 3.11.

The tracer keeps an entry for each greenlet in a ``WeakKeyDictionary``, whose callback is Python code. greenlet frees
those of an ended thread in a pending call of the main thread. If a second thread ends meanwhile, CPython 3.11 asks
before the callback's first line whether a pending call waits, finds one, may not make it inside another, and asks
again, for ever: its traced functions ask before they advance. No time limit of a test ends that, as a signal is handled
in the same place.

Holds: a dictionary whose callback is not Python code.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any


class _Entries(weakref.WeakKeyDictionary[Any, Any]):
    def __init__(self, dict: Any = None) -> None:  # noqa: A002  # as its base calls it
        super().__init__()
        self._remove = self.data.__delitem__  # type: ignore[attr-defined]  # typeshed knows neither
        if dict is not None:
            self.update(dict)


def keep_tracer_from_spinning() -> None:
    """Give the tracers of threads to come, which ask for the dictionary by its name, one that cannot spin."""
    if sys.version_info < (3, 12) and sys.gettrace() is not None:
        weakref.WeakKeyDictionary = _Entries  # type: ignore[misc]  # for whoever asks by that name
