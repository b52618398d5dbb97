"""The application in FastAPI."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, StreamingResponse
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asgi_sqla import SQLAlchemyMiddleware
from matrix.applications import shop
from matrix.applications.shop import Query

ABORT = HTTPException(409)
Asked = Annotated[Query, Depends()]


@contextlib.asynccontextmanager
async def lifespan(_app: Any) -> AsyncIterator[None]:
    shop.started()
    yield


api = FastAPI(lifespan=lifespan)
nested = FastAPI()


async def dependency_async(
    query: Asked, session: Annotated[AsyncSession, Depends(shop.db.get_async_session)]
) -> AsyncIterator[None]:
    await shop.hook_async(query, session)
    yield


def dependency_sync(query: Asked, session: Annotated[Session, Depends(shop.db.get_session)]) -> None:
    shop.hook_sync(query, session)


@nested.post("/async/write")
@api.post("/async/write")
async def write_async(query: Asked, _hook: Annotated[None, Depends(dependency_async)]) -> Response:
    await shop.write_async(query, ABORT)
    return Response(status_code=query.status)


@nested.post("/sync/write")
@api.post("/sync/write")
def write_sync(query: Asked, _hook: Annotated[None, Depends(dependency_sync)]) -> Response:
    shop.write_sync(query, ABORT)
    return Response(status_code=query.status)


@api.get("/async/read", response_class=PlainTextResponse)
async def read_async(query: Asked) -> str:
    return await shop.count_async(query)


@api.get("/sync/read", response_class=PlainTextResponse)
def read_sync(query: Asked) -> str:
    return shop.count_sync(query)


@api.post("/async/stream")
async def stream_async(query: Asked) -> StreamingResponse:
    await shop.write_async(query)
    return StreamingResponse(shop.stream_async(query))


@api.post("/sync/stream")
def stream_sync(query: Asked) -> StreamingResponse:
    shop.write_sync(query)
    return StreamingResponse(shop.stream_sync(query))


@api.post("/async/background", status_code=201)
async def background_async(query: Asked, tasks: BackgroundTasks) -> None:
    await shop.write_async(query)
    tasks.add_task(shop.background_async, query)


@api.post("/sync/background", status_code=201)
def background_sync(query: Asked, tasks: BackgroundTasks) -> None:
    shop.write_sync(query)
    tasks.add_task(shop.background_sync, query)


@api.get("/state")
async def state(query: Asked) -> dict[str, Any]:
    return await shop.state(query)


@api.websocket("/ws")
async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.send_text(await shop.message_async(await socket.receive_text()))


@api.exception_handler(shop.HandledError)
async def handled(_request: Request, _exc: Exception) -> Response:
    return PlainTextResponse(shop.seen_unit(), 422)


@api.exception_handler(DBAPIError)
async def conflict(_request: Request, _exc: Exception) -> Response:
    return PlainTextResponse("the framework's own answer", 418)


api.mount("/mounted", shop.wrapped(nested))
if not shop.OUTERMOST:
    api.add_middleware(SQLAlchemyMiddleware, **shop.MIDDLEWARE)
api.add_middleware(CORSMiddleware, allow_origins=["*"])  # added later, so outside
app: Any = shop.wrapped(api) if shop.OUTERMOST else api
