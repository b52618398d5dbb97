"""libpq's request to cancel a statement, sent only to a server that answers.

Before version 17 libpq waits for the answer without a limit, and psycopg holds the GIL meanwhile: a silent server would
stop the whole process. psycopg2 lets other threads run, and only its own would wait for ever.

Holds: whether a server answers, and how psycopg and psycopg2 ask that first.
Must not know: sessions, units, or why a statement is cancelled.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from asgi_sqla.engine.drivers import cut_socket

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""PostgreSQL's SSLRequest: servers and poolers answer it with one byte, before they know who asks."""


def prepare(engine: Engine) -> None:
    """Make psycopg's own requests those of this room, also when a task is cancelled, if its libpq needs that."""
    from psycopg import capabilities

    if not capabilities.has_cancel_safe():
        dialect = engine.dialect

        def on_connect(adapted: Any, _record: object) -> None:
            raw = dialect.get_driver_connection(adapted)
            if dialect.is_async:
                raw.cancel_safe, raw._try_cancel = partial(_cancel_async, raw), partial(_for_cancelled_task, raw)
            else:
                raw.cancel_safe = partial(_cancel, raw)

        event.listen(engine, "connect", on_connect)


def asking_first(raw: Any, request: Callable[[], object], timeout: float) -> Callable[[], None]:
    """Return what makes ``request`` if the server of a driver's connection answers, also when that has been closed.

    If the server is silent for ``timeout`` seconds, the connection is cut, for its driver waits for the end of the
    statement: the oldest psycopg without a limit.
    """
    with socket.socket(fileno=os.dup(raw.fileno())) as connected:
        family, address = connected.family, connected.getpeername()

    def ask() -> None:
        with socket.socket(family, socket.SOCK_STREAM) as asking:
            asking.settimeout(timeout)
            try:
                asking.connect(address)
                asking.sendall(_SSL_REQUEST)
                if not asking.recv(1):
                    raise ConnectionError("the server closes its connections unanswered")
            except OSError:
                cut_socket(raw)
                raise
        request()

    return ask


def _of_psycopg(raw: Any, timeout: float) -> Callable[[], None]:
    return asking_first(raw, raw.pgconn.get_cancel().cancel, timeout)


def _cancel(raw: Any, *, timeout: float = 30.0) -> None:
    _of_psycopg(raw, timeout)()


async def _cancel_async(raw: Any, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109  # psycopg's parameter
    await asyncio.to_thread(_of_psycopg(raw, timeout))


async def _for_cancelled_task(raw: Any, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109  # as above
    """Cancel the statement of a task that is cancelled; end it at once if its connection was cut."""
    try:
        await _cancel_async(raw, timeout=timeout)
    except OSError as exc:  # the oldest psycopg would raise what the cut makes of the statement
        raise asyncio.CancelledError from exc
