"""Migrations with Alembic, under a database lock: N processes may start at once, and one migrates."""

from asgi_sqla.migrations.environment import run_env
from asgi_sqla.migrations.inspection import exists_in_db, is_sqlite
from asgi_sqla.migrations.lock import MigrationLockError
from asgi_sqla.migrations.manager import Migrations
from asgi_sqla.migrations.scaffold import scaffold
from asgi_sqla.migrations.schema import SyncResult
from asgi_sqla.migrations.state import MigrationError, Status

__all__ = [
    "MigrationError",
    "MigrationLockError",
    "Migrations",
    "Status",
    "SyncResult",
    "exists_in_db",
    "is_sqlite",
    "run_env",
    "scaffold",
]
