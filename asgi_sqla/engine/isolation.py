"""Isolation levels, written in any case, as a dialect names and compares them.

Holds: which levels exist, and how one is spelled.
Must not know: who asks for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import URL

from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError


def checked_isolation_level(level: Any, dialect: Any, argument: str = "isolation_level") -> str | None:
    """Return ``level`` as SQLAlchemy spells it, or raise ConfigurationError if the dialect does not have it.

    ``dialect`` is a dialect, its class, or None if it is not known yet.
    """
    if level is None:
        return None
    if not isinstance(level, str):
        raise ConfigurationError(f'{argument}={hidden(level)} is not a string; write one such as "SERIALIZABLE"')
    spelled = level.upper().replace("_", " ")
    known = _isolation_levels(dialect)
    if not spelled or (known and spelled not in known):
        raise ConfigurationError(f"{argument}={hidden(level)} is not one of {', '.join(map(repr, sorted(known)))}")
    return spelled


def with_level(argument: str, options: Mapping[str, Any], url: URL) -> dict[str, Any]:
    """Return ``options`` with the isolation level in the spelling that the dialect compares at a reset."""
    if "isolation_level" not in options:
        return dict(options)
    level = checked_isolation_level(options["isolation_level"], url.get_dialect(), f"{argument}: isolation_level")
    return {**options, "isolation_level": level}


def _isolation_levels(dialect: Any) -> frozenset[str]:
    if dialect is None:
        return frozenset()
    try:
        made = dialect() if isinstance(dialect, type) else dialect
        return frozenset(made.get_isolation_level_values(None)) | {"AUTOCOMMIT"}
    except Exception:  # a third-party dialect that must ask its driver or its connection
        return frozenset()
