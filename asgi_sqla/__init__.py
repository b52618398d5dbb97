"""SQLAlchemy sessions for any ASGI application: nobody is told "done" before the database is."""

from asgi_sqla.answers import ERROR_RESPONSES
from asgi_sqla.database import Database, db
from asgi_sqla.errors import (
    AsgiSqlaError,
    ConfigurationError,
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
from asgi_sqla.unit import UnitOfWork, current_unit, on_commit

__all__ = [
    "ERROR_RESPONSES",
    "AsgiSqlaError",
    "ConfigurationError",
    "Database",
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
