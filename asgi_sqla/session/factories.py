"""Factories of sessions that no unit of work ends: SQLAlchemy's own, bound to an engine when they are called.

Holds: both kinds.
Must not know: units, or which engine it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from asgi_sqla.session.classes import SessionClasses


class SessionFactory(sessionmaker[Session]):
    """SQLAlchemy's ``sessionmaker``, which looks up its engine when it is called."""

    def __init__(self, classes: SessionClasses, engine: Callable[[], Engine]) -> None:
        super().__init__(class_=classes.sync, **_options(classes))
        self._engine = engine

    def __call__(self, **local_kw: Any) -> Session:
        """Return a session on the engine, or on ``bind=``."""
        if local_kw.get("bind") is None:
            local_kw["bind"] = self._engine()
        return super().__call__(**local_kw)


class AsyncSessionFactory(async_sessionmaker[AsyncSession]):
    """SQLAlchemy's ``async_sessionmaker``, which looks up the engine of the running event loop when it is called."""

    def __init__(self, classes: SessionClasses, engine: Callable[[], AsyncEngine]) -> None:
        super().__init__(class_=classes.asynchronous, sync_session_class=classes.sync, **_options(classes))
        self._engine = engine

    def __call__(self, **local_kw: Any) -> AsyncSession:
        """Return a session on the engine, or on ``bind=``."""
        if local_kw.get("bind") is None:
            local_kw["bind"] = self._engine()
        return super().__call__(**local_kw)


def _options(classes: SessionClasses) -> dict[str, Any]:
    """Return the options, without the one that makes ``close()`` final for a unit's sessions."""
    return {name: value for name, value in classes.options.items() if name != "close_resets_only"}
