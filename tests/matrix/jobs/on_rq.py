"""The worker rq: a fork for each job, or all jobs in one process, and ``asyncio.run`` for coroutine functions.

(rq would run coroutine functions directly, but on event loops that it does not close. At a time limit it does not let
them unwind, so the job's ``async with`` would never be left.)
"""

from __future__ import annotations

import asyncio
import sys

from redis import Redis
from rq import Queue, Retry, SimpleWorker, Worker

from matrix.jobs import work

connection = Redis.from_url(work.REDIS)
queue = Queue(work.QUEUE, connection=connection)


def async_with(name: str, fate: str) -> None:
    """Run the coroutine; rq wants functions that it can import."""
    asyncio.run(work.async_with(name, fate))


def async_decorator(name: str, fate: str) -> None:
    """Run the coroutine; rq wants functions that it can import."""
    asyncio.run(work.async_decorator(name, fate))


def main() -> None:
    """Enqueue the requested jobs."""
    for function, name, fate in work.orders():
        module = "on_rq" if function.startswith("async") else "work"
        again, limit = (None, work.TIME_LIMIT) if fate.startswith("cancelled") else (Retry(max=1), None)
        queue.enqueue(
            f"matrix.jobs.{module}.{function}",
            name,
            fate,
            job_id=f"{work.QUEUE}-{name}",
            retry=again,
            job_timeout=limit,
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        kind = SimpleWorker if work.WAY == "simple" else Worker
        kind([queue], connection=connection).work(logging_level="WARNING", with_scheduler=False)
    else:
        main()
