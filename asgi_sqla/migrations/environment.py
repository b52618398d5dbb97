"""What the user's ``env.py`` calls: the same under our commands and under plain ``alembic``.

Holds: Alembic's environment, on a given connection, or on a new one that takes the lock.
Must not know: which command is running.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import MetaData
from sqlalchemy.engine import Connection

from asgi_sqla.database import Database
from asgi_sqla.migrations.inspection import is_sqlite
from asgi_sqla.migrations.manager import Migrations


def run_env(migrations: Migrations | Database, metadata: MetaData | None = None) -> None:
    """Run the migrations that Alembic asks for; an ``env.py`` calls nothing else.

    Under the ``alembic`` command it connects and takes the migration lock, as our own commands do.

    - ``migrations``: the ``Migrations``, or a ``Database`` with ``metadata``.
    - ``metadata``: the ``MetaData`` of the models, if ``migrations`` is a ``Database``; default: none.

    Raises MigrationLockError if another process holds the lock for too long.
    """
    if isinstance(migrations, Database):
        migrations = Migrations(migrations, context.script.dir, metadata=metadata)
    given = context.config.attributes.get("connection")
    if context.is_offline_mode():
        _run_offline(migrations)
    elif given is not None:
        _run(migrations, given)
    else:
        migrations.with_lock(lambda connection: _run(migrations, connection))


def _run(migrations: Migrations, connection: Connection) -> None:
    options = {"render_as_batch": is_sqlite(connection), **migrations.options}
    context.configure(connection=connection, target_metadata=migrations.metadata, **options)
    with context.begin_transaction():
        context.run_migrations()


def _run_offline(migrations: Migrations) -> None:
    context.configure(
        dialect_name=migrations.dialect_name(),
        target_metadata=migrations.metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        **migrations.options,
    )
    with context.begin_transaction():
        context.run_migrations()
