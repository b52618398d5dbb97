"""Raw ASGI applications: the same handler bare, hand-written, and behind the middleware.

Holds: what is compared in process, with no framework in between.
Must not know: how long anything takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from anyio import to_thread
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from asgi_sqla import Database, SQLAlchemyMiddleware

App = Callable[[Any, Any, Any], Awaitable[None]]

START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"", "more_body": False}


async def bare(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer, and use no database."""
    await send(START)
    await send(BODY)


class Wrapping:
    """The least a middleware can do that sees the response: wrap ``send``."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass every message on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_wrapper(message: Any) -> None:
            await send(message)

        await self.app(scope, receive, send_wrapper)


def hand_written_async(make: async_sessionmaker[AsyncSession], work: Callable[[AsyncSession], Awaitable[None]]) -> App:
    """Return what one writes without a library, if one commits before answering."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        async with make() as session:
            await work(session)
            await session.commit()
        await send(START)
        await send(BODY)

    return app


def shielded_async(make: async_sessionmaker[AsyncSession], work: Callable[[AsyncSession], Awaitable[None]]) -> App:
    """Return the same with what a careful hand adds: a COMMIT that a cancelled request does not cut."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        async with make() as session:
            await work(session)
            await asyncio.shield(asyncio.create_task(session.commit()))
        await send(START)
        await send(BODY)

    return app


def hand_written_sync(make: sessionmaker[Session], work: Callable[[Session], None]) -> App:
    """Return the same with a ``Session`` around a handler that runs in a worker thread, as frameworks run it."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        with make() as session:
            await to_thread.run_sync(work, session)
            await to_thread.run_sync(session.commit)
        await send(START)
        await send(BODY)

    return app


def hand_written_in_one_thread(make: sessionmaker[Session], work: Callable[[Session], None]) -> App:
    """Return the same with the session, the handler and the COMMIT in one call of a worker thread."""

    def run() -> None:
        with make() as session:
            work(session)
            session.commit()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await to_thread.run_sync(run)
        await send(START)
        await send(BODY)

    return app


def ours_unused(database: Database) -> App:
    """Return the bare application behind the middleware."""
    return SQLAlchemyMiddleware(bare, database)


def ours_async(database: Database, work: Callable[[AsyncSession], Awaitable[None]], **options: Any) -> App:
    """Return the handler alone, behind the middleware."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await work(database.async_session)
        await send(START)
        await send(BODY)

    return SQLAlchemyMiddleware(app, database, **options)


def ours_sync(database: Database, work: Callable[[Session], None], **options: Any) -> App:
    """Return the handler alone, in a worker thread, behind the middleware."""

    def run() -> None:
        work(database.session)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await to_thread.run_sync(run)
        await send(START)
        await send(BODY)

    return SQLAlchemyMiddleware(app, database, **options)
