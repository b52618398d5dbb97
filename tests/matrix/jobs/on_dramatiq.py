"""dramatiq: threads, with ``asyncio.run`` for coroutine functions, or with dramatiq's own event loop."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO

from matrix.jobs import work

broker = RedisBroker(url=work.REDIS, namespace=work.QUEUE)
if work.WAY == "loop":
    broker.add_middleware(AsyncIO())
dramatiq.set_broker(broker)

JOBS = (*work.ASYNC_JOBS, *work.SYNC_JOBS) if work.WAY == "loop" else work.PLAIN_JOBS
ACTORS: dict[str, Any] = {
    job.__name__: dramatiq.actor(job, actor_name=job.__name__, max_retries=1, min_backoff=1) for job in JOBS
}


def main() -> None:
    """Enqueue the requested jobs."""
    for function, name, fate in work.orders():
        limit = {"time_limit": work.TIME_LIMIT * 1000, "max_retries": 0} if fate.startswith("cancelled") else {}
        ACTORS[function].send_with_options(args=(name, fate), **limit)


if __name__ == "__main__":
    main()
