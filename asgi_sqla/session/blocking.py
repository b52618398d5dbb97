"""The warning about a sync session on an event loop, which names the line of the user.

Holds: whose code a frame runs, and what the warning says.
Must not know: when it is due.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import FrameType

import sqlalchemy
from sqlalchemy.orm import Session

from asgi_sqla.errors import BlockingSessionWarning

_PACKAGES = (str(Path(sqlalchemy.__file__).parent), str(Path(__file__).parent.parent))


def _is_users(frame: FrameType, session: Session) -> bool:
    """Return whether the code of ``frame`` is the user's: of no package, and not a method of their session class."""
    code, name = frame.f_code, frame.f_code.co_filename
    if name.startswith("<") and frame.f_back is not None:  # a wrapper that SQLAlchemy generated
        name = frame.f_back.f_code.co_filename
    own = code.co_varnames[:1] == ("self",) and frame.f_locals.get("self") is session
    return not (own or name.startswith(_PACKAGES))


def warn_of_blocking(session: Session) -> None:
    """Warn at the user's line that runs SQL with ``session``."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and not _is_users(frame, session):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        "a sync session ran SQL on a thread with a running event loop, so the loop and every request wait for it; "
        "write await db.async_session..., or make the handler a plain def",
        BlockingSessionWarning,
        stacklevel=level,
    )
