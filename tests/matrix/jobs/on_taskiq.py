"""taskiq: a worker with Redis, or the broker that runs jobs in the process of their caller."""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq import AsyncBroker, InMemoryBroker, SimpleRetryMiddleware
from taskiq_redis import ListQueueBroker

from matrix.jobs import work


def make_broker() -> AsyncBroker:
    """Return the broker of this way of running."""
    if work.WAY == "memory":
        return InMemoryBroker()
    return ListQueueBroker(work.REDIS, queue_name=work.QUEUE)


broker = make_broker().with_middlewares(SimpleRetryMiddleware(default_retry_count=2, default_retry_label=True))
TASKS: dict[str, Any] = {
    job.__name__: broker.task(task_name=job.__name__)(job) for job in (*work.ASYNC_JOBS, *work.SYNC_JOBS)
}


async def main() -> None:
    """Enqueue the requested jobs."""
    await broker.startup()
    async for function, name, fate in work.async_orders():
        labels = {"timeout": work.TIME_LIMIT, "retry_on_error": False} if fate.startswith("cancelled") else {}
        await TASKS[function].kicker().with_labels(**labels).kiq(name, fate)
    if isinstance(broker, InMemoryBroker):
        await broker.wait_all()
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
