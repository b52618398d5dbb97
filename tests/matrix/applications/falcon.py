"""The application in Falcon (ASGI)."""

from __future__ import annotations

import asyncio
import functools
import re
from typing import Any

import falcon
import falcon.asgi
from falcon.asgi import Request, Response, WebSocket
from sqlalchemy.exc import DBAPIError

from matrix.applications import shop
from matrix.applications.shop import Query


class Write:
    async def on_post(self, req: Request, resp: Response) -> None:
        query = Query.of(req.params)
        await shop.write_async(query, falcon.HTTPConflict())
        resp.status = query.status


class WriteInThread:
    """Falcon has no sync handlers; a thread with the context does their work."""

    async def on_post(self, req: Request, resp: Response) -> None:
        query = Query.of(req.params)
        await asyncio.to_thread(shop.write_sync, query, falcon.HTTPConflict())
        resp.status = query.status


class Read:
    async def on_get(self, req: Request, resp: Response) -> None:
        resp.text = await shop.count_async(Query.of(req.params))


class ReadInThread:
    async def on_get(self, req: Request, resp: Response) -> None:
        resp.text = await asyncio.to_thread(shop.count_sync, Query.of(req.params))


class FalconsThread:
    """Falcon's own way into a thread, without the context."""

    async def on_get(self, req: Request, resp: Response) -> None:
        resp.text = await falcon.sync_to_async(shop.seen_unit)


class Stream:
    async def on_post(self, req: Request, resp: Response) -> None:
        query = Query.of(req.params)
        await shop.write_async(query)
        resp.stream = shop.stream_async(query)


class Background:
    async def on_post(self, req: Request, resp: Response) -> None:
        query = Query.of(req.params)
        await shop.write_async(query)
        resp.status = 201
        resp.schedule(functools.partial(shop.background_async, query))


class State:
    async def on_get(self, req: Request, resp: Response) -> None:
        resp.media = await shop.state(Query.of(req.params))


class Converse:
    async def on_websocket(self, req: Request, ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_text(await shop.message_async(await ws.receive_text()))
        except falcon.WebSocketDisconnected:
            return


class Hook:
    async def process_request(self, req: Request, resp: Response) -> None:
        query = Query.of(req.params)
        if req.path.startswith("/sync"):
            await asyncio.to_thread(shop.hook_sync, query)
        else:
            await shop.hook_async(query)

    async def process_startup(self, scope: Any, event: Any) -> None:
        shop.started()


async def handled(req: Request, resp: Response, exc: Exception, params: Any, ws: WebSocket | None = None) -> None:
    resp.text, resp.status = shop.seen_unit(), 422


async def conflict(req: Request, resp: Response, exc: Exception, params: Any, ws: WebSocket | None = None) -> None:
    resp.text, resp.status = "the framework's own answer", 418


async def mounted(req: Request, resp: Response, kind: str) -> None:
    await (WriteInThread() if kind == "sync" else Write()).on_post(req, resp)


api = falcon.asgi.App(middleware=[Hook()])
api.ws_options.max_receive_queue = 0  # by default a task of Falcon's own reads ahead
api.add_route("/async/write", Write())
api.add_route("/sync/write", WriteInThread())
api.add_route("/async/read", Read())
api.add_route("/sync/read", ReadInThread())
api.add_route("/sync/helper", FalconsThread())
api.add_route("/async/stream", Stream())
api.add_route("/async/background", Background())
api.add_route("/state", State())
api.add_route("/ws", Converse())
api.add_sink(mounted, re.compile("/mounted/(?P<kind>.*)/write"))
api.add_error_handler(shop.HandledError, handled)
api.add_error_handler(DBAPIError, conflict)
app: Any = shop.wrapped(api)
