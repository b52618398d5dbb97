"""What a report costs: the same request without observers, and with every one that comes with the package.

Must not know: the peers. Run it by ``python -m benchmarks.observed``; ``--short`` judges no time.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from asgi_sqla import Database
from asgi_sqla.observe import failed_log, idle_in_transaction, repeated_statements, server_timing, slow_log
from benchmarks import raw, work
from benchmarks.databases import Place, postgresql, sqlite
from benchmarks.rounds import Times, interleave
from benchmarks.scale import SHORT

BUDGET = 1.10
"""How many times as long a used request may take with every observer."""
EVERY = (slow_log(1.0), repeated_statements(10), idle_in_transaction(1.0), failed_log, server_timing)
"""None of them has anything to log about these requests."""

SIZE = (60, 20)
"""Rounds of so many requests: both databases within two minutes."""

App = Callable[..., Awaitable[None]]
Key = tuple[str, str, bool]


async def measure(place: Place, size: tuple[int, int]) -> dict[Key, Times]:
    """Return the times by kind of session, statement, and whether it is observed."""
    apps: dict[Key, App] = {}
    databases: list[Database] = []
    for observed in (False, True):
        options: dict[str, Any] = {"observe": EVERY} if observed else {}
        database, sync_database = Database(place.url, **options), Database(place.sync_url, **options)
        databases += [database, sync_database]
        apps["async", "SELECT", observed] = raw.ours_async(database, work.read_async)
        apps["async", "INSERT", observed] = raw.ours_async(database, work.write_async)
        apps["sync", "SELECT", observed] = raw.ours_sync(sync_database, work.read)
        apps["sync", "INSERT", observed] = raw.ours_sync(sync_database, work.write)
    gc.freeze()  # else most of the time goes into collecting what was imported, before each turn
    try:
        return await interleave(apps, size)
    finally:
        gc.unfreeze()
        for one in databases:
            await one.async_dispose()


def main() -> int:
    """Print a table; 1 if a ratio of the medians is over the budget, which a short run does not judge.

    The least times are printed too. On a virtual machine one lucky round of one contender decides those.
    """
    short = "--short" in sys.argv[1:]
    logging.basicConfig(level=logging.WARNING)
    print(f"load of the machine: {os.getloadavg()[0]:.2f} on {os.cpu_count()} processors", flush=True)
    over = False
    for make in (sqlite, postgresql):
        with make() as place:
            found = asyncio.run(measure(place, SHORT.work if short else SIZE))
            for kind, statement, observed in found:
                if observed:
                    without, times = found[kind, statement, False], found[kind, statement, True]
                    ratio = times.over(without)
                    over = over or ratio.median > BUDGET
                    print(
                        f"{place.name:10} {kind:5} {statement}: {without.minimum:7.1f} -> {times.minimum:7.1f} µs, "
                        f"ratio {ratio.minimum:.3f} (median {ratio.median:.3f})",
                        flush=True,
                    )
    return int(over and not short)


if __name__ == "__main__":
    sys.exit(main())
