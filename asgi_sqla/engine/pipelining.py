"""Whether BEGIN can travel with the first statement: what that needs of the drivers is not promised by them.

Holds: the check of the installed driver, and the arguments of an engine that does it.
Must not know: how it is done, or other options of engines.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from sqlalchemy.engine import Engine

logger: logging.Logger = logging.getLogger("asgi_sqla")

_ROOMS = {"asyncpg": "asyncpg", "psycopg": "psycopg", "psycopg_async": "psycopg"}
"""Where it is done, by SQLAlchemy's names of the drivers."""


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


@cache
def _room(name: str) -> ModuleType | None:
    """Return the room for a driver; None, with a line in the log, if the installed version is not one it knows."""
    try:
        room = import_module(f"asgi_sqla.engine.{name}")
    except (ImportError, AttributeError) as exc:
        logger.debug("%s: BEGIN is sent before the first statement, not with it: %s", name, exc)
        return None
    missing = [f"{owner.__name__}.{one}" for owner, names in room.PRIVATE for one in names if not hasattr(owner, one)]
    version = tuple(int(part) for part in room.VERSION.split(".")[:2])
    first, below = room.VERSIONS
    if missing or not first <= version < below or not room.is_able():
        logger.debug(
            "%s %s: BEGIN is sent before the first statement, not with it (known: from %s, below %s; missing: %s)",
            name, room.VERSION, ".".join(map(str, first)), ".".join(map(str, below)), ", ".join(missing) or "nothing",
        )  # fmt: skip
        return None
    return room
