"""The application in Connexion, as its ``FlaskApp``: Flask in threads, behind Connexion's ASGI middleware."""

from __future__ import annotations

from typing import Any

from connexion import FlaskApp
from connexion.exceptions import ProblemException
from connexion.lifecycle import ConnexionRequest, ConnexionResponse
from connexion.middleware import MiddlewarePosition
from flask import Response, jsonify, request
from sqlalchemy.exc import DBAPIError
from starlette.middleware.cors import CORSMiddleware

from asgi_sqla import SQLAlchemyMiddleware
from matrix.applications import shop
from matrix.applications.openapi import WRITES, specification
from matrix.applications.shop import Query

ABORT = ProblemException(status=409)


def query_of() -> Query:
    return Query.of(request.args)


async def write_async() -> Response:
    """Flask runs this on an event loop of its own, which ends with it."""
    await shop.write_async(query_of())
    return Response(status=201)


def write_sync() -> Response:
    query = query_of()
    shop.write_sync(query, ABORT)
    return Response(status=query.status)


def read_sync() -> Response:
    return Response(shop.count_sync(query_of()))


def state() -> Response:
    return jsonify(shop.state_sync(query_of()))


def handled(_request: ConnexionRequest, _exc: Exception) -> ConnexionResponse:
    return ConnexionResponse(422, body=shop.seen_unit(), content_type="text/plain")


def conflict(_request: ConnexionRequest, _exc: Exception) -> ConnexionResponse:
    return ConnexionResponse(418, body="the framework's own answer", content_type="text/plain")


api = FlaskApp(__name__)
api.add_api(specification(__name__, *WRITES, "/sync/read", "/state"))
api.add_api(specification(__name__, *WRITES), base_path="/mounted", name="mounted")
api.add_error_handler(shop.HandledError, handled)
api.add_error_handler(DBAPIError, conflict)
api.add_middleware(CORSMiddleware, MiddlewarePosition.BEFORE_EXCEPTION, allow_origins=["*"])  # added first, so outside
if not shop.OUTERMOST:
    api.add_middleware(SQLAlchemyMiddleware, MiddlewarePosition.BEFORE_EXCEPTION, **shop.MIDDLEWARE)
app: Any = shop.wrapped(api) if shop.OUTERMOST else api
