"""The routes of the Starlette contenders.

Must not know: any contender.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from benchmarks.peers.bodies import pieces
from benchmarks.work import read_async, refused_async, write_async


def routes(session: Callable[[Request], AsyncSession]) -> list[Route]:
    """Return the routes, whose handlers get their session of the request."""

    async def unused(_request: Request) -> Response:
        return Response()

    async def reading(request: Request) -> Response:
        await read_async(session(request))
        return Response()

    async def slow(request: Request) -> Response:
        await read_async(session(request))
        return StreamingResponse(pieces())

    def writing(work: Any, status: int) -> Any:
        async def handler(request: Request) -> Response:
            await work(session(request))
            return Response(status_code=status)

        return handler

    return [
        Route("/unused", unused),
        Route("/read", reading),
        Route("/slow", slow),
        Route("/write", writing(write_async, 201), methods=["POST"]),
        Route("/refused", writing(refused_async, 201), methods=["POST"]),
        Route("/undone", writing(write_async, 422), methods=["POST"]),
        Route("/moved", writing(write_async, 303), methods=["POST"]),
    ]
