"""Several tasks on the session of one request: what a user reads who let resolvers, say, share it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from support.asgi import Call, respond
from support.databases import Backend, Item

from asgi_sqla import Database, SessionInUseError, SQLAlchemyMiddleware, session_scope

SLOW = text("SELECT count(*) FROM item AS a, item AS b, item AS c")
CANCELLED = "a statement of this session was cancelled, which closed its connection and lost its transaction"


async def test_the_second_task_reads_what_to_write(database: Database) -> None:
    """The message names the first task shortly, and ends with the code to write."""
    async with session_scope(database) as session:
        await session.scalar(text("SELECT 1"))
        first = asyncio.create_task(session.execute(SLOW), name="resolve a")
        await asyncio.sleep(0)
        with pytest.raises(SessionInUseError) as told:
            await session.scalar(text("SELECT 2"))
        await first
    message = str(told.value)
    assert message.startswith("a session of <UnitOfWork session_scope() open> is in use by task 'resolve a'. ")
    assert "the resolvers of one GraphQL query" in message
    assert message.endswith(": async with session_scope() as session: ...")


async def cancel_one(database: Database) -> None:
    """Write, cancel a statement after it has begun, and go on as if nothing were."""
    session = database.async_session
    session.add(Item(name="lost"))
    await session.flush()
    running = asyncio.create_task(session.execute(SLOW))
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])


@pytest.mark.parametrize("backend", ["sqlite", "asyncpg", "psycopg"], indirect=True)
async def test_a_cancelled_statement_is_named_as_the_cause(database: Database, backend: Backend) -> None:
    """The work before it is lost, so a 200 becomes a 500, and the error says why."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await cancel_one(database)
        await respond(send, 200)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert (call.status, type(call.raised), backend.names()) == (500, PendingRollbackError, [])
    assert CANCELLED in str(call.raised)


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"], indirect=True)
async def test_an_error_that_was_handled_before_is_not_the_cause(database: Database, backend: Backend) -> None:
    """A savepoint has undone it; ``error_responses`` answers for the cancelled statement alone."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="lost"))
        await database.async_session.flush()
        with pytest.raises(IntegrityError):
            async with database.async_session.begin_nested():
                database.async_session.add(Item(name="lost"))
        running = asyncio.create_task(database.async_session.execute(SLOW))
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        await respond(send, 200)

    call = await Call(SQLAlchemyMiddleware(app, database, error_responses={IntegrityError: 409}))()
    assert (call.status, backend.names()) == (500, [])
    assert CANCELLED in str(call.raised)


@pytest.mark.parametrize("backend", ["sqlite", "asyncpg", "psycopg"], indirect=True)
async def test_after_a_rollback_the_session_goes_on(database: Database, backend: Backend) -> None:
    """What the message says to write is enough: the next work is in a new transaction, and commits."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await cancel_one(database)
        await database.async_session.rollback()
        database.async_session.add(Item(name="kept"))
        await respond(send, 200)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert (call.raised, call.status, backend.names()) == (None, 200, ["kept"])
