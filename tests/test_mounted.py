"""A mounted application with the middleware again: the outer rules apply, and what is ignored is said, once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from support.asgi import Call, http_scope, respond

from asgi_sqla import Database, SQLAlchemyMiddleware

database = Database("sqlite://")


async def inner(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request, or accept a websocket and close it."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
    else:
        await respond(send)


async def started() -> None:
    """Do nothing at startup."""


def only_201(_scope: Any, message: Any) -> bool:
    """Commit this status alone."""
    return bool(message["status"] == 201)


OTHERS: dict[str, Any] = {
    "commit_on": only_201,
    "commit_parts": (),
    "error_responses": {IntegrityError: 409},
    "read_only": {"GET"},
    "retries": 2,
    "replay_limit": 5,
    "check_on_startup": True,
    "on_startup": started,
}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said to be ignored, each time."""
    texts = [one.getMessage() for one in caplog.records if one.name == "asgi_sqla" and one.levelno == logging.WARNING]
    return [text.partition("its own are ignored: ")[2].partition(". ")[0] for text in texts]


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("name", OTHERS)
async def test_other_settings_are_said_to_be_ignored_once(
    name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The message names each of them, whichever kind of connection comes first."""
    mounted = SQLAlchemyMiddleware(inner, database, **{name: OTHERS[name]})
    outer = SQLAlchemyMiddleware(mounted, database)

    for each in (kind, "http", "websocket"):
        assert (await Call(outer, {**http_scope(), "type": each})()).raised is None

    assert said(caplog) == [f"{name}="]


@pytest.mark.parametrize("settings", [{}, {"commit_on": only_201, "read_only": {"GET"}}])
async def test_the_same_settings_are_not_worth_a_word(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Two layers with the same rules are one."""
    mounted = SQLAlchemyMiddleware(inner, database, **settings)

    await Call(SQLAlchemyMiddleware(mounted, database, **settings))()

    assert said(caplog) == []


async def test_what_a_mounted_application_does_at_startup_is_not_ignored_if_it_sees_the_lifespan(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two layers directly around each other both see it."""

    async def lives(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await inner(scope, receive, send)
            return
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})

    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(_message: Any) -> None: ...

    outer = SQLAlchemyMiddleware(SQLAlchemyMiddleware(lives, database, check_on_startup=True), database)
    await outer({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)

    await Call(outer)()

    assert said(caplog) == []
