"""What the fuzzer has found, each in the smallest program that shows it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import anyio
import pytest
from fuzz.statements import SERIALIZATION, on_driver
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.orm import Session
from support.asgi import Call, respond
from support.databases import Backend, Item
from support.marks import KINDS, on_postgresql
from support.rivals import perform, rows, trouble

from asgi_sqla import Database, DiscardedWorkError, SQLAlchemyMiddleware, current_unit, session_scope


def write(session: Session, name: str) -> None:
    session.execute(insert(Item).values(name=name))


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("past", ["text", "driver"])
async def test_the_end_of_a_transaction_after_its_first_statement_is_noticed(
    backend: Backend, database: Database, kind: str, past: str
) -> None:
    """No later statement is sent in autocommit, where a verdict could not undo it."""

    def work(session: Session) -> None:
        if past == "text":
            session.execute(text("ROLLBACK"))
        else:
            on_driver(session, "ROLLBACK")
        with suppress(PendingRollbackError):
            write(session, "in autocommit")

    async def app(_scope: object, _receive: object, send: object) -> None:
        await perform(database, kind, work)
        await respond(send, 404)

    await Call(SQLAlchemyMiddleware(app, database))()
    assert backend.names() == []


@pytest.mark.filterwarnings("ignore:transaction already deassociated from connection")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_commit_on_the_connection_forbids_a_retry(backend: Backend, database: Database, kind: str) -> None:
    """``connection.commit()`` is noticed before it is sent, so even an interrupted one is not repeated."""
    attempts = []

    def work(session: Session) -> None:
        attempts.append(1)
        write(session, f"attempt {len(attempts)}")
        session.connection().commit()
        with suppress(PendingRollbackError):
            session.execute(text("SELECT 1"))  # SQLAlchemy begins again on the connection
        session.rollback()
        if backend.is_postgresql:
            session.execute(text(SERIALIZATION))
        else:
            trouble(backend, session)

    @session_scope(database, retries=2)
    async def job() -> None:
        await database.async_session.run_sync(work)

    @session_scope(database, retries=2)
    def sync_job() -> None:
        work(database.session)

    before = rows(backend)
    with pytest.raises(DBAPIError):
        await job() if kind == "async" else sync_job()
    assert [name for name in backend.names() if name not in before] == ["attempt 1"]


async def test_a_scope_that_is_cancelled_in_its_commit_says_what_was_kept(
    backend: Backend, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caller gets the cancellation, and the log a line about the committed rows."""
    ending = asyncio.Event()

    async def job() -> None:
        async with session_scope(database) as session:
            await session.execute(insert(Item).values(name="kept"))
            ending.set()

    task = asyncio.create_task(job())
    await ending.wait()
    task.cancel()
    with caplog.at_level(logging.WARNING, "asgi_sqla"), pytest.raises(asyncio.CancelledError):
        await task
    assert backend.names() == ["kept"]
    assert "cancelled while it ended, but some of its work was committed" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
async def test_discarded_work_hides_no_transaction_that_has_ended(
    backend: Backend, database: Database, kind: str
) -> None:
    """After ``close()`` and a textual ROLLBACK no statement is sent in autocommit."""

    def work(session: Session) -> None:
        write(session, "discarded")
        session.close()
        session.execute(text("SELECT 1"))
        session.execute(text("ROLLBACK"))
        with suppress(PendingRollbackError):
            write(session, "in autocommit")

    async def app(_scope: object, _receive: object, send: object) -> None:
        await perform(database, kind, work)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert (call.starts, backend.names()) == ([500], [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_nested_scope_whose_flush_failed_does_not_end_silently(
    backend: Backend, database: Database, kind: str
) -> None:
    """SQLAlchemy has rolled its savepoint back, with everything in it, and would leave the block without an error."""

    def work(session: Session) -> None:
        write(session, "first")
        session.add(Item(name=None))
        with suppress(DBAPIError):
            session.flush()

    async with session_scope(database) as outer:
        await outer.execute(insert(Item).values(name="outside"))
        if kind == "async":
            with pytest.raises(PendingRollbackError):
                async with session_scope(database, propagation="nested") as session:
                    await session.run_sync(work)
    if kind == "sync":
        nested = session_scope(database, propagation="nested")
        with session_scope(database), pytest.raises(PendingRollbackError), nested as sync_session:
            work(sync_session)
    assert backend.names() == ["outside"]


@pytest.mark.parametrize("call", ["close", "reset", "invalidate"])
@pytest.mark.parametrize("kind", KINDS)
async def test_closing_does_not_repair_a_failed_flush(
    backend: Backend, database: Database, kind: str, call: str
) -> None:
    """SQLAlchemy has rolled back the earlier writes, and only ``rollback()`` shows that the application knows."""

    def work(session: Session) -> None:
        write(session, "before")
        session.add(Item(name=None))
        with suppress(DBAPIError):
            session.flush()
        getattr(session, call)()
        write(session, "after")

    async def app(_scope: object, _receive: object, send: object) -> None:
        await perform(database, kind, work)
        await respond(send, 201)

    request = await Call(SQLAlchemyMiddleware(app, database))()
    assert (request.starts, type(request.raised), backend.names()) == ([500], DiscardedWorkError, [])


async def test_a_cancelled_commit_is_logged_after_a_commit_of_the_application(
    backend: Backend, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The application's own commit is intended, but the unit's commit after it must be logged."""

    async def app(_scope: object, _receive: object, send: object) -> None:
        await database.async_session.execute(insert(Item).values(name="by the application"))
        await database.async_session.commit()
        await database.async_session.execute(insert(Item).values(name="by the unit"))
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        await respond(send, 201)

    with caplog.at_level(logging.WARNING, "asgi_sqla"):
        call = await asyncio.create_task(Call(SQLAlchemyMiddleware(app, database))())
    assert (call.starts, backend.names()) == ([], ["by the application", "by the unit"])
    assert "some of its work had already been committed by the unit of work" in caplog.text


async def test_a_rollback_that_is_cancelled_calls_no_on_commit(backend: Backend, database: Database) -> None:
    """SQLAlchemy reports no end of that transaction, and the unit commits another one after it."""
    called: list[str] = []
    async with session_scope(database) as session:
        await session.execute(insert(Item).values(name="rolled back"))
        current_unit().on_commit(called.append, "on_commit")
        current_unit().on_rollback(called.append, "on_rollback")
        with anyio.move_on_after(0):
            await session.rollback()
        await session.rollback()
        await session.execute(insert(Item).values(name="kept"))
    assert (called, backend.names()) == (["on_rollback"], ["kept"])
