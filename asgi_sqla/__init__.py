"""SQLAlchemy sessions for any ASGI application: nobody is told "done" before the database is."""

from asgi_sqla.asgi.answers import ERROR_RESPONSES
from asgi_sqla.database import Database, db
from asgi_sqla.errors import (
    AsgiSqlaError,
    BlockingSessionWarning,
    ConfigurationError,
    DiscardedWorkError,
    MissingDriverError,
    NoUnitOfWorkError,
    ReadOnlyError,
    SessionInUseError,
    UnitOfWorkDoomedError,
    UnitOfWorkEndedError,
    WrongEventLoopError,
)
from asgi_sqla.middleware import SQLAlchemyMiddleware
from asgi_sqla.scope import session_scope
from asgi_sqla.unit.unit import UnitOfWork, current_unit, on_commit

__all__ = [
    "ERROR_RESPONSES",
    "AsgiSqlaError",
    "BlockingSessionWarning",
    "ConfigurationError",
    "Database",
    "DiscardedWorkError",
    "MissingDriverError",
    "NoUnitOfWorkError",
    "ReadOnlyError",
    "SQLAlchemyMiddleware",
    "SessionInUseError",
    "UnitOfWork",
    "UnitOfWorkDoomedError",
    "UnitOfWorkEndedError",
    "WrongEventLoopError",
    "current_unit",
    "db",
    "on_commit",
    "session_scope",
]
