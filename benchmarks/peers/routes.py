"""The routes of the FastAPI contenders, once for each way to come by a session.

Must not know: any contender.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.responses import Response, StreamingResponse

from benchmarks.peers.bodies import pieces, sync_pieces
from benchmarks.work import read, read_async, refused, refused_async, write, write_async

WRITES = (("/write", "write", 201), ("/refused", "refused", 201), ("/undone", "write", 422), ("/moved", "write", 303))


def with_session(app: FastAPI, session: Callable[[], Awaitable[AsyncSession]]) -> FastAPI:
    """Add the routes to an application whose handlers ask for their session."""

    async def unused() -> Response:
        return Response()

    async def reading() -> Response:
        await read_async(await session())
        return Response()

    async def slow() -> Response:
        await read_async(await session())
        return StreamingResponse(pieces())

    def writing(work: Callable[[AsyncSession], Awaitable[None]], status: int) -> Any:
        async def handler() -> Response:
            await work(await session())
            return Response(status_code=status)

        return handler

    return _add(app, unused, reading, slow, writing, {"write": write_async, "refused": refused_async})


def with_dependency(app: FastAPI, dependency: Callable[..., Any], **options: Any) -> FastAPI:
    """Add the routes to an application whose handlers are given their ``AsyncSession``; the options are FastAPI's."""

    async def unused() -> Response:
        return Response()

    async def reading(session: AsyncSession = Depends(dependency, **options)) -> Response:
        await read_async(session)
        return Response()

    async def slow(session: AsyncSession = Depends(dependency, **options)) -> Response:
        await read_async(session)
        return StreamingResponse(pieces())

    def writing(work: Callable[[AsyncSession], Awaitable[None]], status: int) -> Any:
        async def handler(session: AsyncSession = Depends(dependency, **options)) -> Response:
            await work(session)
            return Response(status_code=status)

        return handler

    return _add(app, unused, reading, slow, writing, {"write": write_async, "refused": refused_async})


def with_sync_session(app: FastAPI, session: Callable[[], Session]) -> FastAPI:
    """Add the routes to an application whose handlers, in threads, ask for their ``Session``."""

    def unused() -> Response:
        return Response()

    def reading() -> Response:
        read(session())
        return Response()

    def slow() -> Response:
        read(session())
        return StreamingResponse(sync_pieces())

    def writing(work: Callable[[Session], None], status: int) -> Any:
        def handler() -> Response:
            work(session())
            return Response(status_code=status)

        return handler

    return _add(app, unused, reading, slow, writing, {"write": write, "refused": refused})


def with_sync_dependency(app: FastAPI, dependency: Callable[..., Any]) -> FastAPI:
    """Add the routes to an application whose handlers, in threads, are given their ``Session``."""

    def unused() -> Response:
        return Response()

    def reading(session: Session = Depends(dependency)) -> Response:
        read(session)
        return Response()

    def slow(session: Session = Depends(dependency)) -> Response:
        read(session)
        return StreamingResponse(sync_pieces())

    def writing(work: Callable[[Session], None], status: int) -> Any:
        def handler(session: Session = Depends(dependency)) -> Response:
            work(session)
            return Response(status_code=status)

        return handler

    return _add(app, unused, reading, slow, writing, {"write": write, "refused": refused})


def _add(app: FastAPI, unused: Any, reading: Any, slow: Any, writing: Any, works: dict[str, Any]) -> FastAPI:
    for path, handler in (("/unused", unused), ("/read", reading), ("/slow", slow)):
        app.add_api_route(path, handler, methods=["GET"])
    for path, work, status in WRITES:
        app.add_api_route(path, writing(works[work], status), methods=["POST"], status_code=status)
    return app
