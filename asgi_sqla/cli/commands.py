"""The commands.

Holds: their arguments, and what they print.
Must not know: which database they use, or how anything is migrated.
"""

from __future__ import annotations

import asyncio
import runpy
import sys
from importlib.metadata import version

import click
import sqlalchemy

from asgi_sqla.cli.checking import check_async, check_sync
from asgi_sqla.cli.choosing import Chosen
from asgi_sqla.cli.reporting import BEHIND, REFUSED
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.migrations import MigrateResult, Status, scaffold

STATUS_CODES = {Status.UP_TO_DATE: 0, Status.UNVERSIONED: REFUSED, Status.UNKNOWN_REVISION: REFUSED}
SAID = {
    MigrateResult.CREATED: "Database created.",
    MigrateResult.UPGRADED: "Database upgraded.",
    MigrateResult.STAMPED: "Database stamped, and up to date.",
    MigrateResult.UP_TO_DATE: "Database up to date.",
}


@click.command()
@click.option("--stamp", metavar="REVISION", help="The revision of tables without a version, such as heads.")
@click.pass_obj
def migrate(chosen: Chosen, stamp: str | None) -> None:
    """Create or upgrade the database; safe in many processes at once."""
    click.echo(SAID[chosen.migrations().migrate(stamp=stamp)])


@click.command()
@click.pass_obj
def status(chosen: Chosen) -> None:
    """Print the state of the database. Exit codes: 0 up to date, 3 migrate will help, 4 a person has to decide."""
    migrations = chosen.migrations()
    found = migrations.status()
    click.echo(f"status   {found.value}")
    click.echo(f"current  {', '.join(migrations.current()) or '-'}")
    click.echo(f"latest   {', '.join(migrations.latest()) or '-'}")
    raise SystemExit(STATUS_CODES.get(found, BEHIND))


@click.command()
@click.argument("target", default="heads")
@click.pass_obj
def upgrade(chosen: Chosen, target: str) -> None:
    """Run the revisions up to TARGET."""
    chosen.migrations().upgrade(target)
    click.echo(f"Upgraded to {target}.")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("target")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def downgrade(chosen: Chosen, target: str, yes: bool) -> None:
    """Undo the revisions down to TARGET, such as base or -1; what they had created is dropped."""
    migrations = chosen.migrations()
    if not yes:
        click.confirm(f"Undo the revisions of {migrations.database!r} down to {target}?", abort=True)
    migrations.downgrade(target)
    click.echo(f"Downgraded to {target}.")


@click.command()
@click.option("--message", "-m", required=True, help="What the revision does.")
@click.option("--autogenerate", is_flag=True, help="Generate it from the models.")
@click.option("--head", default="head", help="The revision to build on, if there are several heads.")
@click.pass_obj
def revision(chosen: Chosen, message: str, autogenerate: bool, head: str) -> None:
    """Write a new revision script."""
    for path in chosen.migrations().revision(message, autogenerate=autogenerate, head=head):
        click.echo(path)


@click.command()
@click.pass_obj
def create(chosen: Chosen) -> None:
    """Create the tables of an empty database."""
    chosen.migrations().create()
    click.echo(SAID[MigrateResult.CREATED])


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def drop(chosen: Chosen, yes: bool) -> None:
    """Drop the tables with their rows."""
    migrations = chosen.migrations()
    if not yes:
        click.confirm(f"Drop every table of {migrations.database!r}?", abort=True)
    migrations.drop()
    click.echo("Database dropped.")


@click.command()
@click.pass_obj
def check(chosen: Chosen) -> None:
    """Connect with both kinds of engine, and print versions and the numbers of the pools."""
    database = chosen.migrations().database
    click.echo(f"asgi-sqla {version('asgi-sqla')}, SQLAlchemy {sqlalchemy.__version__}, {database!r}")
    found = [check_sync(database), asyncio.run(check_async(database))]
    if not any(found):
        raise ConfigurationError(f"{database!r} has neither a sync nor an async driver")


@click.command()
@click.pass_obj
def init(chosen: Chosen) -> None:
    """Write a migrations directory for what --target names."""
    named = chosen.named
    if named is None or named.target is None:
        raise ConfigurationError("init needs --target package.module:name, which env.py imports")
    for path in scaffold(named.directory(), named.target, named.metadata):
        click.echo(path)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Run the tour: a real server, a real client, every promise checked."""
    sys.argv[1:] = arguments
    runpy.run_module("asgi_sqla.demo", run_name="__main__", alter_sys=True)


MIGRATING = (migrate, status, upgrade, downgrade, revision, create, drop, check)
"""The commands for any command line."""
