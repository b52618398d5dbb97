"""What a ``session_scope()`` was asked to be, checked at once.

Lives here: which of its arguments go together. Pure.
Must not know: what a scope does with them, or whose it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from asgi_sqla.errors import ConfigurationError

Propagation: TypeAlias = Literal["new", "join", "nested"]
_FIXED = frozenset(("bind", "class_", "close_resets_only", "sync_session_class"))


class Terms(NamedTuple):
    """The arguments of a ``session_scope()``, but for its database."""

    propagation: Propagation
    session_options: Mapping[str, Any]
    read_only: bool
    isolation_level: str | None
    retries: int

    def check(self) -> None:
        """Raise ConfigurationError for what cannot be, or not together."""
        if self.propagation not in ("new", "join", "nested"):
            raise ConfigurationError(f'propagation={self.propagation!r} is none of "new", "join" and "nested"')
        if self.retries.__class__ is not int or self.retries < 0:
            raise ConfigurationError(f"retries={self.retries!r} is no count; write a whole number from 0")
        if self.retries and self.isolation_level == "AUTOCOMMIT" and not self.read_only:
            raise ConfigurationError(
                'isolation_level="AUTOCOMMIT" commits each statement, which retries= would then repeat; leave out one'
            )
        if fixed := _FIXED.intersection(self.session_options):
            raise ConfigurationError(
                f"session_options: {min(fixed)}= is not for one scope; give it to Database(session_options=...)"
            )
        if self.propagation != "new":
            self._check_joining()

    def _check_joining(self) -> None:
        for name in ("session_options", "read_only", "isolation_level", "retries"):
            if value := getattr(self, name):
                raise ConfigurationError(f'{name}={value!r} needs a unit of the scope\'s own; write propagation="new"')
