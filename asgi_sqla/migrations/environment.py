"""What the user's ``env.py`` calls: the same under our commands and under plain ``alembic``.

Lives here: Alembic's environment, on the connection it is given, or on one that takes the lock.
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
    """Run the migrations that Alembic asks for; all that an ``env.py`` has to do.

    ``migrations`` is the ``Migrations``; or a ``Database``, beside the ``metadata`` of its models.
    Under the ``alembic`` command it connects and takes the migration lock, as our own commands do.
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
