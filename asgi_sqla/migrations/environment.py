"""What the user's ``env.py`` calls: the same under our commands and under plain ``alembic``.

Holds: Alembic's environment, on a given connection, or on a new one that takes the lock.
Must not know: which command is running.
"""

from __future__ import annotations

from logging.config import fileConfig
from typing import Any

from sqlalchemy import MetaData
from sqlalchemy.engine import Connection
from sqlalchemy.types import TypeEngine

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
    from alembic import context

    if isinstance(migrations, Database):
        migrations = Migrations(migrations, context.script.dir, metadata=metadata)
    given = context.config.attributes.get("connection")
    if given is not None:
        _run(migrations, given)
        return
    _configure_logging(context.config)
    if context.is_offline_mode():
        _run_offline(migrations)
    else:
        migrations.with_lock(lambda connection: _run(migrations, connection))


def _run(migrations: Migrations, connection: Connection) -> None:
    from alembic import context

    own = {"render_as_batch": is_sqlite(connection), "render_item": _render_item}
    context.configure(connection=connection, target_metadata=migrations.metadata, **{**own, **migrations.options})
    with context.begin_transaction():
        context.run_migrations()


def _run_offline(migrations: Migrations) -> None:
    from alembic import context

    context.configure(
        dialect_name=migrations.dialect_name(),
        target_metadata=migrations.metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        **migrations.options,
    )
    with context.begin_transaction():
        context.run_migrations()


def _render_item(kind: str, item: Any, autogenerate: Any) -> Any:
    """Have Alembic write the import of a type that is not SQLAlchemy's, such as SQLModel's, as it writes its name."""
    if kind == "type" and isinstance(item, TypeEngine):
        module = type(item).__module__
        if module.partition(".")[0] != "sqlalchemy":
            autogenerate.imports.add(f"import {module}")
    return False


def _configure_logging(config: Any) -> None:
    """Log as ``alembic.ini`` says, if it says anything: under the plain command nothing else does."""
    if config.config_file_name is not None and config.file_config.has_section("loggers"):
        fileConfig(config.config_file_name, disable_existing_loggers=False)
