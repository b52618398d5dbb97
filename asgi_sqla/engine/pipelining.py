"""Whether BEGIN can travel with the first statement: what that needs of the drivers is not promised by them.

SQLite has no network to travel. There the same check decides whether a statement takes one turn of aiosqlite's thread.

Holds: the check of the installed driver, the arguments of an engine that does it, and what else can travel.
Must not know: how it is done, or other options of engines.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

from sqlalchemy.engine import Connection, Engine

logger: logging.Logger = logging.getLogger("asgi_sqla")

_ROOMS = {"aiosqlite": "aiosqlite", "asyncpg": "asyncpg", "psycopg": "psycopg", "psycopg_async": "psycopg"}
"""Where it is done, by SQLAlchemy's names of the drivers."""


class Ahead(Protocol):
    """A driver's connection on which other statements can travel with a statement, and with COMMIT."""

    @property
    def commit_sent(self) -> bool:
        """Whether COMMIT went with a statement, and may have been carried out."""
        ...

    @property
    def refusal(self) -> Exception | None:
        """What the server answered to that COMMIT, if it refused it."""
        ...

    @property
    def autocommit(self) -> bool:
        """Whether its statements run without a transaction."""
        ...

    def set_ahead(self, ahead: str | None, last: str | None) -> None:
        """Send ``ahead`` with the next statement, once, and ``last`` with the next COMMIT; None is nothing."""

    def commit_with_next(self, now: bool) -> None:
        """Send COMMIT with the next statement, if that can be; no longer, if not ``now``.

        The server carries it out only if the statement succeeds. What it answers to COMMIT is kept for ``commit()``.
        """


def pipelined(driver: str, *, asynchronous: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments for ``create_engine()`` and for the driver; none if the driver cannot do it."""
    room = _room(_ROOMS[driver]) if driver in _ROOMS else None
    if room is None:
        return {}, {}
    found: tuple[dict[str, Any], dict[str, Any]] = room.arguments(asynchronous)
    return found


def prepare(engine: Engine) -> None:
    """Do what the arguments of an engine cannot."""
    room = _room(_ROOMS[engine.dialect.driver]) if engine.dialect.driver in _ROOMS else None
    if room is not None:
        room.prepare(engine)


def ahead_of(connection: Connection) -> Ahead | None:
    """Return what sends statements ahead on ``connection``; None if its engine was not made for that."""
    driver = connection.dialect.driver
    room = _room(_ROOMS[driver]) if driver in _ROOMS else None
    found: Ahead | None = None if room is None else room.ahead_of(connection.connection)
    return found


@cache
def _room(name: str) -> ModuleType | None:
    """Return the room for a driver; None, with a line in the log, if the installed version is not one it knows."""
    try:
        room = import_module(f"asgi_sqla.engine.{name}")
    except (ImportError, AttributeError) as exc:
        logger.debug("%s is used the plain way, with more round trips or turns: %s", name, exc)
        return None
    missing = [f"{owner.__name__}.{one}" for owner, names in room.PRIVATE for one in names if not hasattr(owner, one)]
    version = tuple(int(part) for part in room.VERSION.split(".")[:2])
    first, below = room.VERSIONS
    if missing or not first <= version < below or not room.is_able():
        logger.debug(
            "%s %s is used the plain way, with more round trips or turns (known: from %s, below %s; missing: %s)",
            name, room.VERSION, ".".join(map(str, first)), ".".join(map(str, below)), ", ".join(missing) or "nothing",
        )  # fmt: skip
        return None
    return room
