"""How much is measured: rounds, requests and readers, in full and in short."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    """The size of each measurement."""

    unused: tuple[int, int]
    """Rounds of so many requests, in process, on a raw application."""
    work: tuple[int, int]
    """The same with the database."""
    far: tuple[int, int]
    """The same through the network."""
    peers: tuple[int, int]
    """Rounds of so many requests in the processes of the peers."""
    far_peers: tuple[int, int]
    """The same through the network."""
    http: tuple[int, int]
    """The same over HTTP."""
    connections: int
    """How many clients send them at once, and how many connections a pool has then."""
    readers: int
    """How many slow readers there are."""
    patience: float
    """How many seconds a new request waits at most."""
    databases: tuple[int, int]
    """Rounds of so many requests that use several databases."""
    at_once: tuple[int, ...]
    """How many units run at once."""
    messages: int
    """How many messages there are on one socket."""
    loops: int
    """How many event loops there are, one after the other."""
    memory: int
    """How many requests between two looks at the memory."""
    imports: int
    """How many interpreters are started."""
    everybody: bool
    """Whether the peers are measured in every way, and not only in one."""


FULL = Scale(
    unused=(60, 2000),
    work=(60, 50),
    far=(40, 25),
    peers=(30, 50),
    far_peers=(10, 30),
    http=(8, 640),
    connections=16,
    readers=1000,
    patience=3.0,
    databases=(60, 10),
    at_once=(1, 4, 16, 64, 250, 1000),
    messages=10_000,
    loops=1000,
    memory=10_000,
    imports=15,
    everybody=True,
)
SHORT = Scale(
    unused=(3, 200),
    work=(2, 5),
    far=(2, 5),
    peers=(2, 5),
    far_peers=(1, 5),
    http=(1, 32),
    connections=8,
    readers=50,
    patience=3.0,
    databases=(2, 5),
    at_once=(1, 16, 64),
    messages=100,
    loops=20,
    memory=900,
    imports=2,
    everybody=False,
)
