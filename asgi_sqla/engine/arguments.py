"""The arguments of SQLAlchemy for one engine: the user's options, and what we add for its driver and its role.

Holds: what is added, and which of two values counts.
Must not know: whether the options are right, our engines, sessions.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from asgi_sqla.engine.pipelining import pipelined
from asgi_sqla.engine.poolers import pooled
from asgi_sqla.engine.pools import Role, bounded
from asgi_sqla.engine.read_only import start_read_only
from asgi_sqla.engine.urls import Target
from asgi_sqla.errors import ConfigurationError

BUSY_TIMEOUT = 5.0
"""Seconds that a statement on SQLite waits for another connection's lock before ``database is locked``."""
_AUTOCOMMIT: Mapping[str, Any] = {
    "isolation_level": "AUTOCOMMIT",
    "pool_reset_on_return": None,
    "skip_autocommit_rollback": True,
}
"""The options of an engine that has nothing to commit or to roll back."""


class Recipe(NamedTuple):
    """What a user asked for, of every engine that is made from a URL."""

    options: Mapping[str, Any]
    async_options: Mapping[str, Any] = MappingProxyType({})
    """Added to ``options`` for an async engine."""
    pipelining: bool = False
    pooler: bool = False
    """Whether the URL leads to a pooler in transaction mode."""
    max_waiting: int | None = None
    """How many may wait for a connection of one pool."""


def arguments_for(target: Target, recipe: Recipe, role: Role, *, asynchronous: bool) -> dict[str, Any]:
    """Return the arguments for ``create_engine()``, or for ``create_async_engine()``."""
    options = _merged(target, recipe, asynchronous=asynchronous)
    driver = target.url.get_driver_name()
    of_engine: dict[str, Any] = {}
    of_driver: dict[str, Any] = {}
    if recipe.pipelining and target.url.get_backend_name() == "postgresql":
        of_engine, of_driver = pipelined(driver, asynchronous=asynchronous)
    arguments = {**of_driver, **target.connect_args, **options.pop("connect_args", {})}
    if driver == "asyncpg" and "async_creator" not in options:
        from asgi_sqla.engine.asyncpg import connection_class  # this imports the driver

        arguments.setdefault("connection_class", connection_class())
    if target.url.get_backend_name() == "sqlite" and "timeout" not in target.url.query:
        arguments.setdefault("timeout", BUSY_TIMEOUT)
    if recipe.pooler:
        arguments.update(pooled(driver))
    elif role != "write" and not options.keys() & {"async_creator", "creator", "pool"}:
        start_read_only(target.url, arguments)
    autocommit = _AUTOCOMMIT if role == "read" else {}
    return {**of_engine, **options, **autocommit, "connect_args": arguments}


def _merged(target: Target, recipe: Recipe, *, asynchronous: bool) -> dict[str, Any]:
    """Return the user's options for an engine of one kind, with our pool if it is a queue."""
    merged = {**recipe.options, **(recipe.async_options if asynchronous else {})}
    if "async_creator" in merged:
        merged.pop("creator", None)
    elif asynchronous and "creator" in merged:
        raise ConfigurationError(
            "engine_options: creator=... makes connections of a sync driver; for the async engine write "
            'async_engine_options={"async_creator": ...}'
        )
    pool = merged.get("poolclass")
    if pool is None:
        dialect: Any = target.url.get_dialect(_is_async=asynchronous)
        pool = dialect.get_pool_class(target.url)
    elif pool in (QueuePool, AsyncAdaptedQueuePool):  # either is for both kinds of engine, which have their own
        pool = AsyncAdaptedQueuePool if asynchronous else QueuePool
    if issubclass(pool, QueuePool) and "pool" not in merged:
        merged["poolclass"] = bounded(pool, recipe.max_waiting)
    return merged
