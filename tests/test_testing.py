"""``asgi_sqla.testing``: what happens inside ``rolled_back()``, and failures to order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from support.asgi import Call, respond
from support.databases import NO_OWNER, Backend, Item

from asgi_sqla import ConfigurationError, Database, ReadOnlyError, SQLAlchemyMiddleware, current_unit, session_scope
from asgi_sqla.testing import (
    assert_statements,
    captured_callbacks,
    count_statements,
    fail_commit,
    kill_connection,
    rolled_back,
)

KINDS = ["sync", "async"]
MODES = ["transaction", "copy"]


def application(database: Database, kind: str = "async", status: int = 201, **fields: Any) -> SQLAlchemyMiddleware:
    """Return an application that adds an item named by the path, and answers how many there are."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        item, count = Item(name=scope["path"], **fields), select(func.count()).select_from(Item)
        if kind == "sync":
            database.session.add(item)
            found = await asyncio.to_thread(database.session.scalar, count)
        else:
            database.async_session.add(item)
            found = await database.async_session.scalar(count)
        await respond(send, status, str(found).encode())

    return SQLAlchemyMiddleware(app, database)


async def get(app: Any, path: str = "/") -> Call:
    """Send one request."""
    return await Call(app, {"type": "http", "method": "GET", "path": path, "headers": []})()


async def count(database: Database, kind: str) -> int:
    """Return how many items a scope of its own sees."""
    query = select(func.count()).select_from(Item)
    if kind == "sync":
        with session_scope(database) as session:
            return session.scalar(query) or 0
    async with session_scope(database) as async_session:
        return await async_session.scalar(query) or 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
async def test_requests_see_each_others_rows_and_leave_none(
    database: Database, backend: Backend, kind: str, mode: Any
) -> None:
    """What a request commits is there for the next and for the test, and gone after it."""
    app = application(database, kind)
    async with rolled_back(database, mode=mode):
        bodies = [(await get(app, path)).body for path in ("/a", "/b")]
        assert (bodies, await count(database, kind)) == ([b"1", b"2"], 2)
    assert (await count(database, kind), backend.names()) == (0, [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_that_rolls_back_undoes_only_itself(database: Database, backend: Backend, kind: str) -> None:
    """The application may roll back as it likes."""
    async with rolled_back(database):
        await get(application(database, kind), "/kept")
        await get(application(database, kind, status=422), "/lost")
        assert await count(database, kind) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_at_once_take_turns(database: Database, backend: Backend, kind: str) -> None:
    """Ten at once on the one connection all commit."""
    app = application(database, kind)
    async with rolled_back(database):
        calls = await asyncio.gather(*(get(app, f"/{number}") for number in range(10)))
        assert [call.status for call in calls] == [201] * 10
        assert await count(database, kind) == 10
