"""APScheduler 3: on an event loop, or in a pool of threads with ``asyncio.run`` for coroutine functions."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler

from matrix.jobs import work


async def on_loop() -> None:
    """Schedule the requested jobs on this event loop; a shutdown cancels running ones."""
    jobs = {job.__name__: job for job in (*work.ASYNC_JOBS, *work.SYNC_JOBS)}
    scheduler = AsyncIOScheduler()
    scheduler.start()
    async for function, name, fate in work.async_orders():
        if function == "cancel":
            scheduler.shutdown()
            scheduler = AsyncIOScheduler()
            scheduler.start()
        else:
            scheduler.add_job(jobs[function], args=(name, fate), misfire_grace_time=None)
    scheduler.shutdown()


def in_threads() -> None:
    """Schedule the requested jobs in a pool of threads."""
    jobs = {job.__name__: job for job in work.PLAIN_JOBS}
    scheduler = BackgroundScheduler()
    scheduler.start()
    for function, name, fate in work.orders():
        scheduler.add_job(jobs[function], args=(name, fate), misfire_grace_time=None)
    scheduler.shutdown()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        if work.WAY == "loop":
            asyncio.run(on_loop())
        else:
            in_threads()
