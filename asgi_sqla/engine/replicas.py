"""Several servers with the same data: connections go to each in turn, and skip those that are down.

Holds: whose turn it is, and how long a server that refused a connection is skipped.
Must not know: what the connections are for.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from asgi_sqla.engine.showing import shown
from asgi_sqla.engine.urls import Target

logger: logging.Logger = logging.getLogger("asgi_sqla")

REST = 30.0
"""Seconds for which a server that refused a connection is used only if all others refuse too."""
UNTIL = "asgi_sqla_until"
"""The key of the time until which a connection replaces one to a skipped server."""


class Replicas:
    """The servers behind one engine."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = list(targets)
        self._resting: dict[int, float] = {}
        self._next = 0

    def attach(self, engine: Engine) -> None:
        """Let ``engine`` open its connections to them."""
        event.listen(engine, "do_connect", self._connect)
        event.listen(engine, "checkout", self._check)

    def _check(self, _connection: object, record: ConnectionPoolEntry, _fairy: object) -> None:
        """Invalidate a connection that was opened while a server was skipped, once that server is due again."""
        if record.info.get(UNTIL, math.inf) <= time.monotonic():
            raise DisconnectionError

    def _connect(self, dialect: Dialect, record: ConnectionPoolEntry, _args: object, _parameters: object) -> Any:
        failure: Exception | None = None
        for number in self._order():
            target = self._targets[number]
            args, parameters = dialect.create_connect_args(target.url)
            try:
                connection = dialect.connect(*args, **{**parameters, **target.connect_args})
            except Exception as exc:
                failure = exc
                self._resting[number] = time.monotonic() + REST
                logger.warning(
                    "the replica %s refused a connection, and is skipped for a while: %r", shown(target.url), exc
                )
            else:
                self._resting.pop(number, None)
                record.info[UNTIL] = min(self._resting.values(), default=math.inf)
                return connection
        assert failure is not None
        raise failure

    def _order(self) -> list[int]:
        """Return the order to try: servers that are due again, then the others in turn, then the skipped ones."""
        count = len(self._targets)
        turn = [(self._next + offset) % count for offset in range(count)]
        self._next = (self._next + 1) % count
        now = time.monotonic()
        rested = {number for number, until in self._resting.items() if until <= now}
        return sorted(turn, key=lambda number: (number not in rested, number in self._resting))
