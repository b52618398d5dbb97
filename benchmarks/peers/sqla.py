"""fastapi-sqla, async, configured by the environment as it asks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import fastapi_sqla
from fastapi import FastAPI
from fastapi_sqla import AsyncSessionDependency

from benchmarks.peers.routes import with_dependency

LIBRARIES = ("fastapi-sqla", "fastapi")


def make(url: str, pool: dict[str, Any]) -> Any:
    """Return the application."""
    os.environ["sqlalchemy_url"] = url
    for name, value in pool.items():
        os.environ[f"sqlalchemy_{name}"] = str(value)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await fastapi_sqla.startup()
        yield

    app = FastAPI(lifespan=lifespan)
    fastapi_sqla.setup_middlewares(app)
    return with_dependency(app, AsyncSessionDependency())
