"""Migrations with Alembic, under a database lock: N processes may start at once, and one of them migrates.

- ``Migrations``: the commands, plain and async.
- ``run_env``: all that an ``env.py`` has to call.
- ``scaffold``: writes a new directory of migrations.
- ``Status``, ``MigrateResult``: the state of a database, and what ``migrate`` did.
- ``MigrationError``, ``MigrationLockError``: a state that needs a person, and a lock that another process holds.
- ``exists_in_db``, ``is_sqlite``: two questions of migration scripts.
"""

from asgi_sqla.migrations.environment import run_env
from asgi_sqla.migrations.inspection import exists_in_db, is_sqlite
from asgi_sqla.migrations.lock import MigrationLockError
from asgi_sqla.migrations.manager import Migrations
from asgi_sqla.migrations.scaffold import scaffold
from asgi_sqla.migrations.state import MigrateResult, MigrationError, Status

__all__ = [
    "MigrateResult",
    "MigrationError",
    "MigrationLockError",
    "Migrations",
    "Status",
    "exists_in_db",
    "is_sqlite",
    "run_env",
    "scaffold",
]
