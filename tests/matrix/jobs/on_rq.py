"""rq: a fork for each job, or every job in the worker's own process; coroutine functions as they are."""

from __future__ import annotations

import sys

from redis import Redis
from rq import Queue, Retry, SimpleWorker, Worker

from matrix.jobs import work

JOBS = {job.__name__: job for job in (*work.ASYNC_JOBS, *work.SYNC_JOBS)}
connection = Redis.from_url(work.REDIS)
queue = Queue(work.QUEUE, connection=connection)


def main() -> None:
    """Hand on what is asked for."""
    for function, name, fate in work.orders():
        again, limit = (None, work.TIME_LIMIT) if fate.startswith("cancelled") else (Retry(max=1), None)
        queue.enqueue(JOBS[function], name, fate, job_id=f"{work.QUEUE}-{name}", retry=again, job_timeout=limit)


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        kind = SimpleWorker if work.WAY == "simple" else Worker
        kind([queue], connection=connection).work(logging_level="WARNING", with_scheduler=False)
    else:
        main()
