"""What a command prints while it runs, and its exit code.

Holds: progress on stderr, and the exit code of every expected error.
Must not know: the commands.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from asgi_sqla.errors import AsgiSqlaError, ConfigurationError
from asgi_sqla.migrations import MigrationError, MigrationLockError
from asgi_sqla.migrations.schema import one_line

FAILED = 1
"""Exit code 1: an error, such as an unreachable database."""
USAGE = 2
"""Exit code 2: a wrong argument."""
BEHIND = 3
"""Exit code 3, of ``status``: not up to date, and ``migrate`` will help."""
REFUSED = 4
"""Exit code 4: the database is in a state about which a person has to decide."""
LOCKED = 5
"""Exit code 5: another process holds the migration lock."""

CODES: tuple[tuple[type[Exception], int], ...] = (
    (MigrationLockError, LOCKED),
    (MigrationError, REFUSED),
    (ConfigurationError, USAGE),
    (AsgiSqlaError, FAILED),
    (CommandError, FAILED),
    (SQLAlchemyError, FAILED),
    (OSError, FAILED),
)
"""The exit code of each error that is reported in one line; the first class that fits counts."""
ADVICE: tuple[tuple[str, str], ...] = (
    ("Target database is not up to date", "write: asgi-sqla migrate, and then this command again"),
    ("Can't locate revision", "asgi-sqla status says the latest"),
    ("Multiple head", "name one, as asgi-sqla status lists them, or merge them with: alembic merge heads"),
)
"""What to do about what Alembic refuses."""


class Group(click.Group):
    """A group that shows progress, and turns every expected error into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with progress():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as exc:  # a revision script, or env.py, may raise anything
            code = next((code for kind, code in CODES if isinstance(exc, kind)), None)
            said = str(exc) if isinstance(exc, AsgiSqlaError) else one_line(exc) if code is None else _said(exc)
            click.echo(f"Error: {said}", err=True)
            ctx.exit(FAILED if code is None else code)


def _said(failure: Exception) -> str:
    said = f"{type(failure).__name__}: {failure}"
    advice = next((write for refused, write in ADVICE if refused in said), None)
    return said if advice is None or not isinstance(failure, CommandError) else f"{said.rstrip('.')}; {advice}"


class _Progress(logging.Handler):
    """Prints on stderr what the command waits for, and each revision as it runs."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("asgi_sqla") or str(record.msg).startswith("Running"):
            click.echo(record.getMessage(), err=True)


@contextmanager
def progress() -> Iterator[None]:
    """Print what is logged about migrations."""
    handler = _Progress()
    loggers = [logging.getLogger(name) for name in ("asgi_sqla", "alembic.runtime.migration")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
