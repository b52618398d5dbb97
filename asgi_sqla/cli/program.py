"""``asgi-sqla`` itself, and the same commands for a command line of the user's own.

Lives here: what holds the commands together.
Must not know: what they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from pydantic import BaseModel

from asgi_sqla.cli.choosing import Chosen, Named
from asgi_sqla.cli.commands import MIGRATING, SAID, demo, init
from asgi_sqla.cli.reporting import Group, progress
from asgi_sqla.migrations import Migrations, SyncResult
from asgi_sqla.settings import LOCATION, migrations_from


@click.group(cls=Group, name="asgi-sqla")
@click.option(
    "--db", envvar="ASGI_SQLA_DB", metavar="MODULE:NAME", help="A Database or Migrations; or set DATABASE_URL."
)
@click.option("--location", metavar="DIRECTORY", help=f"Where the migrations are, {LOCATION!r} unless said.")
@click.option("--metadata", metavar="MODULE:NAME", help="The base class of the models, if --db is a Database.")
@click.version_option(package_name="asgi-sqla")
@click.pass_context
def main(context: click.Context, db: str | None, location: str | None, metadata: str | None) -> None:
    """Look at a database and migrate it.

    Exit codes: 0 done or up to date, 1 failed, 2 wrong usage, 3 not up to date (status), 4 somebody
    has to decide, 5 another process kept the lock.
    """
    named = Named(db, location, metadata)
    context.obj = Chosen(named.find, named)
    context.call_on_close(context.obj.close)


for _command in (*MIGRATING, init, demo):
    main.add_command(_command)


def commands(migrations: Migrations, name: str = "db") -> click.Group:
    """Return a group of the commands for ``migrations``: ``your_group.add_command(commands(migrations))``."""

    @click.pass_context
    def choose(context: click.Context) -> None:
        context.obj = Chosen(lambda: migrations)
        context.call_on_close(context.obj.close)

    members: dict[str, click.Command] = {str(each.name): each for each in MIGRATING}
    return Group(name, callback=choose, help="Look at the database and migrate it.", commands=members)


def syncdb(migrations: Migrations | Mapping[str, Any] | BaseModel | None = None) -> SyncResult:
    """Sync the database, say what was done, and return it; for a command of your own.

    ``migrations`` may also be settings, as ``migrations_from()`` takes them.
    """
    if not isinstance(migrations, Migrations):
        migrations = migrations_from(migrations)
    with progress():
        result = migrations.sync()
    migrations.database.dispose()
    click.echo(SAID[result])
    return result
