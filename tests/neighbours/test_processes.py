"""Libraries that change their whole process, or need an older SQLAlchemy: each block in a process of its own."""

from __future__ import annotations

import json
import os
import sys
import zlib
from itertools import pairwise
from typing import Any

import pytest
from support.servers import PATIENCE, Server, wait_until
from support.services import missing

from neighbours.shops import STARTING, Shop, neighbour, orders, served_by

pytestmark = pytest.mark.timeout(2 * STARTING)

SPANS = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import select

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)


@app.get("/orders")
def list_orders() -> list[str]:
    return list(db.session.scalars(select(Order.item)))


@app.get("/spans")
async def list_spans() -> list[str]:
    return [span.name for span in exporter.get_finished_spans()]
"""
"""Adds what reads by the other kind of session, and what shows the spans."""
ANSWERED = """
from asgi_sqla import ERROR_RESPONSES

answering, plain = FastAPI(), app
answering.add_middleware(SQLAlchemyMiddleware, database=db, error_responses=ERROR_RESPONSES)
answering.post("/answered", status_code=201)(create_order)


async def app(scope, receive, send):
    await (answering if scope.get("path") == "/answered" else plain)(scope, receive, send)
"""
"""Adds the same handler in an application that answers the failure itself."""


@pytest.fixture
def older() -> str:
    """Return the Python of the environment with SQLAlchemy 2.0, which some libraries still need."""
    python = os.environ.get("ASGI_SQLA_TEST_SQLALCHEMY20_PYTHON")
    return python or missing("ASGI_SQLA_TEST_SQLALCHEMY20_PYTHON, a Python with fastapi-users, is not set")


@neighbour("fastapi-users (SQLAlchemy 2.0)")
def test_fastapi_users(shop: Shop, older: str) -> None:
    """A user and what was written beside are committed together, before the answer and before the mail."""
    shop.main("fastapi-users")
    with served_by(older, shop.folder) as client:
        shop.defer()
        shop.write_row("INSERT INTO orders (item) VALUES ('gift for bob@shop.example')")
        told = [
            client.post("/register", json={"email": mail, "password": "secret"}).status_code
            for mail in ("ann@shop.example", "bob@shop.example")
        ]
        login = client.post("/login", data={"username": "ann@shop.example", "password": "secret"}).json()
        mails = client.get("/mails", headers={"Authorization": f"Bearer {login['access_token']}"}).json()
    assert told == [201, 500]
    assert mails == shop.rows("SELECT email FROM users") == ["ann@shop.example"]
    assert shop.items() == ["gift for bob@shop.example", "gift for ann@shop.example"]


@neighbour("OpenTelemetry (SQLAlchemy 2.0)")
def test_opentelemetry(shop: Shop, older: str) -> None:
    """The statements of both kinds are spans, though the ``Database`` was made before the instrumentation."""
    shop.main("OpenTelemetry", SPANS)
    with served_by(older, shop.folder) as client:
        shop.defer()
        assert orders(client, "tea", "tea") == [201, 500]
        assert client.get("/orders").json() == shop.items() == ["tea"]
        words = [span.partition(" ")[0] for span in client.get("/spans").json()]
    assert [word for word in words if word in ("INSERT", "SELECT")] == ["INSERT", "INSERT", "SELECT"]


@neighbour("Sentry", "sentry-sdk")
def test_sentry(shop: Shop) -> None:
    """A COMMIT that fails is one event; one that ``error_responses`` has answered is none."""
    received: list[bytes] = []

    async def collect(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
            received.append(zlib.decompress(body, 31) if body[:2] == b"\x1f\x8b" else body)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

    shop.main("Sentry", ANSWERED)
    with Server(collect, lifespan="off") as sentry:
        dsn = f"http://key@127.0.0.1:{sentry.port}/1"
        with served_by(sys.executable, shop.folder, SENTRY_DSN=dsn) as client:
            shop.defer()
            assert orders(client, "tea") == [201]
            assert client.post("/answered", params={"item": "tea"}).status_code == 409
            assert orders(client, "tea") == [500]
            assert wait_until(lambda: events(received), PATIENCE)
    (only,) = events(received)  # all of them: Sentry has sent the rest when the process ends
    assert only["exception"]["values"][-1]["type"] == "IntegrityError"
    assert only["request"]["url"].endswith("/orders")
    assert shop.items() == ["tea"]


def events(envelopes: list[bytes]) -> list[Any]:
    """Return the events in what Sentry was sent."""
    found = []
    for envelope in envelopes:
        lines = envelope.split(b"\n")
        found += [json.loads(body) for head, body in pairwise(lines) if b'"type":"event"' in head]
    return found
