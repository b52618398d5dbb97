"""asgi-sqlalchemy, with FastAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asgi_sqlalchemy import DatabaseContext, SessionMiddleware
from asgi_sqlalchemy.fastapi import get_session
from fastapi import FastAPI

from benchmarks.peers.routes import with_dependency

LIBRARIES = ("asgi-sqlalchemy", "fastapi")


def make(url: str, pool: dict[str, Any]) -> Any:
    """Return the application."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with DatabaseContext(url, pool, {"expire_on_commit": False}) as db:
            yield {"db": db}

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(SessionMiddleware)
    return with_dependency(app, get_session)
