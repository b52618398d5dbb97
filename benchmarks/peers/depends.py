"""FastAPI's own way: a dependency with ``yield`` that commits, ``async def``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.peers.routes import with_dependency

LIBRARIES = ("fastapi",)


def make(url: str, pool: dict[str, Any], **options: Any) -> Any:
    """Return the application; ``options`` are those of ``Depends``."""
    maker = async_sessionmaker(create_async_engine(url, **pool), expire_on_commit=False)

    async def session() -> AsyncIterator[AsyncSession]:
        async with maker() as session:
            yield session
            await session.commit()

    return with_dependency(FastAPI(), session, **options)
