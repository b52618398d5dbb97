"""HTTP: what is committed, when, and what the client sees."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from sqlalchemy import text
from support.asgi import Call, http_scope, respond
from support.databases import NO_OWNER, Backend, Item

from asgi_sqla import Database, SQLAlchemyMiddleware, current_unit

KINDS = ["sync", "async"]


async def write(database: Database, kind: str, **fields: Any) -> None:
    """Insert an item through the session of ``kind``."""
    if kind == "sync":
        database.session.add(Item(**fields))
        database.session.flush()
    else:
        database.async_session.add(Item(**fields))
        await database.async_session.flush()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("status", "kept"), [(200, True), (201, True), (303, True), (400, False), (500, False)])
async def test_the_status_decides(database: Database, backend: Backend, kind: str, status: int, kept: bool) -> None:
    """A status below 400 commits, and every other one rolls back."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write(database, kind, name="a")
        await respond(send, status)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert call.raised is None
    assert call.status == status
    assert backend.names() == (["a"] if kept else [])


@pytest.mark.parametrize("kind", KINDS)
async def test_commit_comes_before_the_response_start(database: Database, backend: Backend, kind: str) -> None:
    """When the client sees the status, another connection sees the row."""
    seen: list[list[str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write(database, kind, name="a")
        await respond(send, 201)

    call = Call(SQLAlchemyMiddleware(app, database))

    async def on_start(_message: Any) -> None:
        seen.append(backend.names())

    call.on_start = on_start
    await call()

    assert seen == [["a"]]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failed_commit_is_answered_500_and_raised(database: Database, backend: Backend, kind: str) -> None:
    """The client gets one response, the server the driver's own exception, and nothing else runs."""
    after: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write(database, kind, name="a", owner_id=NO_OWNER)
        await respond(send, 201)
        after.append("background task")

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert isinstance(call.raised, backend.commit_error)
    assert call.starts == [500]
    assert call.body == b"Internal Server Error"
    assert after == []
    assert backend.names() == []


async def test_a_mapped_failure_is_answered_as_mapped(database: Database, backend: Backend) -> None:
    """A status in error_responses is the answer, and nothing is raised."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write(database, "async", name="a", owner_id=NO_OWNER)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database, error_responses={backend.commit_error: 409}))()

    assert call.raised is None
    assert call.starts == [409]


async def test_rollback_only(database: Database, backend: Backend) -> None:
    """A dry run answers as usual and keeps nothing."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write(database, "async", name="a")
        current_unit().rollback_only()
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.status, backend.names()) == (None, 201, [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_raised_error_goes_through(database: Database, backend: Backend, kind: str) -> None:
    """The middleware raises the same exception object, and nothing is kept."""
    error = ValueError("no")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write(database, kind, name="a")
        raise error

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert call.raised is error
    assert (call.starts, backend.names()) == ([], [])


async def test_what_could_not_be_rolled_back_is_never_committed(database: Database, backend: Backend) -> None:
    """A session in use during an error answer is not committed when the application returns."""
    slow = text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT count(*) FROM n"
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write(database, "async", name="a")
        sibling = asyncio.create_task(database.async_session.execute(slow))
        await asyncio.sleep(0)
        await respond(send, 422)
        await sibling

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.starts, backend.names()) == (None, [422], [])


@pytest.mark.parametrize("mapped", [True, False])
async def test_a_commit_that_failed_under_cancellation_stays_failed(
    database: Database, backend: Backend, mapped: bool
) -> None:
    """An application that suppresses the cancellation and answers 201 cannot send it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write(database, "async", name="a", owner_id=NO_OWNER)
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await respond(send, 201)
        await respond(send, 201)

    responses = {backend.commit_error: 409} if mapped else None
    call = Call(SQLAlchemyMiddleware(app, database, error_responses=responses))
    await asyncio.create_task(call())

    assert call.starts == [409 if mapped else 500]
    assert backend.names() == []


async def test_work_after_the_start_of_an_incomplete_response_is_rolled_back_and_logged(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """A framework that stops in the middle of a body returns normally; the log says what is lost."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await write(database, "async", name="a")

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.starts, backend.names()) == (None, [200], [])
    (record,) = [record for record in caplog.records if record.name == "asgi_sqla"]
    assert "its response is incomplete" in record.getMessage()


async def test_an_answer_of_ours_has_no_header_of_the_application(database: Database, backend: Backend) -> None:
    """A cookie that sets a login is not sent if the COMMIT of the login fails."""
    cookie = (b"set-cookie", b"session=1")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        await write(database, "async", name=path, owner_id=NO_OWNER if path == "/fails" else None)
        await send({"type": "http.response.start", "status": 201, "headers": [cookie]})
        await send({"type": "http.response.body", "body": b"logged in"})

    kept, failed = [await Call(SQLAlchemyMiddleware(app, database), http_scope(path))() for path in ("/", "/fails")]

    assert (kept.status, failed.status) == (201, 500)
    assert [cookie in call.messages[0]["headers"] for call in (kept, failed)] == [True, False]
