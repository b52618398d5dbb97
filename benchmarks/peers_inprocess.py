"""The peers in process: the same framework, the same handler, each in a process of its own.

Holds: rounds across processes.
Must not know: what any contender is.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contenders import Process
from benchmarks.databases import Place
from benchmarks.network import Network
from benchmarks.rounds import Times, times

PATHS = {"/unused": 200, "/read": 200, "/write": 201}


def measure(
    processes: list[Process], place: Place, size: tuple[int, int], paths: Sequence[str] = tuple(PATHS)
) -> dict[tuple[str, str], Times]:
    """Return what a request of each path takes each contender; every round is checked for its answers and rows."""
    rounds, requests = size
    taken: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for path in paths:
            for process in processes:
                microseconds = _round(process, place, path, requests)
                if number > 0:  # the first one warms up
                    taken.setdefault((process.contender.module, path), []).append(microseconds)
    return {key: times(rounds) for key, rounds in taken.items()}


def round_trips(processes: list[Process], network: Network, requests: int = 10) -> dict[tuple[str, str], float]:
    """Return how often the driver waits for the server in one request of each path, when all is prepared."""
    found = {}
    for process in processes:
        for path in PATHS:
            _round(process, network.place, path, requests)
            before = network.round_trips
            _round(process, network.place, path, requests)
            found[process.contender.module, path] = (network.round_trips - before) / requests
    return found


def _round(process: Process, place: Place, path: str, requests: int) -> float:
    before = place.rows() if path == "/write" else 0
    answer = process.do("round", path=path, requests=requests)
    if answer["statuses"] != {str(PATHS[path]): requests}:
        raise AssertionError(f"{process.contender} {path}: {answer['statuses']}")
    if path == "/write" and place.rows() != before + requests:
        raise AssertionError(f"{process.contender}: {place.rows() - before} rows of {requests}")
    return float(answer["wall"])
