"""The arguments of SQLAlchemy for one engine: the user's options, and what we add for its driver and its role.

Holds: what is added, and which of two values counts.
Must not know: whether the options are right, our engines, sessions.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from asgi_sqla.engine.pipelining import pipelined
from asgi_sqla.engine.poolers import pooled
from asgi_sqla.engine.read_only import start_read_only
from asgi_sqla.engine.urls import Target
from asgi_sqla.errors import ConfigurationError

Role: TypeAlias = Literal["write", "read", "snapshot"]
"""The purpose of an engine: anything; reading in autocommit; reading in a transaction with an isolation level."""
BUSY_TIMEOUT = 5.0
"""Seconds that a statement on SQLite waits for another connection's lock before ``database is locked``."""
_AUTOCOMMIT: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None}
"""The options of an engine that has nothing to commit or to roll back."""
if "skip_autocommit_rollback" in inspect.signature(DefaultDialect).parameters:
    _AUTOCOMMIT["skip_autocommit_rollback"] = True


def arguments_for(
    target: Target,
    options: Mapping[str, Any],
    async_options: Mapping[str, Any] | None = None,
    *,
    role: Role = "write",
    pipelining: bool = False,
    pooler: bool = False,
) -> dict[str, Any]:
    """Return the arguments for ``create_engine()``, or with ``async_options`` for ``create_async_engine()``."""
    options = _merged(options, async_options)
    driver = target.url.get_driver_name()
    of_engine: dict[str, Any] = {}
    of_driver: dict[str, Any] = {}
    if pipelining and target.url.get_backend_name() == "postgresql":
        of_engine, of_driver = pipelined(driver, asynchronous=async_options is not None)
    arguments = {**of_driver, **target.connect_args, **options.pop("connect_args", {})}
    if driver == "asyncpg" and "async_creator" not in options:
        from asgi_sqla.engine.asyncpg import connection_class  # this imports the driver

        arguments.setdefault("connection_class", connection_class())
    if target.url.get_backend_name() == "sqlite" and "timeout" not in target.url.query:
        arguments.setdefault("timeout", BUSY_TIMEOUT)
    if pooler:
        arguments.update(pooled(driver))
    elif role != "write" and not options.keys() & {"async_creator", "creator", "pool"}:
        start_read_only(target.url, arguments)
    autocommit = _AUTOCOMMIT if role == "read" else {}
    return {**of_engine, **options, **autocommit, "connect_args": arguments}


def _merged(options: Mapping[str, Any], async_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the user's options for an engine of one kind."""
    merged = {**options, **(async_options or {})}
    if "async_creator" in merged:
        merged.pop("creator", None)
    elif async_options is not None and "creator" in merged:
        raise ConfigurationError(
            "engine_options: creator=... makes connections of a sync driver; for the async engine write "
            'async_engine_options={"async_creator": ...}'
        )
    # A queue pool class is for either kind; each kind of engine has its own by default.
    if merged.get("poolclass") in (QueuePool, AsyncAdaptedQueuePool):
        del merged["poolclass"]
    return merged
