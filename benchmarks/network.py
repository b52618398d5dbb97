"""A network before PostgreSQL: each way takes as long as asked, and round trips are counted.

Holds: how its process is started and asked, and what a bare round trip takes through it.
Must not know: what is measured through it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import make_url

from benchmarks.contenders import ROOT
from benchmarks.databases import Place
from benchmarks.rounds import Times

ONE_WAY = 250
"""Microseconds: half a millisecond for a round trip, as between two machines of one data centre."""


class Network:
    """A running proxy, and the database that is reached through it."""

    def __init__(self, place: Place, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._process = process
        self.place = place.through(int(process.stdout.readline()))

    @property
    def round_trips(self) -> int:
        """How often a driver has waited for the server."""
        return self._counted()[0]

    @property
    def connections(self) -> int:
        """How many connections there have been."""
        return self._counted()[1]

    def _counted(self) -> tuple[int, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        round_trips, connections = self._process.stdout.readline().split()
        return int(round_trips), int(connections)


@contextmanager
def network(place: Place, one_way: int = ONE_WAY) -> Iterator[Network]:
    """Put a network before the server of ``place``, in a process of its own, whose work is not the contender's."""
    port = make_url(place.url).port
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.proxy", str(port), str(one_way)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield Network(place, process)
    finally:
        process.kill()
        process.communicate()


class Bare(NamedTuple):
    """What a ``SELECT 1`` takes libpq, with no Python in between, in microseconds."""

    direct: Times
    through: Times


def bare(near: Place, far: Place, statements: int) -> Bare:
    """Measure it on both ways to the server, in turn."""
    import psycopg  # contenders run where it is not installed

    taken: tuple[list[float], list[float]] = ([], [])
    urls = [make_url(one.sync_url).set(drivername="postgresql").render_as_string(False) for one in (near, far)]
    with psycopg.connect(urls[0]) as first, psycopg.connect(urls[1]) as second:
        for _ in range(statements):
            for connection, microseconds in zip((first, second), taken, strict=True):
                start = time.perf_counter()
                connection.pgconn.exec_(b"SELECT 1")
                microseconds.append((time.perf_counter() - start) * 1e6)
    return Bare(*(Times(min(one), statistics.median(one)) for one in taken))
