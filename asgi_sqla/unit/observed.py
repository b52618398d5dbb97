"""The part of a unit of work that observers see, if one of its databases has any.

Holds: what kind of unit it is, and where the facts for its report are.
Must not know: what a report is: the room that does is imported for a unit that needs one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:

    class Observing(Protocol):
        """The facts of one unit for its report."""

        def note_end(self, commit: bool, cause: BaseException | None, failure: BaseException | None) -> None:
            """Record how the work of the unit ended."""

        def end(self, unit: Any, *, retried: bool = False) -> None:
            """Give the report to the observers; if the unit is ``retried``, keep it for the next attempt."""

        def following(self) -> Observing:
            """Return that of the next attempt."""
            ...

        def attach(self, unit: Any) -> None:
            """Belong to ``unit`` from now on."""


class Observed:
    """What a unit of work is to its observers."""

    _kind: Literal["request", "message", "scope", "callback"] = "scope"
    _observation: Observing | None = None
    """The facts for its report; None unless it got a session of a database with observers."""

    def _observe(self, database: object) -> None:
        """Make a report of this unit, for the observers of ``database`` too."""
        from asgi_sqla.unit.observation import observe  # only an observed unit pays for it

        observe(self, database)
        setattr(Observed, "_observe", observe)  # noqa: B010  # asked for each time, the import costs ten times the call
