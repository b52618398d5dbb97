"""What can be known of a user's callable before it is called.

Holds: whether it is async, and whether it accepts the arguments that it will get.
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
