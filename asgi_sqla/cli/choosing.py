"""The database of a command.

Holds: what ``--target`` and its companions name, and the environment without them.
Must not know: the commands.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from asgi_sqla.database import Database
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.migrations import Migrations
from asgi_sqla.migrations.manager import checked_location
from asgi_sqla.migrations.schema import one_line
from asgi_sqla.settings import LOCATION, migrations_from


class Named(NamedTuple):
    """The options of ``asgi-sqla``."""

    target: str | None
    location: str | None
    metadata: str | None

    def directory(self) -> Path:
        """Return the directory to write: that of the Migrations that ``--target`` names, unless one is given."""
        if self.location is not None:
            return checked_location(self.location)
        found = None if self.target is None else load(self.target)
        return found.location if isinstance(found, Migrations) else Path(LOCATION)

    def find(self) -> Migrations:
        """Import what ``--target`` names, or read ``DATABASE_URL``."""
        metadata = None if self.metadata is None else load(self.metadata)
        found = migrations_from(metadata=metadata) if self.target is None else load(self.target)
        if isinstance(found, Database):
            return Migrations(found, self.location or LOCATION, metadata=metadata)
        if not isinstance(found, Migrations):
            raise ConfigurationError(
                f"--target {hidden(self.target)} is {hidden(found)}, neither a Database nor Migrations"
            )
        if self.location is not None:
            found.location = checked_location(self.location)
        return found


class Chosen:
    """The migrations of a command, found on first use."""

    def __init__(self, find: Callable[[], Migrations], named: Named | None = None) -> None:
        self._find = find
        self._found: Migrations | None = None
        self.named: Named | None = named

    def migrations(self) -> Migrations:
        """Return them."""
        if self._found is None:
            self._found = self._find()
        return self._found

    def close(self) -> None:
        """Close the idle connections of the database, if it was used."""
        if self._found is not None:
            self._found.database.dispose()


def load(reference: str) -> Any:
    """Return the object that "package.module:name" names, seen from the current directory."""
    if "://" in reference:
        raise ConfigurationError(
            f"{hidden(reference)} is a URL; put it in DATABASE_URL, as --target and --metadata are package.module:name"
        )
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        raise ConfigurationError(f'{hidden(reference)} cannot be imported; write "package.module:name"')
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return pkgutil.resolve_name(reference)
    except Exception as exc:  # whatever the module raises while it is imported
        if repr(reference) != hidden(reference):
            raise ConfigurationError(f"{hidden(reference)} cannot be imported: {type(exc).__name__}") from None
        raise ConfigurationError(f"{reference!r} cannot be imported: {one_line(exc)}") from exc
