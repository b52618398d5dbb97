"""context-async-sqlalchemy, its FastAPI middleware."""

from __future__ import annotations

from typing import Any

from context_async_sqlalchemy import DBConnect, db_session
from context_async_sqlalchemy.fastapi_utils import add_fastapi_http_db_session_middleware
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.peers.routes import with_session

LIBRARIES = ("context-async-sqlalchemy", "fastapi")


def make(url: str, pool: dict[str, Any]) -> Any:
    """Return the application."""
    connection = DBConnect(
        engine_creator=lambda host: create_async_engine(host, **pool),
        session_maker_creator=lambda engine: async_sessionmaker(engine, expire_on_commit=False),
        host=url,
    )

    async def session() -> AsyncSession:
        return await db_session(connection)

    app = FastAPI()
    add_fastapi_http_db_session_middleware(app)
    return with_session(app, session)
