"""Which line of the application sends a statement.

Holds: whose code a frame runs, and the walk from the statement to the application.
Must not know: why it is asked, or what was sent.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
from asyncio import base_events, events, runners
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple, TypeAlias

import sqlalchemy
from greenlet import getcurrent  # type: ignore[import-untyped]

Line: TypeAlias = tuple[str, int]
"""The name of a file, and the number of a line."""
Spot: TypeAlias = tuple[CodeType, int]
"""A line that has yet to be looked up, which takes longer than to find it: some code, and its current instruction."""

_LIBRARY, _PACKAGE, _APPLICATION, _BOUNDARY = range(4)
_OURS = tuple(f"{Path(file).parent}/" for file in (sqlalchemy.__file__, Path(__file__).parent))
_PATHS = sysconfig.get_paths()
_PACKAGES = (_PATHS["purelib"], _PATHS["platlib"], "/usr/lib/python3/dist-packages")
_STANDARD = (_PATHS["stdlib"], _PATHS["platstdlib"], "<")
"""With code that was made from a string, such as SQLAlchemy's generated functions."""
_BOUNDARIES = frozenset(str(module.__file__) for module in (base_events, events, runners, threading))
"""Below these is the server, and no application."""
MOST_PLACES = 1000
"""Texts of statements whose place is remembered."""


class _Kinds(dict[str, int]):
    """What files are, by their names, each judged once."""

    def __missing__(self, name: str) -> int:
        kind = self[name] = _kind_of(name)
        return kind


_KINDS = _Kinds()
_BETWEEN = 4
"""Frames between this room and the caller of SQLAlchemy: that of the record, our listener, two of its Connection."""


def _kind_of(name: str) -> int:
    if name in _BOUNDARIES:
        return _BOUNDARY
    if name.startswith(_OURS):
        return _LIBRARY
    if name.startswith(_PACKAGES):  # before the standard library, which is around them
        return _PACKAGE
    return _LIBRARY if name.startswith(_STANDARD) else _APPLICATION


class Place(NamedTuple):
    """Where a text was sent from: so many frames up is the application, or the end of the greenlet's own stack."""

    depth: int
    code: CodeType
    inner: CodeType
    """The code that this frame had called."""
    ends: bool


_PLACES: dict[str, Place] = {}
"""By the texts of statements. Python code that looks at a frame pays more for it than for a call, so it looks at few.

A text that an application sends from two places has frames of another code there, or another depth, and all are looked
at. Only a hook of the application inside the same call, at the same depth, would be told as the line of that call.
"""


def spot_of_application(text: str) -> Spot | None:
    """Return the innermost place that belongs to the application, or else to an installed package.

    It must be called by a recorder, for the listener of the statement ``text``. An application that is installed itself
    is found too. SQLAlchemy runs an AsyncSession in a greenlet, whose stack goes on in that of its parent.
    """
    known = _PLACES.get(text)
    if known is not None:
        try:
            frame = sys._getframe(known.depth)
        except ValueError:  # this time the stack ends before
            return _walk(text)
        if frame.f_code is known.code and sys._getframe(known.depth - 1).f_code is known.inner:
            if not known.ends:
                return known.code, frame.f_lasti
            if frame.f_back is None:
                return _walk_parents(getcurrent(), None)
    return _walk(text)


def _walk(text: str) -> Spot | None:
    """Look at every frame of this greenlet, and remember where the text was sent from."""
    installed: Spot | None = None
    depth, kinds = _BETWEEN, _KINDS
    frame: FrameType = sys._getframe(depth + 1)
    inner = frame.f_code
    while (kind := kinds[frame.f_code.co_filename]) != _APPLICATION:
        if kind == _BOUNDARY:
            return installed
        if kind == _PACKAGE and installed is None:
            installed = frame.f_code, frame.f_lasti
        if frame.f_back is None:
            break
        depth, inner, frame = depth + 1, frame.f_code, frame.f_back
    if installed is None and depth > _BETWEEN:
        if len(_PLACES) >= MOST_PLACES:
            _PLACES.clear()
        _PLACES[text] = Place(depth, frame.f_code, inner, kind != _APPLICATION)
    if kind == _APPLICATION:
        return frame.f_code, frame.f_lasti
    return _walk_parents(getcurrent(), installed)


def _walk_parents(greenlet: Any, installed: Spot | None) -> Spot | None:
    """Look at the frames of the greenlets that wait for this one."""
    kinds = _KINDS
    while (greenlet := greenlet.parent) is not None:
        frame: FrameType | None = greenlet.gr_frame
        while frame is not None:
            code = frame.f_code
            if kind := kinds[code.co_filename]:
                if kind == _APPLICATION:
                    return code, frame.f_lasti
                if kind == _BOUNDARY:
                    return installed
                installed = installed or (code, frame.f_lasti)
            frame = frame.f_back
    return installed


def line_of(spot: Spot) -> Line:
    """Return the line of a place."""
    code, instruction = spot
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return code.co_filename, line
    return code.co_filename, code.co_firstlineno


def shown(line: Line | None) -> str | None:
    """Return ``line`` as a reader knows it: ``app/orders.py:41``, seen from the current directory."""
    return None if line is None else f"{_seen(line[0])}:{line[1]}"


@cache
def _seen(name: str) -> str:
    try:
        return str(Path(name).relative_to(Path.cwd()))
    except (OSError, ValueError):  # it is elsewhere, or the current directory is gone
        return name
