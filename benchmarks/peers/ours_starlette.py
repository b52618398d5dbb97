"""asgi_sqla around Starlette."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette

from asgi_sqla import Database, SQLAlchemyMiddleware
from benchmarks.peers.starlette_routes import routes

LIBRARIES = ("asgi-sqla", "starlette")


def make(url: str, pool: dict[str, Any]) -> Any:
    """Return the application."""
    database = Database(url, engine_options=pool)
    return SQLAlchemyMiddleware(Starlette(routes=routes(lambda _request: database.async_session)), database)
