"""advanced-alchemy with Litestar, ``before_send_handler="autocommit"``."""

from __future__ import annotations

from typing import Any

from advanced_alchemy.extensions.litestar import (
    AsyncSessionConfig,
    EngineConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemyInitPlugin,
)
from litestar import Litestar

from benchmarks.peers.litestar_routes import HANDLERS

LIBRARIES = ("advanced-alchemy", "litestar")


def make(url: str, pool: dict[str, Any]) -> Any:
    """Return the application."""
    config = SQLAlchemyAsyncConfig(
        connection_string=url,
        before_send_handler="autocommit",
        engine_config=EngineConfig(**pool),
        session_config=AsyncSessionConfig(expire_on_commit=False),
    )
    return Litestar(HANDLERS, plugins=[SQLAlchemyInitPlugin(config=config)])
