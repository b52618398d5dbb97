"""The application in Litestar."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Request, Response, Router, WebSocket, asgi, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.exceptions import HTTPException, WebSocketDisconnect
from litestar.middleware import DefineMiddleware
from litestar.response import Stream
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asgi_sqla import SQLAlchemyMiddleware
from matrix.applications import shop
from matrix.applications.shop import Query

ABORT = HTTPException(status_code=409)


async def dependency_async(request: Request, session: AsyncSession) -> None:
    await shop.hook_async(Query.of(request.query_params), session)


def dependency_sync(request: Request, session: Session) -> None:
    shop.hook_sync(Query.of(request.query_params), session)


GIVEN_ASYNC = {"session": Provide(shop.db.get_async_session), "hook": Provide(dependency_async)}
GIVEN_SYNC = {
    "session": Provide(shop.db.get_session, sync_to_thread=True),
    "hook": Provide(dependency_sync, sync_to_thread=True),
}


@post("/async/write", dependencies=GIVEN_ASYNC)
async def write_async(request: Request, hook: None) -> Response[None]:
    query = Query.of(request.query_params)
    await shop.write_async(query, ABORT)
    return Response(None, status_code=query.status)


@post("/sync/write", dependencies=GIVEN_SYNC, sync_to_thread=True)
def write_sync(request: Request, hook: None) -> Response[None]:
    query = Query.of(request.query_params)
    shop.write_sync(query, ABORT)
    return Response(None, status_code=query.status)


@get("/async/read", media_type="text/plain")
async def read_async(request: Request) -> str:
    return await shop.count_async(Query.of(request.query_params))


@get("/sync/read", media_type="text/plain", sync_to_thread=True)
def read_sync(request: Request) -> str:
    return shop.count_sync(Query.of(request.query_params))


@post("/async/stream", status_code=200)
async def stream_async(request: Request) -> Stream:
    query = Query.of(request.query_params)
    await shop.write_async(query)
    return Stream(shop.stream_async(query))


@post("/sync/stream", status_code=200, sync_to_thread=True)
def stream_sync(request: Request) -> Stream:
    query = Query.of(request.query_params)
    shop.write_sync(query)
    return Stream(shop.stream_sync(query))


@post("/async/background")
async def background_async(request: Request) -> Response[None]:
    query = Query.of(request.query_params)
    await shop.write_async(query)
    return Response(None, background=BackgroundTask(shop.background_async, query))


@post("/sync/background", sync_to_thread=True)
def background_sync(request: Request) -> Response[None]:
    query = Query.of(request.query_params)
    shop.write_sync(query)
    return Response(None, background=BackgroundTask(shop.background_sync, query))


@get("/state")
async def state(request: Request) -> dict[str, Any]:
    return await shop.state(Query.of(request.query_params))


@websocket("/ws")
async def converse(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(await shop.message_async(await socket.receive_text()))
    except WebSocketDisconnect:
        return


def handled(_request: Request, _exc: shop.HandledError) -> Response[str]:
    return Response(shop.seen_unit(), media_type="text/plain", status_code=422)


def conflict(_request: Request, _exc: DBAPIError) -> Response[str]:
    return Response("the framework's own answer", media_type="text/plain", status_code=418)


@asgi("/mounted", is_mount=True, copy_scope=True)
async def mounted(scope: Any, receive: Any, send: Any) -> None:
    await nested(scope, receive, send)


nested = shop.wrapped(Litestar([write_async, write_sync]))
api = Litestar(
    [
        Router("/", route_handlers=[write_async, write_sync, read_async, read_sync]),
        *(stream_async, stream_sync, background_async, background_sync, state, converse, mounted),
    ],
    exception_handlers={shop.HandledError: handled, DBAPIError: conflict},
    middleware=[] if shop.OUTERMOST else [DefineMiddleware(SQLAlchemyMiddleware, **shop.MIDDLEWARE)],
    on_startup=[shop.started],
    on_shutdown=[] if shop.OUTERMOST else [shop.db.async_dispose],  # the middleware of a route sees no lifespan
    cors_config=CORSConfig(allow_origins=["*"]),
)
app: Any = shop.wrapped(api) if shop.OUTERMOST else api
