"""Celery: plain functions in forked processes or in threads, and ``asyncio.run`` for coroutine functions."""

from __future__ import annotations

from typing import Any

from celery import Celery

from matrix.jobs import work

app = Celery("jobs", broker=work.REDIS)
app.conf.update(
    broker_transport_options={"global_keyprefix": work.QUEUE},
    task_default_queue=work.QUEUE,
    task_ignore_result=True,
    worker_hijack_root_logger=False,
)
TASKS: dict[str, Any] = {
    job.__name__: app.task(
        job, name=job.__name__, autoretry_for=(work.Refused,), max_retries=1, default_retry_delay=0, retry_backoff=False
    )
    for job in work.PLAIN_JOBS
}


def main() -> None:
    """Enqueue the requested jobs."""
    for function, name, fate in work.orders():
        limit = {"soft_time_limit": work.TIME_LIMIT} if fate.startswith("cancelled") else {}
        TASKS[function].apply_async((name, fate), **limit)


if __name__ == "__main__":
    main()
