"""fastapi-async-sqlalchemy."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi_async_sqlalchemy import SQLAlchemyMiddleware, db
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.peers.routes import with_session

LIBRARIES = ("fastapi-async-sqlalchemy", "fastapi")


def make(url: str, pool: dict[str, Any]) -> Any:
    """Return the application."""

    async def session() -> AsyncSession:
        return db.session

    app = FastAPI()
    app.add_middleware(SQLAlchemyMiddleware, db_url=url, engine_args=pool, commit_on_exit=True)
    return with_session(app, session)
