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
EXPECTED = tuple(kind for kind, _ in CODES)


class Group(click.Group):
    """A group that shows progress, and turns every expected error into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with progress():
                return super().invoke(ctx)
        except EXPECTED as exc:
            said = str(exc) if isinstance(exc, AsgiSqlaError) else f"{type(exc).__name__}: {exc}"
            click.echo(f"Error: {said}", err=True)
            ctx.exit(next(code for kind, code in CODES if isinstance(exc, kind)))


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
