"""The observers of a unit, and what they need of it.

Most units concern no observer: they were fast, repeated nothing and did not fail. The observers of the package say
beforehand what they look for, so that no report is made of such a unit; every other observer gets one of each unit.

Holds: what concerns an observer, and which of them have headers for a response.
Must not know: units, or how a report is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from asgi_sqla.session.observed import observers_of

Function = TypeVar("Function", bound=Callable[..., object])

NEVER = float("inf")


class Limits(NamedTuple):
    """From where on a unit concerns an observer; one that is below all of them does not."""

    seconds: float = NEVER
    """How long it took, with its earlier attempts."""
    idle: float = NEVER
    """How long one of its connections was held at a stretch, while nothing was asked of it."""
    statements: float = NEVER
    """How many statements one of its sessions sent."""
    failures: bool = False
    """Whether it concerns the observer that a commit failed or is in doubt."""

    def and_of(self, other: Limits) -> Limits:
        """Return the limits of two observers."""
        return Limits(
            min(self.seconds, other.seconds),
            min(self.idle, other.idle),
            min(self.statements, other.statements),
            self.failures or other.failures,
        )


_limits: WeakKeyDictionary[object, Limits] = WeakKeyDictionary()


def concerned(limits: Limits) -> Callable[[Function], Function]:
    """Return a decorator for an observer that does nothing about a unit below its ``limits``."""

    def note(observer: Function) -> Function:
        _limits[observer] = limits
        return observer

    return note


def limits_of(observer: object) -> Limits | None:
    """Return what concerns ``observer``; None if every unit does."""
    try:
        return _limits.get(observer)
    except TypeError:  # it cannot be hashed, or referenced weakly
        return None


class Panel:
    """The observers of a unit, each once."""

    def __init__(self, observers: Iterable[Any], source: tuple[object, object] | None = None) -> None:
        self.observers: tuple[Any, ...] = tuple({id(one): one for one in observers}.values())
        self.source: tuple[object, object] | None = source
        """The configuration of a database and what was added to it, which these observers are from."""
        self.heads: tuple[tuple[Any, bool], ...] = tuple(
            [(one, limits_of(one) is not None) for one in self.observers if hasattr(one, "headers")]
        )
        """Those that have headers for a response, and whether numbers are enough for one: it is the package's own."""
        self.limits: Limits | None = Limits()
        """From where on a unit concerns any of them; None if each unit does."""
        for found in map(limits_of, self.observers):
            self.limits = None if found is None or self.limits is None else self.limits.and_of(found)

    def joined(self, other: Panel) -> Panel:
        """Return both together."""
        return self if other is self else Panel((*self.observers, *other.observers))


def panel_of(database: Any) -> Panel:
    """Return the observers of ``database``, as it is configured and observed now."""
    panel: Panel | None = getattr(database, "_panel", None)  # kept on it, as any other place takes longer to look at
    source = database._configuration, database._added
    if panel is None or panel.source is None or panel.source[0] is not source[0] or panel.source[1] is not source[1]:
        panel = database._panel = Panel(observers_of(database), source)
    return panel
