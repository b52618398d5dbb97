"""Over HTTP: uvicorn with one worker, a load generator in a second process, and the slow readers.

Holds: rounds over HTTP, and the run that shows what a connection is held for.
Must not know: what any contender is.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.contenders import CONTENDERS, ROOT, Process, running
from benchmarks.databases import Place
from benchmarks.peers_inprocess import PATHS
from benchmarks.scale import Scale


class Load(NamedTuple):
    """What a contender did under load, over all rounds."""

    rate: float
    """Requests per second, the median of the rounds."""
    best: float
    """Requests per second in the best round."""
    p50: float
    """Microseconds."""
    p99: float
    """Microseconds."""


class Wait(NamedTuple):
    """How a contender served new requests behind slow readers."""

    seconds: float | None
    """How long the slowest of the new requests waited; None where it was not answered in time or not well."""
    started: int
    """How many of the slow readers had been answered at all."""


@contextmanager
def generator() -> Iterator[Any]:
    """Run the load generator; yields a function that has it do something."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.traffic"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def do(command: str, **arguments: Any) -> Any:
        print(json.dumps({"do": command, **arguments}), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())  # type: ignore[union-attr]  # seen above

    try:
        yield do
    finally:
        process.kill()
        process.wait()


def load(processes: list[Process], place: Place, scale: Scale) -> dict[tuple[str, str], Load]:
    """Return what each contender does under load; every round is checked for its answers and rows."""
    rounds, requests = scale.http
    ports = {process: process.do("serve") for process in processes}
    rates: dict[tuple[str, str], list[float]] = {}
    latencies: dict[tuple[str, str], list[float]] = {}
    with generator() as do:
        for number in range(rounds + 1):
            for path in PATHS:
                for process, port in ports.items():
                    before = place.rows()
                    answer = do("load", port=port, path=path, requests=requests, connections=scale.connections)
                    _check(process, place, path, answer["statuses"], before, requests)
                    if number > 0:  # the first one warms up
                        key = process.contender.module, path
                        rates.setdefault(key, []).append(answer["rate"])
                        latencies.setdefault(key, []).extend(answer["latencies"])
    return {key: _load(rates[key], latencies[key]) for key in rates}


def _load(rates: list[float], latencies: list[float]) -> Load:
    percentiles = statistics.quantiles(latencies, n=100)
    return Load(statistics.median(rates), max(rates), percentiles[49], percentiles[98])


def _check(process: Process, place: Place, path: str, statuses: Any, before: int, requests: int) -> None:
    if statuses != {str(PATHS[path]): requests}:
        raise AssertionError(f"{process.contender} {path} over HTTP: {statuses}")
    expected = before + (requests if path == "/write" else 0)
    deadline = time.monotonic() + 1
    while place.rows() != expected:  # some answer before they commit
        if time.monotonic() > deadline:
            raise AssertionError(f"{process.contender} {path} over HTTP: {place.rows()} rows, not {expected}")
        time.sleep(0.01)


def slow_readers(place: Place, venvs: Path, scale: Scale) -> dict[str, Wait]:
    """Return how long a new request waits behind slow readers, with a pool of 5 connections."""
    waits = {}
    with generator() as do:
        for contender in CONTENDERS:
            with running(place, venvs, [contender], pool_size=5, max_overflow=0, pool_timeout=30) as (process,):
                answer = do("wait_behind", port=process.do("serve"), readers=scale.readers, patience=scale.patience)
            waits[contender.module] = _wait(answer)
    return waits


def _wait(answer: Any) -> Wait:
    good = [seconds if status in (200, 201) else None for seconds, status in answer["waits"]]
    worst = None if None in good else max(one for one in good if one is not None)
    return Wait(worst, answer["started"])
