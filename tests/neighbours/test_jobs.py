"""Libraries that run jobs, and one that makes rows: none works for an order that was rolled back."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated, Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from support.servers import PATIENCE, Server, wait_until

from asgi_sqla import NoUnitOfWorkError, current_unit, session_scope
from neighbours.shops import Shop, client_of, neighbour, orders, served


@neighbour("procrastinate", "procrastinate")
def test_procrastinate(shop: Shop) -> None:
    """A job is there if and only if its order is, also when the job is all that a request writes."""
    block = shop.load("procrastinate")

    async def only_deliver(item: str, fails: bool) -> None:
        connection = await (await block.db.async_session.connection()).get_raw_connection()
        await block.deliver.configure(connection=connection.driver_connection).defer_async(item=item)
        if fails:
            current_unit().rollback_only()

    block.app.post("/deliveries", status_code=201)(only_deliver)

    async def create_tables() -> None:
        async with block.jobs.open_async():
            await block.jobs.schema_manager.apply_schema_async()

    async def work() -> None:
        async with block.jobs.open_async():
            await block.jobs.run_worker_async(wait=False, install_signal_handlers=False)

    asyncio.run(create_tables())
    with served(block.app) as client:
        assert orders(client, "tea", "tea") == [201, 500]
        for item, fails in (("rice", False), ("salt", True)):
            answer = client.post("/deliveries", params={"item": item, "fails": fails})
            assert answer.status_code == 201
    assert shop.rows("SELECT args ->> 'item' FROM procrastinate_jobs ORDER BY id") == ["tea", "rice"]
    asyncio.run(work())
    assert sorted(shop.items()) == ["delivery of rice", "delivery of tea", "tea"]


@neighbour("taskiq", "taskiq")
def test_taskiq(shop: Shop) -> None:
    """A job is sent after the COMMIT, and its dependency commits what it writes or rolls it back."""
    from taskiq import TaskiqMiddleware

    block = shop.load("taskiq")
    there: list[list[str]] = []

    class Watching(TaskiqMiddleware):  # type: ignore[misc]  # mypy does not look into taskiq
        def pre_send(self, message: Any) -> Any:
            there.append(shop.items())
            return message

    async def fail(session: Any) -> None:
        session.add(block.Order(item="never"))
        await session.flush()
        raise ZeroDivisionError

    @session_scope(block.db)
    async def too_late(session: Any) -> None:
        session.add(block.Order(item="never"))

    async def error_of(job: Any, dependency: Any) -> Any:
        job.__annotations__["session"] = Annotated[AsyncSession, block.TaskiqDepends(dependency)]
        sent = await block.broker.task(job).kiq()
        return (await sent.wait_result(timeout=PATIENCE)).error

    with Server(block.app) as server, client_of(server.url) as client:
        block.broker.add_middlewares(watching := Watching())
        assert orders(client, "tea", "tea") == [201, 500]
        assert wait_until(lambda: len(shop.items()) == 2)
        block.broker.middlewares.remove(watching)
        assert isinstance(server.call(error_of(fail, block.job_session)), ZeroDivisionError)
        error = server.call(error_of(too_late, block.db.get_async_session))
        server.call(block.broker.shutdown())
    assert shop.items() == ["tea", "delivery of tea"]
    assert there == [["tea"]]
    assert isinstance(error, NoUnitOfWorkError)
    assert "open it in the dependency" in str(error)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@neighbour("Celery", "celery")
def test_celery(shop: Shop) -> None:
    """A job is sent after the COMMIT, from a worker thread, and finds its order."""
    from celery.contrib.testing.worker import start_worker
    from celery.signals import before_task_publish

    there: list[tuple[list[str], bool]] = []

    def watch(**_: Any) -> None:
        there.append((shop.items(), threading.current_thread().name == "uvicorn"))

    shop.patch.setenv("BROKER_URL", "memory://")
    block = shop.load("Celery")

    async def create_async(item: str) -> None:
        block.db.async_session.add(order := block.Order(item=item))
        await block.db.async_session.flush()
        current_unit().on_commit(asyncio.to_thread, block.deliver.delay, order.id)

    block.app.post("/async", status_code=201)(create_async)
    before_task_publish.connect(watch)
    with start_worker(block.celery, perform_ping_check=False), served(block.app) as client:
        assert orders(client, "tea", "tea") == [201, 500]
        assert wait_until(lambda: len(shop.items()) == 2)
        assert client.post("/async", params={"item": "rice"}).status_code == 201
        assert wait_until(lambda: len(shop.items()) == 4)
    before_task_publish.disconnect(watch)
    assert shop.items() == ["tea", "delivery of tea", "rice", "delivery of rice"]
    assert there == [(["tea"], False), (["tea", "delivery of tea", "rice"], False)]


@neighbour("factory_boy", "factory-boy")
def test_factory_boy(shop: Shop) -> None:
    """What it makes is in the unit of its caller, and undone with it."""
    block = shop.load("factory_boy")
    block.test_orders()
    assert shop.items() == []
    with block.session_scope(block.db):
        block.OrderFactory(item="tea")
        assert shop.items() == []
    assert shop.items() == ["tea"]
