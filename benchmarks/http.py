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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.contenders import ROOT, Contender, Process, running
from benchmarks.databases import Place
from benchmarks.peers_inprocess import PATHS
from benchmarks.scale import Scale

PLAIN, FROZEN = "as it is", "frozen"
"""Whether a contender has called ``gc.freeze()`` when it had started."""


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
    collections: float
    """How often the collector ran, of whatever generation, in 1,000 requests."""


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


def load(
    processes: list[Process], place: Place, scale: Scale, turns: Sequence[tuple[str, str]]
) -> dict[tuple[str, str, str], Load]:
    """Return what each contender does under load; every round is checked for its answers and rows.

    Each turn is a path, and whether the contender is frozen.
    """
    rounds, requests = scale.http
    ports = {process: process.do("serve") for process in processes}
    seen: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with generator() as do:
        for number in range(rounds + 1):
            for path, state in turns:
                for process, port in ports.items():
                    before = place.rows()
                    asked = {"port": port, "path": path, "requests": requests, "connections": scale.connections}
                    answer = _loaded(process, state, partial(do, "load", **asked))
                    _check(process, place, path, answer["statuses"], before, requests)
                    if number > 0:  # the first one warms up
                        seen.setdefault((process.contender.module, path, state), []).append(answer)
    return {key: _load(answers, requests) for key, answers in seen.items()}


def _loaded(process: Process, state: str, run: Callable[[], Any]) -> Any:
    """Add to the answer how often the collector ran meanwhile."""
    if state == FROZEN:
        process.do("freeze")
    before = sum(process.do("collections"))
    answer = run()
    answer["collections"] = sum(process.do("collections")) - before
    process.do("unfreeze")
    return answer


def _load(answers: list[dict[str, Any]], requests: int) -> Load:
    rates = [one["rate"] for one in answers]
    percentiles = statistics.quantiles([each for one in answers for each in one["latencies"]], n=100)
    collections = sum(one["collections"] for one in answers) / len(answers) / requests * 1000
    return Load(statistics.median(rates), max(rates), percentiles[49], percentiles[98], collections)


def _check(process: Process, place: Place, path: str, statuses: Any, before: int, requests: int) -> None:
    if statuses != {str(PATHS[path]): requests}:
        raise AssertionError(f"{process.contender} {path} over HTTP: {statuses}")
    expected = before + (requests if path == "/write" else 0)
    deadline = time.monotonic() + 10
    while place.rows() != expected:  # some answer before they commit
        if time.monotonic() > deadline:
            raise AssertionError(f"{process.contender} {path} over HTTP: {place.rows()} rows, not {expected}")
        time.sleep(0.01)


def slow_readers(place: Place, venvs: Path, scale: Scale, contenders: Sequence[Contender]) -> dict[str, Wait]:
    """Return how long a new request waits behind slow readers, with a pool of 5 connections."""
    waits = {}
    with generator() as do:
        for contender in contenders:
            with running(place, venvs, [contender], pool_size=5, max_overflow=0, pool_timeout=30) as (process,):
                answer = do("wait_behind", port=process.do("serve"), readers=scale.readers, patience=scale.patience)
            waits[contender.module] = _wait(answer)
    return waits


def _wait(answer: Any) -> Wait:
    good = [seconds if status in (200, 201) else None for seconds, status in answer["waits"]]
    worst = None if None in good else max(one for one in good if one is not None)
    return Wait(worst, answer["started"])
