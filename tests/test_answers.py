"""Answers given in the application's place, and what an application still sends beside them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.asgi import Call, Message, http_scope, respond
from support.databases import NO_OWNER, Backend
from support.failing import BrokenError, insert

from asgi_sqla import ERROR_RESPONSES, Database, SQLAlchemyMiddleware


async def broken(_scope: Any, _receive: Any, _send: Any) -> None:
    """Be an application that fails before it answers."""
    raise BrokenError


async def test_a_status_that_has_no_name_is_answered(sqlite: Backend) -> None:
    """The body of a status without a standard name says that it is an error."""
    call = await Call(SQLAlchemyMiddleware(broken, Database(sqlite.url), error_responses={BrokenError: 499}))()

    assert (call.raised, call.status, call.body) == (None, 499, b"Error")


async def raises(_scope: Any, _receive: Any, _send: Any) -> None:
    """Fail where an error was to be answered."""
    raise KeyError("oops")


async def says_that_all_is_well(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer 200 for work that was rolled back."""
    await respond(send, 200)


@pytest.mark.parametrize("answer", [raises, says_that_all_is_well])
async def test_an_answer_that_must_not_be_given_becomes_a_500(
    sqlite: Backend, caplog: pytest.LogCaptureFixture, answer: Callable[..., Awaitable[None]]
) -> None:
    """The log names an application in ``error_responses`` that fails, or that answers below 400."""
    call = await Call(SQLAlchemyMiddleware(broken, Database(sqlite.url), error_responses={BrokenError: answer}))()

    assert (call.raised, call.starts) == (None, [500])
    assert any(answer.__name__ in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


async def test_an_answer_that_cannot_be_sent_is_logged(sqlite: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """The client has disconnected: the log names the answer, and nothing is sent after it."""
    sent: list[str] = []

    class Gone(Call):
        async def send(self, message: Message) -> None:
            sent.append(message["type"])
            raise OSError("the client has gone")

    call = await Gone(SQLAlchemyMiddleware(broken, Database(sqlite.url), error_responses={BrokenError: 409}))()

    assert (call.raised, sent) == (None, ["http.response.start"])
    assert any("Answer(409" in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


async def test_a_response_that_is_sent_from_a_task_group_is_replaced_too(sqlite: Backend) -> None:
    """The exception that unwinds the application leaves the task group as an exception group of ours."""
    database = Database(sqlite.url)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "async", name="a", owner_id=NO_OWNER)
        async with asyncio.TaskGroup() as group:
            group.create_task(respond(send, 201))

    call = await Call(SQLAlchemyMiddleware(app, database, error_responses=ERROR_RESPONSES))()
    await database.async_dispose()

    assert (call.raised, call.starts, sqlite.names()) == (None, [409], [])


async def test_a_denial_that_was_replaced_is_not_continued(sqlite: Backend) -> None:
    """A websocket application that continues after its COMMIT failed sends nothing more."""
    database = Database(sqlite.url)
    stopped: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "async", name="a", owner_id=NO_OWNER)
        for kind in ("start", "body"):
            try:
                await send({"type": f"websocket.http.response.{kind}", "status": 200, "headers": [], "body": b"fine"})
            except BaseException:  # some applications catch everything
                stopped.append(kind)

    middleware = SQLAlchemyMiddleware(app, database, error_responses=ERROR_RESPONSES)
    call = await Call(middleware, {**http_scope(), "type": "websocket", "subprotocols": []})()
    await database.async_dispose()

    assert (call.raised, stopped) == (None, ["start", "body"])
    assert [message.get("status", message.get("body")) for message in call.messages] == [409, b"Conflict"]


async def test_other_messages_before_the_start_are_forwarded(sqlite: Backend) -> None:
    """Messages of an extension, for example, promise nothing, so they end no transaction."""
    database = Database(sqlite.url)
    before: list[list[str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "async", name="a")
        await send({"type": "http.response.debug", "info": {}})
        before.append(sqlite.names())
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    await database.async_dispose()

    assert [message["type"].rpartition(".")[2] for message in call.messages] == ["debug", "start", "body"]
    assert (before, sqlite.names()) == ([[]], ["a"])


async def test_an_application_may_empty_its_scope(sqlite: Backend) -> None:
    """The unit of a request does not depend on its entry in the scope."""
    database = Database(sqlite.url)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "async", name="a")
        scope.clear()
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    await database.async_dispose()

    assert (call.raised, call.status, sqlite.names()) == (None, 201, ["a"])
