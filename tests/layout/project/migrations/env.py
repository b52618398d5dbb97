"""Run by Alembic for every command; see asgi_sqla.migrations.run_env."""

from shop.db import migrations

from asgi_sqla.migrations import run_env

run_env(migrations)
