"""asgi_sqla around Litestar, the session given by a dependency as in advanced-alchemy."""

from typing import Any

from litestar import Litestar
from litestar.di import Provide
from sqlalchemy.ext.asyncio import AsyncSession

from asgi_sqla import Database, SQLAlchemyMiddleware
from benchmarks.peers.litestar_routes import HANDLERS

LIBRARIES = ("asgi-sqla", "litestar")


def make(url: str, pool: dict[str, Any]) -> Any:
    """Return the application."""
    database = Database(url, engine_options=pool)

    def db_session() -> AsyncSession:
        return database.async_session

    app = Litestar(HANDLERS, dependencies={"db_session": Provide(db_session, sync_to_thread=False)})
    return SQLAlchemyMiddleware(app, database)
