"""The stage of a unit's life.

Holds: the stages, and what a unit says of its own.
Must not know: what is done at a stage.
"""

from __future__ import annotations

from enum import Enum


class Stage(Enum):
    """The stage of a unit's life."""

    OPEN = "it gives out sessions"
    ENDING = "its sessions are being ended: a flush may still register callbacks, and nobody gets a new session"
    ENDED = "it is over"


OPEN, ENDING, ENDED = Stage.OPEN, Stage.ENDING, Stage.ENDED


class Staged:
    """The part of a unit of work that has a stage."""

    _stage: Stage = OPEN

    @property
    def ended(self) -> bool:
        """Whether it has ended, and its sessions are closed for good."""
        return self._stage is ENDED

    def _is_settling(self) -> bool:
        """Return whether its transactions are ending before it does; the calls of others wait meanwhile."""
        return False

    def _may_stream(self) -> bool:
        """Return whether another task may be making the body of its response already."""
        return False
