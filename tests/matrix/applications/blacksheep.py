"""The application in BlackSheep."""

from __future__ import annotations

import functools
from typing import Any

from blacksheep import Application, Content, Request, Response, Router, StreamedContent, WebSocket, json, text
from blacksheep.exceptions import Conflict
from blacksheep.server.websocket import WebSocketDisconnectError
from sqlalchemy.exc import DBAPIError

from matrix.applications import shop
from matrix.applications.shop import Query

api = Application(router=Router())
nested = Application(router=Router())


def empty(status: int) -> Response:
    return Response(status, content=Content(b"text/plain", b""))


async def hook(request: Request, handler: Any) -> Response:
    query = Query.of(request.query)
    if request.url.path.startswith(b"/sync"):
        shop.hook_sync(query)
    else:
        await shop.hook_async(query)
    return await handler(request)


api.middlewares.append(hook)


@nested.router.post("/async/write")
@api.router.post("/async/write")
async def write_async(request: Request) -> Response:
    query = Query.of(request.query)
    await shop.write_async(query, Conflict())
    return empty(query.status)


@nested.router.post("/sync/write")
@api.router.post("/sync/write")
def write_sync(request: Request) -> Response:
    query = Query.of(request.query)
    shop.write_sync(query, Conflict())
    return empty(query.status)


@api.router.get("/async/read")
async def read_async(request: Request) -> Response:
    return text(await shop.count_async(Query.of(request.query)))


@api.router.get("/sync/read")
def read_sync(request: Request) -> Response:
    return text(shop.count_sync(Query.of(request.query)))


@api.router.post("/async/stream")
async def stream_async(request: Request) -> Response:
    query = Query.of(request.query)
    await shop.write_async(query)
    return Response(200, content=StreamedContent(b"text/plain", functools.partial(shop.stream_async, query)))


@api.router.get("/state")
async def state(request: Request) -> Response:
    return json(await shop.state(Query.of(request.query)))


@api.router.ws("/ws")
async def converse(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await shop.message_async(await websocket.receive_text()))
    except WebSocketDisconnectError:
        return


@api.exception_handler(shop.HandledError)
async def handled(_self: Any, _request: Request, _exc: Exception) -> Response:
    return text(shop.seen_unit(), 422)


@api.exception_handler(DBAPIError)
async def conflict(_self: Any, _request: Request, _exc: Exception) -> Response:
    return text("the framework's own answer", 418)


@api.on_start
async def started(_app: Application) -> None:
    shop.started()


api.mount_registry.auto_events = True
api.mount("/mounted", nested)
app: Any = shop.wrapped(api)
