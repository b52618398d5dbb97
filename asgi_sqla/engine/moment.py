"""One lock for whatever takes but a moment, such as looking for a thing and adding it if it is not there.

A lock for each request would be one more object that it holds while it waits. A fork waits until nobody is inside: a
child that inherits a lock from another thread would wait for it for ever.

Holds: the lock.
Must not know: who takes it, or what for.
"""

from __future__ import annotations

import os
from threading import RLock

moment: RLock = RLock()
"""Hold it for some steps of the interpreter, and never while anything is waited for. What the collector calls inside
may take it again."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=moment.acquire, after_in_parent=moment.release, after_in_child=moment.release)
