"""FastAPI-SQLAlchemy."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi_sqlalchemy import DBSessionMiddleware, db

from benchmarks.peers.routes import with_sync_session

LIBRARIES = ("FastAPI-SQLAlchemy", "fastapi")


def make(url: str, pool: dict[str, Any]) -> Any:
    """Return the application."""
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url=url, engine_args=pool, commit_on_exit=True)
    return with_sync_session(app, lambda: db.session)
