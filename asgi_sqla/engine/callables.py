"""What can be known of a user's callable before it is called, and what is done if it gives something to await.

Holds: whether it is async, whether it accepts the arguments that it will get, and what becomes of a coroutine.
Must not know: who calls it, or why.
"""

from __future__ import annotations

import inspect
from typing import Any


def is_async(function: Any) -> bool:
    """Return whether calling ``function`` returns something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def takes(function: Any, *arguments: str) -> bool:
    """Return whether ``function`` accepts these positional arguments, as far as its signature shows."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def drop_awaitable(result: object) -> bool:
    """Close a coroutine, which nobody will await; return whether ``result`` is to be awaited."""
    if inspect.iscoroutine(result):
        result.close()
    return inspect.isawaitable(result)
