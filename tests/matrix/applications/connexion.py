"""The application in Connexion, as its ``AsyncApp``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from connexion import AsyncApp, request
from connexion.exceptions import ProblemException
from connexion.lifecycle import ConnexionRequest, ConnexionResponse
from connexion.middleware import MiddlewarePosition
from sqlalchemy.exc import DBAPIError
from starlette.background import BackgroundTask
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from asgi_sqla import SQLAlchemyMiddleware
from matrix.applications import shop
from matrix.applications.openapi import OTHERS, WRITES, specification
from matrix.applications.shop import Query

ABORT = ProblemException(status=409)


def query_of() -> Query:
    return Query.of(request.query_params)


async def write_async() -> Response:
    query = query_of()
    await shop.write_async(query, ABORT)
    return Response(status_code=query.status)


def write_sync() -> Response:
    query = query_of()
    shop.write_sync(query, ABORT)
    return Response(status_code=query.status)


async def read_async() -> Response:
    return PlainTextResponse(await shop.count_async(query_of()))


def read_sync() -> Response:
    return PlainTextResponse(shop.count_sync(query_of()))


async def stream_async() -> Response:
    query = query_of()
    await shop.write_async(query)
    return StreamingResponse(shop.stream_async(query))


def stream_sync() -> Response:
    query = query_of()
    shop.write_sync(query)
    return StreamingResponse(shop.stream_sync(query))


async def background_async() -> Response:
    query = query_of()
    await shop.write_async(query)
    return Response(status_code=201, background=BackgroundTask(shop.background_async, query))


def background_sync() -> Response:
    query = query_of()
    shop.write_sync(query)
    return Response(status_code=201, background=BackgroundTask(shop.background_sync, query))


async def state() -> Response:
    return JSONResponse(await shop.state(query_of()))


async def handled(_request: ConnexionRequest, _exc: Exception) -> ConnexionResponse:
    return ConnexionResponse(422, body=shop.seen_unit(), content_type="text/plain")


async def conflict(_request: ConnexionRequest, _exc: Exception) -> ConnexionResponse:
    return ConnexionResponse(418, body="the framework's own answer", content_type="text/plain")


@contextlib.asynccontextmanager
async def lifespan(_app: Any) -> AsyncIterator[None]:
    shop.started()
    yield


api = AsyncApp(__name__, lifespan=lifespan)
api.add_api(specification(__name__, *WRITES, *OTHERS, "/state"))
api.add_api(specification(__name__, *WRITES), base_path="/mounted", name="mounted")
api.add_error_handler(shop.HandledError, handled)
api.add_error_handler(DBAPIError, conflict)
api.add_middleware(CORSMiddleware, MiddlewarePosition.BEFORE_EXCEPTION, allow_origins=["*"])  # added first, so outside
if not shop.OUTERMOST:
    api.add_middleware(SQLAlchemyMiddleware, MiddlewarePosition.BEFORE_EXCEPTION, **shop.MIDDLEWARE)
app: Any = shop.wrapped(api) if shop.OUTERMOST else api
