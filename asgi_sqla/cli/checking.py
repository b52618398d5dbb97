"""What ``check`` prints about a database.

Holds: connecting with both kinds of engine, versions and the numbers of the pools.
Must not know: migrations.
"""

from __future__ import annotations

import click
from sqlalchemy import text
from sqlalchemy.engine import Engine

from asgi_sqla.database import Database
from asgi_sqla.errors import ConfigurationError


def check_sync(database: Database) -> bool:
    """Connect with the sync engine, print what is found, and return whether there is one."""
    try:
        engine = database.engine
    except ConfigurationError as exc:
        click.echo(f"sync   none: {exc}")
        return False
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        click.echo(f"sync   {_described(engine)}")
    return True


async def check_async(database: Database) -> bool:
    """Connect with the async engine, print what is found, and return whether there is one."""
    try:
        engine = database.async_engine
    except ConfigurationError as exc:
        click.echo(f"async  none: {exc}")
        return False
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        click.echo(f"async  {_described(engine.sync_engine)}")
    await engine.dispose()
    return True


def _described(engine: Engine) -> str:
    dialect = engine.dialect
    server = ".".join(map(str, dialect.server_version_info or ())) or "?"
    driver = getattr(dialect.import_dbapi(), "__version__", "") if hasattr(dialect, "import_dbapi") else ""
    return f"{dialect.name} {server}, driver {dialect.driver} {driver}".rstrip() + f"; {engine.pool.status()}"
