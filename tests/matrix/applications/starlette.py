"""The application in Starlette."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_sqla import SQLAlchemyMiddleware
from matrix.applications import shop
from matrix.applications.shop import Query

ABORT = HTTPException(409)


async def write_async(request: Request) -> Response:
    query = Query.of(request.query_params)
    await shop.write_async(query, ABORT)
    return Response(status_code=query.status)


def write_sync(request: Request) -> Response:
    query = Query.of(request.query_params)
    shop.write_sync(query, ABORT)
    return Response(status_code=query.status)


async def read_async(request: Request) -> Response:
    return PlainTextResponse(await shop.count_async(Query.of(request.query_params)))


def read_sync(request: Request) -> Response:
    return PlainTextResponse(shop.count_sync(Query.of(request.query_params)))


async def stream_async(request: Request) -> Response:
    query = Query.of(request.query_params)
    await shop.write_async(query)
    return StreamingResponse(shop.stream_async(query))


def stream_sync(request: Request) -> Response:
    query = Query.of(request.query_params)
    shop.write_sync(query)
    return StreamingResponse(shop.stream_sync(query))


async def background_async(request: Request) -> Response:
    query = Query.of(request.query_params)
    await shop.write_async(query)
    return Response(status_code=201, background=BackgroundTask(shop.background_async, query))


def background_sync(request: Request) -> Response:
    query = Query.of(request.query_params)
    shop.write_sync(query)
    return Response(status_code=201, background=BackgroundTask(shop.background_sync, query))


async def state(request: Request) -> Response:
    return JSONResponse(await shop.state(Query.of(request.query_params)))


async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.send_text(await shop.message_async(await socket.receive_text()))


async def handled(_request: Request, _exc: Exception) -> Response:
    return PlainTextResponse(shop.seen_unit(), 422)


async def conflict(_request: Request, _exc: Exception) -> Response:
    return PlainTextResponse("the framework's own answer", 418)


@contextlib.asynccontextmanager
async def lifespan(_app: Any) -> AsyncIterator[None]:
    shop.started()
    yield


writes = [
    Route("/async/write", write_async, methods=["POST"]),
    Route("/sync/write", write_sync, methods=["POST"]),
]
api = Starlette(
    routes=[
        *writes,
        Route("/async/read", read_async),
        Route("/sync/read", read_sync),
        Route("/async/stream", stream_async, methods=["POST"]),
        Route("/sync/stream", stream_sync, methods=["POST"]),
        Route("/async/background", background_async, methods=["POST"]),
        Route("/sync/background", background_sync, methods=["POST"]),
        Route("/state", state),
        WebSocketRoute("/ws", websocket),
        # A second layer of the middleware, in a nested application, leaves the request to the first.
        Mount("/mounted", shop.wrapped(Starlette(routes=writes))),
    ],
    exception_handlers={shop.HandledError: handled, DBAPIError: conflict},
    lifespan=lifespan,
)
if not shop.OUTERMOST:
    api.add_middleware(SQLAlchemyMiddleware, **shop.MIDDLEWARE)
api.add_middleware(CORSMiddleware, allow_origins=["*"])  # added later, so outside
app: Any = shop.wrapped(api) if shop.OUTERMOST else api
