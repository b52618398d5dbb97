"""Which class of session a database needs, and which events of its engines: none more unless it has observers.

Holds: that decision, in one place.
Must not know: what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from asgi_sqla.session.guard import GuardedSession

if TYPE_CHECKING:
    from asgi_sqla.engine.pools import Role


def observers_of(database: Any, configuration: Any = None) -> tuple[Callable[[Any], object], ...]:
    """Return who observes ``database``: as it is configured, or as ``configuration`` does, and who was added since."""
    configuration = configuration or database._configuration
    return (*(() if configuration is None else configuration.observers), *database._added)


def guard_for(role: Role, database: Any) -> type[GuardedSession]:
    """Return the guard of sessions of ``database`` for ``role``."""
    from asgi_sqla.session import holders, listeners  # noqa: F401  # each guard is heard, and named by a full pool
    from asgi_sqla.session.read_only import ReadOnlySession

    guard = GuardedSession if role == "write" else ReadOnlySession
    if not observers_of(database):
        return guard
    from asgi_sqla.session.recorded import recorded  # only an observed database pays for it

    return recorded(guard)


def events_for(database: Any, configuration: Any = None) -> Sequence[tuple[str, Callable[..., object]]]:
    """Return what to listen to on the engines of ``database``, as it is configured or will be."""
    if not observers_of(database, configuration):
        return ()
    from asgi_sqla.session.recording import EVENTS

    return EVENTS
