"""What can be told of a callable of the user's before it is called.

Holds: whether it is async, and whether it takes the arguments that it will be given.
Must not know: who calls it, or why.
"""

from __future__ import annotations

import inspect
from typing import Any


def is_async(function: Any) -> bool:
    """Whether calling ``function`` gives something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def takes(function: Any, *arguments: str) -> bool:
    """Whether ``function`` can be called with so many positional arguments, as far as it tells."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # it does not tell its parameters
        return True
    return True
