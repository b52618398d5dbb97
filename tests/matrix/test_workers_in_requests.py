"""Jobs that run in the process, and in the context, of the request that sends them."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from typing import Any

import pytest
from support.asgi import Call, respond
from support.databases import Backend, Item
from support.services import missing

from asgi_sqla import Database, SQLAlchemyMiddleware, UnitOfWorkEndedError, session_scope

pytestmark = pytest.mark.parametrize("backend", ["asyncpg"], indirect=True)
TABLE = "Workers, in a request"


def package(name: str) -> Any:
    """Return a worker's package."""
    if importlib.util.find_spec(name) is None:
        missing(f"{name} is not installed; the nox session matrix has it")
    return importlib.import_module(name)


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.cell(TABLE, "taskiq in memory", "{kind}")
async def test_a_taskiq_job_has_a_unit_of_its_own(database: Database, backend: Backend, kind: str) -> None:
    """The job's row stays, and the row of the failed request that sent it does not."""
    broker = package("taskiq").InMemoryBroker()

    async def write_async() -> None:
        async with session_scope(database) as session:
            session.add(Item(name="job"))

    def write() -> None:
        with session_scope(database) as session:
            session.add(Item(name="job"))

    job = broker.task(task_name="write")(write_async if kind == "async" else write)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="request"))
        await database.async_session.flush()
        result = await (await job.kiq()).wait_result(timeout=10)
        result.raise_for_error()
        await respond(send, 422)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    await broker.shutdown()

    assert (call.raised, call.status, backend.names()) == (None, 422, ["job"])


@pytest.mark.cell(TABLE, "taskiq in memory", "without a scope")
async def test_a_taskiq_job_that_outlives_its_request_gets_an_error(database: Database, backend: Backend) -> None:
    """Without its own scope it finds the inherited unit ended, and nothing is reopened."""
    broker = package("taskiq").InMemoryBroker()
    over = asyncio.Event()

    async def late() -> None:
        await over.wait()
        database.async_session.add(Item(name="late"))

    job = broker.task(task_name="late")(late)
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="request"))
        sent.append(await job.kiq())
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    over.set()
    result = await sent[0].wait_result(timeout=10)
    await broker.shutdown()

    assert isinstance(result.error, UnitOfWorkEndedError)
    assert (call.status, backend.names()) == (201, ["request"])


@pytest.mark.cell(TABLE, "Celery eager", "sync")
async def test_an_eager_celery_job_has_a_unit_of_its_own(database: Database, backend: Backend) -> None:
    """The job's row stays, and the row of the failed request that ran it does not."""
    celery = package("celery").Celery("eager", broker="memory://", set_as_current=False)
    celery.conf.update(task_always_eager=True, task_eager_propagates=True)

    @celery.task(name="write")  # type: ignore[untyped-decorator]  # Celery has no types
    def write() -> None:
        with session_scope(database) as session:
            session.add(Item(name="job"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="request"))
        await database.async_session.flush()
        write.delay()
        await respond(send, 422)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.status, backend.names()) == (None, 422, ["job"])
