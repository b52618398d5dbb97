"""SQLAlchemy sessions for any ASGI application: nobody is told "done" before the database is.

A middleware gives every request one unit of work. Its transaction ends before the response starts: a client that sees a
status below 400 finds its data committed, and a COMMIT that fails becomes an error response. No connection is held
while a client reads slowly, while a websocket is idle, or by a request that does not use the database.

An application uses it like this::

    from asgi_sqla import Database, SQLAlchemyMiddleware

    db = Database("postgresql://localhost/shop")
    app = FastAPI()
    app.add_middleware(SQLAlchemyMiddleware, database=db)

    db.async_session   # the AsyncSession of the current request, for async def
    db.session         # the Session of the current request, for def

- ``Database``: one database: its engines, its sessions and their defaults.
- ``db``: a ready-made ``Database``, for an application with a single one.
- ``SQLAlchemyMiddleware``: gives every request of an ASGI application a unit of work.
- ``session_scope``: opens a unit of work outside a request: in a worker, a script or a test.
- ``current_unit``: returns the running unit: its callbacks, its dry run, its settings for each transaction.
- ``on_commit``: calls a function after the commit, or at once outside any unit.
- ``ERROR_RESPONSES``: a ready mapping of database errors to responses.
- ``classify``: returns which ``ErrorKind`` a database error is, for every driver.
- ``AsgiSqlaError``: the base class of every error of this package.
"""

from typing import TYPE_CHECKING

from asgi_sqla.asgi.answers import ERROR_RESPONSES
from asgi_sqla.database import Database, db
from asgi_sqla.engine.classification import ErrorKind, classify
from asgi_sqla.errors import (
    AsgiSqlaError,
    BlockingSessionWarning,
    ConfigurationError,
    DeadlineExceededError,
    DiscardedWorkError,
    MissingDriverError,
    NoUnitOfWorkError,
    PoolExhaustedError,
    ReadOnlyError,
    SessionInUseError,
    UnitOfWorkDoomedError,
    UnitOfWorkEndedError,
    WrongEventLoopError,
)
from asgi_sqla.middleware import SQLAlchemyMiddleware
from asgi_sqla.scope import session_scope
from asgi_sqla.unit.running import current_unit, on_commit
from asgi_sqla.unit.unit import UnitOfWork

__all__ = [
    "ERROR_RESPONSES",
    "AsgiSqlaError",
    "BlockingSessionWarning",
    "ConfigurationError",
    "Database",
    "DeadlineExceededError",
    "DiscardedWorkError",
    "ErrorKind",
    "MissingDriverError",
    "NoUnitOfWorkError",
    "PoolExhaustedError",
    "ReadOnlyError",
    "SQLAlchemyMiddleware",
    "SessionInUseError",
    "UnitOfWork",
    "UnitOfWorkDoomedError",
    "UnitOfWorkEndedError",
    "WrongEventLoopError",
    "classify",
    "current_unit",
    "db",
    "on_commit",
    "session_scope",
]

if TYPE_CHECKING:
    __version__: str
else:  # a type checker that saw this would let any name pass

    def __getattr__(name: str) -> str:
        """Return ``__version__``; read on demand, as that can take longer than the whole import of this package."""
        import sys

        if name == "__version__":
            from importlib.metadata import version

            return version("asgi-sqla")
        # With the module, Python can say which name was meant.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
