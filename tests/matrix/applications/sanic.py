"""The application in Sanic, served by an ASGI server."""

from __future__ import annotations

from typing import Any

from sanic import Blueprint, Request, Sanic, Websocket
from sanic.exceptions import SanicException
from sanic.response import HTTPResponse, empty, json, text
from sqlalchemy.exc import DBAPIError

from matrix.applications import shop
from matrix.applications.shop import Query

ABORT = SanicException("conflict", status_code=409)
api = Sanic("matrix")
nested = Blueprint("mounted", url_prefix="/mounted")


@api.on_request
async def hook(request: Request) -> None:
    query = Query.of(request.args)
    if request.path.startswith("/sync"):
        shop.hook_sync(query)
    else:
        await shop.hook_async(query)


@nested.post("/async/write", name="nested_write_async")
@api.post("/async/write")
async def write_async(request: Request) -> HTTPResponse:
    query = Query.of(request.args)
    await shop.write_async(query, ABORT)
    return empty(query.status)


@nested.post("/sync/write", name="nested_write_sync")
@api.post("/sync/write")
def write_sync(request: Request) -> HTTPResponse:
    query = Query.of(request.args)
    shop.write_sync(query, ABORT)
    return empty(query.status)


@api.get("/async/read")
async def read_async(request: Request) -> HTTPResponse:
    return text(await shop.count_async(Query.of(request.args)))


@api.get("/sync/read")
def read_sync(request: Request) -> HTTPResponse:
    return text(shop.count_sync(Query.of(request.args)))


@api.post("/async/stream")
async def stream_async(request: Request) -> None:
    query = Query.of(request.args)
    await shop.write_async(query)
    response = await request.respond(content_type="text/plain")
    async for chunk in shop.stream_async(query):
        await response.send(chunk)
    await response.eof()


@api.post("/async/background")
async def background_async(request: Request) -> HTTPResponse:
    query = Query.of(request.args)
    await shop.write_async(query)
    api.add_task(shop.background_async(query))
    return empty(201)


@api.get("/state")
async def state(request: Request) -> HTTPResponse:
    return json(await shop.state(Query.of(request.args)))


@api.websocket("/ws")
async def converse(_request: Request, socket: Websocket) -> None:
    while True:
        await socket.send(await shop.message_async(await socket.recv()))


@api.exception(shop.HandledError)
async def handled(_request: Request, _exc: Exception) -> HTTPResponse:
    return text(shop.seen_unit(), 422)


@api.exception(DBAPIError)
async def conflict(_request: Request, _exc: Exception) -> HTTPResponse:
    return text("the framework's own answer", 418)


@api.before_server_start
async def started(_app: Sanic) -> None:
    shop.started()


api.blueprint(nested)
app: Any = shop.wrapped(api)
