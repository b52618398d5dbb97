"""How much is measured: rounds, requests and readers, in full and in short."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    """The size of each measurement."""

    unused: tuple[int, int]
    """Rounds of so many requests, in process, on a raw application."""
    work: tuple[int, int]
    """The same with the database."""
    peers: tuple[int, int]
    """The same in the processes of the peers."""
    http: tuple[int, int]
    """The same over HTTP."""
    connections: int
    """How many clients send them at once."""
    readers: int
    """How many slow readers there are."""
    patience: float
    """How many seconds a new request waits at most."""
    memory: int
    """How many requests between two looks at the memory."""
    imports: int
    """How many interpreters are started."""


FULL = Scale((60, 2000), (120, 20), (30, 50), (12, 240), 16, 1000, 3.0, 10_000, 15)
SHORT = Scale((3, 200), (3, 10), (2, 5), (2, 32), 8, 50, 1.0, 900, 2)
