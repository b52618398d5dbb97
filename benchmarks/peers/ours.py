"""asgi_sqla around FastAPI, ``async def`` handlers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from asgi_sqla import Database, SQLAlchemyMiddleware
from benchmarks.peers.routes import with_session

LIBRARIES = ("asgi-sqla", "fastapi")


def make(url: str, pool: dict[str, Any]) -> Any:
    """Return the application."""
    database = Database(url, engine_options=pool)

    async def session() -> AsyncSession:
        return database.async_session

    return SQLAlchemyMiddleware(with_session(FastAPI(), session), database)
