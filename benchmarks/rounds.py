"""Rounds: every contender takes its turn in each, so that what disturbs one disturbs all.

Holds: what a set of rounds comes to. A harness such as pyperf measures one contender after the
other, and on a shared machine that compares the hours of the day; so the loop is our own.
Must not know: what is measured.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from benchmarks.calls import Client


class Times(NamedTuple):
    """What many rounds took, each in microseconds for one request."""

    minimum: float
    median: float

    def over(self, other: Times) -> Times:
        """Return the ratio to ``other``."""
        return Times(self.minimum / other.minimum, self.median / other.median)

    def less(self, other: Times) -> Times:
        """Return what is added to ``other``."""
        return Times(self.minimum - other.minimum, self.median - other.median)


def times(rounds: list[float]) -> Times:
    """Return the minimum and the median of ``rounds``."""
    return Times(min(rounds), statistics.median(rounds))


async def interleave(
    apps: Mapping[Any, Callable[..., Awaitable[None]]],
    size: tuple[int, int],
    *,
    check: Callable[[Any, int], None] | None = None,
) -> dict[Any, Times]:
    """Call each of ``apps`` in turn, in rounds; after each turn ``check(key, requests)`` looks at what was done."""
    with frozen():  # or to collect before each turn would take longer than most turns
        return await _rounds(apps, size, check)


@contextmanager
def frozen() -> Iterator[None]:
    """Hide what there is from the collector, as an application does that has started."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _rounds(
    apps: Mapping[Any, Callable[..., Awaitable[None]]],
    size: tuple[int, int],
    check: Callable[[Any, int], None] | None,
) -> dict[Any, Times]:
    rounds, requests = size
    taken: dict[Any, list[float]] = {key: [] for key in apps}
    for number in range(rounds + 1):
        order = list(apps.items())
        random.shuffle(order)  # or one would always come after the same other, and find its caches
        for key, app in order:
            gc.collect()
            microseconds = await _turn(app, requests)
            if number > 0:  # the first one warms up
                taken[key].append(microseconds)
            if check is not None:
                check(key, requests)
    return {key: times(rounds) for key, rounds in taken.items()}


async def _turn(app: Callable[..., Awaitable[None]], requests: int) -> float:
    client = Client(app)
    send, receive = _drop, _nothing
    scopes = [client.scope("/read") for _ in range(requests)]
    start = time.perf_counter()
    for scope in scopes:
        await app(scope, receive, send)
    return (time.perf_counter() - start) / requests * 1e6


async def _drop(_message: Any) -> None:
    """Send nowhere."""


async def _nothing() -> Any:
    """Receive nothing."""
