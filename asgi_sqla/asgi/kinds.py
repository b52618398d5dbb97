"""The types of arguments of the middleware whose rooms are loaded only for who gives them.

Holds: the types, which must be there when somebody reads the signature.
Must not know: what an argument does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

DeadlineOf: TypeAlias = float | Callable[[Any], float | None]
"""Seconds, or a function of the ASGI scope that returns seconds or None."""
Read: TypeAlias = Callable[[Any], str | None]
"""A function of the ASGI scope that returns the mark of its client, if there is one."""
Write: TypeAlias = Callable[[Any, Any, str], object]
"""A function of the ASGI scope, of the ``http.response.start`` message and of a mark, which gives it to the client."""
StickBy: TypeAlias = str | tuple[Read, Write]
OnStartup: TypeAlias = Callable[[], Awaitable[object]]
