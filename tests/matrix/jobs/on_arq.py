"""The worker arq: coroutine functions only, so plain ones use ``asyncio.to_thread``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from arq import Retry, create_pool, func
from arq.connections import RedisSettings

from matrix.jobs import work


def coroutine(job: Callable[[str, str], Any]) -> Callable[..., Coroutine[Any, Any, None]]:
    """Return ``job`` as arq calls it; a refused job is retried once."""

    async def run(context: dict[str, Any], name: str, fate: str) -> None:
        try:
            if job in work.ASYNC_JOBS:
                await job(name, fate)
            else:
                await asyncio.to_thread(job, name, fate)
        except work.Refused as exc:
            if context["job_try"] == 1:
                raise Retry(defer=0) from exc
            raise

    return run


class WorkerSettings:
    """What the ``arq`` command reads."""

    redis_settings = RedisSettings.from_dsn(work.REDIS)
    queue_name = work.QUEUE
    poll_delay = 0.1
    job_timeout = work.TIME_LIMIT
    functions = [func(coroutine(job), name=job.__name__) for job in (*work.ASYNC_JOBS, *work.SYNC_JOBS)]  # noqa: RUF012  # arq's way


async def main() -> None:
    """Enqueue the requested jobs."""
    redis = await create_pool(WorkerSettings.redis_settings, default_queue_name=work.QUEUE)
    async for function, name, fate in work.async_orders():
        await redis.enqueue_job(function, name, fate, _job_id=f"{work.QUEUE}-{name}")
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(main())
