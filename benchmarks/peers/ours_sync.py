"""asgi_sqla around FastAPI, ``def`` handlers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from asgi_sqla import Database, SQLAlchemyMiddleware
from benchmarks.peers.routes import with_sync_session

LIBRARIES = ("asgi-sqla", "fastapi")


def make(url: str, pool: dict[str, Any]) -> Any:
    """Return the application."""
    database = Database(url, engine_options=pool)
    return SQLAlchemyMiddleware(with_sync_session(FastAPI(), lambda: database.session), database)
