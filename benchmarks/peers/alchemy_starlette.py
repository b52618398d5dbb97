"""advanced-alchemy with Starlette, ``commit_mode="autocommit"``."""

from __future__ import annotations

from typing import Any

from advanced_alchemy.extensions.starlette import (
    AdvancedAlchemy,
    AsyncSessionConfig,
    EngineConfig,
    SQLAlchemyAsyncConfig,
)
from starlette.applications import Starlette

from benchmarks.peers.starlette_routes import routes

LIBRARIES = ("advanced-alchemy", "starlette")


def make(url: str, pool: dict[str, Any]) -> Any:
    """Return the application."""
    config = SQLAlchemyAsyncConfig(
        connection_string=url,
        commit_mode="autocommit",
        engine_config=EngineConfig(**pool),
        session_config=AsyncSessionConfig(expire_on_commit=False),
    )
    alchemy = AdvancedAlchemy(config)
    app = Starlette(routes=routes(alchemy.get_async_session))
    alchemy.init_app(app)
    return app
