"""Marks: what a later read has to see, as a text that a client or a queue carries to it.

A mark names the databases that were written. Each has either the time until which its replicas may lag, or the WAL
position of its primary after the COMMIT. It comes back from a client, so nothing in it is trusted: all that it can do
is to send a read to the primary.

Holds: the mark and its text.
Must not know: units, how a mark travels, or how a position is asked for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import NamedTuple

from asgi_sqla.engine.positions import NEVER

LONGEST = 512
"""How many characters a mark may have."""

_ENTRY = r"([0-9a-f]{8})(?:t([0-9a-f]{1,16})|w([0-9a-f]{1,16}))"


class Entry(NamedTuple):
    """What a mark says of one database: one of the two."""

    until: int | None = None
    """The time until which its replicas may lag, in milliseconds since 1970."""
    position: int | None = None
    """The WAL position that a replica must have replayed."""


class Mark(NamedTuple):
    """The databases that were written, by their keys; None if nobody can tell which."""

    entries: Mapping[str, Entry] | None

    def __str__(self) -> str:
        said = (f"{key}{_written(entry)}" for key, entry in (self.entries or {}).items())
        text = ".".join(said)
        return text if self.entries is not None and len(text) <= LONGEST else "primary"

    def followed_by(self, later: Mark) -> Mark:
        """Return a mark for what either of the two was made for; one that cannot be read is not handed on."""
        merged = dict(self.entries or {})
        for key, entry in (later.entries or {}).items():
            before = merged.get(key, entry)
            if entry.position is not None and before.position is not None and before.position > entry.position:
                entry = before  # two databases with the same name
            merged[key] = entry
        return Mark(merged)

    def position(self, key: str) -> int | None:
        """Return what a replica of the database must have replayed; None if any will do, ``NEVER`` if none will."""
        if self.entries is None:
            return NEVER
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry.until is not None:
            return NEVER if entry.until > _now() else None
        return entry.position


PRIMARY = Mark(None)
"""A mark that nobody can read: its owner reads from the primary."""


def parse(text: str) -> Mark:
    """Return the mark that ``text`` is, or ``PRIMARY`` if it is none."""
    found = [re.fullmatch(_ENTRY, part) for part in text.split(".")] if len(text) <= LONGEST else [None]
    entries: dict[str, Entry] = {}
    for one in found:
        if one is None:
            return PRIMARY
        key, until, position = one.groups()
        entries[key] = Entry(int(until, 16)) if until else Entry(position=int(position, 16))
    return Mark(entries)


def lasting(seconds: float) -> Entry:
    """Return an entry for a database whose replicas may lag for ``seconds`` from now."""
    return Entry(until=_now() + round(seconds * 1000))


def _written(entry: Entry) -> str:
    return f"t{entry.until:x}" if entry.position is None else f"w{entry.position:x}"


def _now() -> int:
    return int(time.time() * 1000)
