"""FastAPI's own way: a dependency with ``yield`` that commits, ``def``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.peers.routes import with_sync_dependency

LIBRARIES = ("fastapi",)


def make(url: str, pool: dict[str, Any]) -> Any:
    """Return the application."""
    maker = sessionmaker(create_engine(url, **pool), expire_on_commit=False)

    def session() -> Iterator[Session]:
        with maker() as session:
            yield session
            session.commit()

    return with_sync_dependency(FastAPI(), session)
