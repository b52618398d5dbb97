"""``asgi-sqla`` itself, and its commands for a command line of the user's own.

Holds: the groups of commands.
Must not know: what the commands do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from pydantic import BaseModel
from sqlalchemy import MetaData

from asgi_sqla.cli.choosing import Chosen, Named
from asgi_sqla.cli.commands import MIGRATING, SAID, demo, init
from asgi_sqla.cli.reporting import Group, progress
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.migrations import MigrateResult, Migrations
from asgi_sqla.settings import LOCATION, migrations_from


@click.group(cls=Group, name="asgi-sqla")
@click.option(
    "--target", envvar="ASGI_SQLA_TARGET", metavar="MODULE:NAME", help="A Database or Migrations; or set DATABASE_URL."
)
@click.option("--location", metavar="DIRECTORY", help=f"The directory of the migrations; default: {LOCATION}.")
@click.option("--metadata", metavar="MODULE:NAME", help="The base class of the models, if --target is a Database.")
@click.version_option(package_name="asgi-sqla")
@click.pass_context
def main(context: click.Context, target: str | None, location: str | None, metadata: str | None) -> None:
    """Look at a database and migrate it.

    Exit codes: 0 done or up to date, 1 failed, 2 wrong usage, 3 not up to date (status), 4 a person has to decide, 5
    another process holds the lock.
    """
    named = Named(target, location, metadata)
    context.obj = Chosen(named.find, named)
    context.call_on_close(context.obj.close)


for _command in (*MIGRATING, init, demo):
    main.add_command(_command)


def commands(migrations: Migrations, name: str = "db") -> click.Group:
    """Return a click group of the commands for ``migrations``: ``your_group.add_command(commands(migrations))``.

    - ``migrations``: the ``Migrations`` that the commands use.
    - ``name``: the name of the group; default: "db".
    """

    @click.pass_context
    def choose(context: click.Context) -> None:
        context.obj = Chosen(lambda: migrations)
        context.call_on_close(context.obj.close)

    members: dict[str, click.Command] = {str(each.name): each for each in MIGRATING}
    return Group(name, callback=choose, help="Look at the database and migrate it.", commands=members)


def syncdb(
    migrations: Migrations | Mapping[str, Any] | BaseModel | None = None,
    *,
    metadata: MetaData | type[Any] | None = None,
) -> MigrateResult:
    """Sync the database, print what was done, and return it; for a command of your own.

    - ``migrations``: the ``Migrations``, or settings as ``migrations_from()`` takes them; default: the environment.
    - ``metadata``: the ``MetaData`` of the models, or their base class, if ``migrations`` are settings; default: none.

    Raises ConfigurationError for ``metadata`` beside a ``Migrations``, and what ``Migrations.migrate()`` raises.
    """
    if not isinstance(migrations, Migrations):
        migrations = migrations_from(migrations, metadata=metadata)
    elif metadata is not None:
        raise ConfigurationError(f"metadata={hidden(metadata)} is for settings; give it to Migrations(metadata=...)")
    with progress():
        result = migrations.migrate()
    migrations.database.dispose()
    click.echo(SAID[result])
    return result
