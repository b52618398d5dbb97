"""The database of a command.

Holds: what ``--target`` and its companions name, and the environment without them.
Must not know: the commands.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from asgi_sqla.database import Database
from asgi_sqla.engine.urls import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.migrations import Migrations
from asgi_sqla.migrations.manager import checked_location
from asgi_sqla.settings import LOCATION, migrations_from


class Named(NamedTuple):
    """The options of ``asgi-sqla``."""

    target: str | None
    location: str | None
    metadata: str | None

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
        found: Any = importlib.import_module(module)
        for each in name.split("."):
            found = getattr(found, each)
    except (ImportError, AttributeError) as exc:
        shown = repr(reference) == hidden(reference)
        why = f"{type(exc).__name__}: {exc}" if shown else type(exc).__name__
        raise ConfigurationError(f"{hidden(reference)} cannot be imported: {why}") from (exc if shown else None)
    return found
