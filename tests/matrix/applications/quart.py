"""The application in Quart."""

from __future__ import annotations

from typing import Any

from quart import Blueprint, Quart, request, websocket
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import Conflict

from matrix.applications import shop
from matrix.applications.shop import Query

api = Quart(__name__)
nested = Blueprint("mounted", __name__)


@api.before_request
async def hook() -> None:
    query = Query.of(request.args)
    if request.path.startswith("/sync"):
        shop.hook_sync(query)
    else:
        await shop.hook_async(query)


@nested.post("/async/write")
@api.post("/async/write")
async def write_async() -> Any:
    query = Query.of(request.args)
    await shop.write_async(query, Conflict())
    return "", query.status


@nested.post("/sync/write")
@api.post("/sync/write")
def write_sync() -> Any:
    query = Query.of(request.args)
    shop.write_sync(query, Conflict())
    return "", query.status


@api.get("/async/read")
async def read_async() -> str:
    return await shop.count_async(Query.of(request.args))


@api.get("/sync/read")
def read_sync() -> str:
    return shop.count_sync(Query.of(request.args))


@api.post("/async/stream")
async def stream_async() -> Any:
    query = Query.of(request.args)
    await shop.write_async(query)
    return shop.stream_async(query)


@api.post("/sync/stream")
def stream_sync() -> Any:
    query = Query.of(request.args)
    shop.write_sync(query)
    return shop.stream_sync(query)


@api.post("/async/background")
async def background_async() -> Any:
    query = Query.of(request.args)
    await shop.write_async(query)
    api.add_background_task(shop.background_async, query)
    return "", 201


@api.get("/state")
async def state() -> Any:
    return await shop.state(Query.of(request.args))


@api.websocket("/ws")
async def converse() -> None:
    while True:
        await websocket.send(await shop.message_async(await websocket.receive()))


@api.errorhandler(shop.HandledError)
async def handled(_exc: Exception) -> Any:
    return shop.seen_unit(), 422


@api.errorhandler(DBAPIError)
async def conflict(_exc: Exception) -> Any:
    return "the framework's own answer", 418


@api.before_serving
async def started() -> None:
    shop.started()


api.register_blueprint(nested, url_prefix="/mounted")
app: Any = api
if shop.OUTERMOST:
    app = shop.wrapped(api)
else:
    api.asgi_app = shop.wrapped(api.asgi_app)
