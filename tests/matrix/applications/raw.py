"""The application without a framework, and a layer around the middleware that sees what servers do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import anyio
from anyio import to_thread

from matrix.applications import shop
from matrix.applications.shop import Query


async def respond(send: Any, status: int, body: bytes = b"") -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def write_async(query: Query, send: Any) -> None:
    await shop.write_async(query)
    await respond(send, query.status)


async def write_sync(query: Query, send: Any) -> None:
    await to_thread.run_sync(shop.write_sync, query)
    await respond(send, query.status)


async def stream_async(query: Query, send: Any) -> None:
    await shop.write_async(query)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    async for chunk in shop.stream_async(query):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body"})


async def stream_sync(query: Query, send: Any) -> None:
    await to_thread.run_sync(shop.write_sync, query)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    chunks = shop.stream_sync(query)
    while (chunk := await to_thread.run_sync(next, chunks, None)) is not None:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body"})


async def sleep_async(_query: Query, send: Any) -> None:
    await shop.sleep_async()
    await respond(send, 200)


async def sleep_sync(_query: Query, send: Any) -> None:
    await to_thread.run_sync(shop.sleep_sync)
    await respond(send, 200)


async def state(query: Query, send: Any) -> None:
    await respond(send, 200, json.dumps(await shop.state(query)).encode())


ROUTES: dict[str, Callable[[Query, Any], Any]] = {
    "/async/write": write_async,
    "/sync/write": write_sync,
    "/async/stream": stream_async,
    "/sync/stream": stream_sync,
    "/async/sleep": sleep_async,
    "/sync/sleep": sleep_sync,
    "/state": state,
}


async def api(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await ROUTES[scope["path"]](Query.of(parse_qs(scope["query_string"].decode())), send)
    elif scope["type"] == "lifespan":
        await receive()
        shop.started()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})


wrapped = shop.wrapped(api)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Report in a header which unit a request begins with, and delay the end of a shutdown for the test."""
    before = shop.seen_unit()

    async def forward(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"x-before", before.encode())]}
        elif message["type"] == "lifespan.shutdown.complete" and (shop.GATES / "hold").exists():
            (shop.GATES / "shutting-down").touch()
            with anyio.fail_after(10):
                while not (shop.GATES / "shut-down").exists():  # noqa: ASYNC110  # another process makes it
                    await anyio.sleep(0.01)
        await send(message)

    await wrapped(scope, receive, forward)
