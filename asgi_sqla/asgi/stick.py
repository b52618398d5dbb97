"""Sticking: after a write, a client reads from the primary until the replicas have it.

Holds: the reading of ``stick=`` and ``stick_by=``, and the carriers of a mark.
Must not know: what a mark says, or where it sends a read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

from asgi_sqla.asgi.kinds import Read, Write
from asgi_sqla.engine.callables import drop_awaitable, is_async, takes
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.unit.logs import WARNING, tell
from asgi_sqla.unit.marks import Mark, parse
from asgi_sqla.unit.unit import UnitOfWork

COOKIE = "asgi_sqla"
POSITION_LASTS = 3600.0
"""Seconds for which a client keeps a WAL position; a replica that lags longer is broken."""

_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
"""A name of a header, in RFC 9110 a token."""


class Carrier(Protocol):
    """How a client is recognised: it carries a mark from its write to its reads."""

    def read(self, scope: Any, /) -> str | None:
        """Return the mark that the request came with."""
        ...

    def write(self, scope: Any, message: Any, mark: str, /) -> None:
        """Give ``mark`` to the client; the message and the list of its headers are a copy."""


class Cookie:
    """A cookie that the browser drops by itself.

    Its path is ``/``, not ``root_path``: that may be the path of a mounted application, which wrote for all of them.
    """

    def __init__(self, seconds: float) -> None:
        self._attributes = f"Max-Age={math.ceil(seconds)}; Path=/; HttpOnly; SameSite=Lax"

    def read(self, scope: Any) -> str | None:
        """Return the value of the cookie."""
        for header in _values(scope, b"cookie"):
            for pair in header.split(";"):
                name, _, value = pair.partition("=")
                if name.strip() == COOKIE:
                    return value.strip()
        return None

    def write(self, scope: Any, message: Any, mark: str) -> None:
        """Add the cookie to those of the application."""
        secure = "; Secure" if scope.get("scheme") in ("https", "wss") else ""
        message["headers"].append((b"set-cookie", f"{COOKIE}={mark}; {self._attributes}{secure}".encode()))


class Header:
    """A header of the same name in the response and in later requests."""

    def __init__(self, name: str) -> None:
        self._name = name.lower().encode()

    def read(self, scope: Any) -> str | None:
        """Return the value of the header."""
        return next(iter(_values(scope, self._name)), None)

    def write(self, _scope: Any, message: Any, mark: str) -> None:
        """Add the header."""
        message["headers"].append((self._name, mark.encode()))


class Functions:
    """The functions of an application, which keep the mark in its own session, for example."""

    def __init__(self, read: Read, write: Write) -> None:
        self._read = read
        self._write = write

    def read(self, scope: Any) -> str | None:
        """Return what the function returns; raise ConfigurationError unless it is a string or None."""
        mark = self._read(scope)
        if isinstance(mark, str | None):
            return mark
        raise _wrong_result(self._read, mark, "a string or None")

    def write(self, scope: Any, message: Any, mark: str) -> None:
        """Call the function; raise ConfigurationError if it returns an awaitable."""
        result = self._write(scope, message, mark)
        if drop_awaitable(result):
            raise _wrong_result(self._write, result, "nothing")


def _wrong_result(function: Callable[..., object], result: object, wanted: str) -> ConfigurationError:
    drop_awaitable(result)
    return ConfigurationError(f"stick_by: {hidden(function)} returned {hidden(result)}; return {wanted}")


class Stick(NamedTuple):
    """The checked settings: how long replicas may lag, or that their WAL position counts; and the carrier."""

    seconds: float
    by_position: bool
    carrier: Carrier

    def after(self, scope: Any) -> Mark | None:
        """Return the mark that a request came with."""
        text = self.carrier.read(scope)
        return None if text is None else parse(text)

    async def marked(self, unit: UnitOfWork, scope: Any, message: Any) -> Any:
        """Return the ``http.response.start`` message with the mark of ``unit``, if it has committed a write."""
        await unit._ask_positions()
        if unit._own_mark() is None:
            return message
        copy = {**message, "headers": list(message.get("headers") or ())}
        try:
            self.carrier.write(scope, copy, cast("str", unit.mark))
        except Exception as exc:  # the COMMIT is done: its response must not become an error
            tell(WARNING, unit, "its client got no mark, and may not read its own write from a replica", exc_info=exc)
            return message
        return copy


def stick_of(stick: Any, stick_by: Any, *, reads: bool) -> Stick | None:
    """Return the settings that the two arguments describe; raise ConfigurationError for anything else.

    ``reads`` is true if there are requests that only read.
    """
    seconds = POSITION_LASTS if stick is None or stick == "wal" else stick
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < math.inf:
        raise ConfigurationError(
            f'stick={hidden(stick)} is neither a number of seconds above 0 nor "wal"; write how long a replica may lag'
        )
    carrier = _carrier(stick_by, seconds)
    if stick is None:
        if stick_by != "cookie":
            raise ConfigurationError(f"stick_by={hidden(stick_by)} is for stick=; write stick=2.0 as well")
        return None
    if not reads:
        raise ConfigurationError(
            f'stick={hidden(stick)} is for requests that only read; write read_only={{"GET", "HEAD"}} as well'
        )
    return Stick(seconds, stick == "wal", carrier)


def _carrier(stick_by: Any, seconds: float) -> Carrier:
    if stick_by == "cookie":
        return Cookie(seconds)
    if isinstance(stick_by, str):
        if not re.fullmatch(_NAME, stick_by) or stick_by.lower() in ("cookie", "set-cookie"):
            raise ConfigurationError(
                f'stick_by={hidden(stick_by)} is not a header for marks; write "cookie", or a name such as "X-Mark"'
            )
        return Header(stick_by)
    if not isinstance(stick_by, tuple) or len(stick_by) != 2 or not all(callable(one) for one in stick_by):
        raise ConfigurationError(
            f'stick_by={hidden(stick_by)} is neither "cookie", nor the name of a header, nor two functions; '
            "write (read, write)"
        )
    for function, parameters in zip(stick_by, (("scope",), ("scope", "message", "mark")), strict=True):
        if is_async(function) or not takes(function, *parameters):
            raise ConfigurationError(
                f"stick_by holds {hidden(function)}, which is not a plain function ({', '.join(parameters)}); write one"
            )
    return Functions(*stick_by)


def _values(scope: Any, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope.get("headers") or () if key.lower() == name]
