"""Libraries that serve requests, each with a COMMIT that goes well and one that fails."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import httpx
import pytest
from support.servers import PATIENCE, Server

from asgi_sqla import NoUnitOfWorkError
from neighbours.shops import Shop, neighbour, orders, served


@neighbour("SQLModel", "sqlmodel")
def test_sqlmodel(shop: Shop) -> None:
    """Its sessions are those of the unit, and its own ``exec()`` works."""
    block = shop.load("SQLModel")
    with served(block.app) as client:
        told = [client.post("/orders", json={"item": "tea"}) for _ in range(2)]
        assert [answer.status_code for answer in told] == [201, 500]
        assert told[0].json() == {"id": 1, "item": "tea"}
        assert client.get("/orders").json() == shop.items() == ["tea"]


@neighbour("fastapi-pagination", "fastapi-pagination")
def test_fastapi_pagination(shop: Shop) -> None:
    """A page is read in the unit of its request."""
    block = shop.load("fastapi-pagination")
    with served(block.app) as client:
        assert orders(client, "tea", "tea", "rice") == [201, 500, 201]
        page = client.get("/orders", params={"size": 1, "page": 2}).json()
    assert (page["items"], page["total"]) == ([{"id": 3, "item": "rice"}], 2)
    assert shop.items() == ["tea", "rice"]


@neighbour("dishka", "dishka")
def test_dishka(shop: Shop) -> None:
    """What its container injects is the session of the unit."""
    block = shop.load("dishka")
    with served(block.app) as client:
        assert orders(client, "tea", "tea") == [201, 500]
    assert shop.items() == ["tea"]


@neighbour("sqladmin", "sqladmin")
def test_sqladmin(shop: Shop) -> None:
    """Its panel commits before it redirects, and shows the form again if COMMIT fails; for both kinds of session."""
    block = shop.load("sqladmin")
    plain = block.FastAPI()
    views: Any = type("Orders", (block.ModelView,), {"column_list": ["item"]}, model=block.Order)
    block.Admin(plain, session_maker=block.db.sessionmaker).add_view(views)
    for app, item in ((block.app, "tea"), (block.SQLAlchemyMiddleware(plain, block.db), "rice")):
        with served(app) as client:
            told = [client.post("/admin/order/create", data={"item": item}) for _ in range(2)]
            assert item in client.get("/admin/order/list").text
        assert [answer.status_code for answer in told] == [302, 400]
    assert shop.items() == ["tea", "rice"]


@neighbour("starlette-admin", "starlette-admin")
def test_starlette_admin(shop: Shop) -> None:
    """Its panel commits before it redirects, and answers 500 if the COMMIT fails."""
    block = shop.load("starlette-admin")
    with served(block.app) as client:
        client.get("/admin/order/create")
        token = {"X-CSRFToken": client.cookies["starlette_admin_csrftoken"]}
        told = [client.post("/admin/order/create", data={"item": "tea"}, headers=token) for _ in range(2)]
    assert [answer.status_code for answer in told] == [303, 500]
    assert shop.items() == ["tea"]


@neighbour("sse-starlette", "sse-starlette")
def test_sse_starlette(shop: Shop) -> None:
    """The row of each event is there when the event is, and an event whose COMMIT fails is never sent."""
    block = shop.load("sse-starlette")
    seen = []
    items = ["tea", "rice", "tea", "salt"]
    with (
        served(block.app) as client,
        suppress(httpx.RemoteProtocolError),  # the body is cut
        client.stream("POST", "/orders", json=items) as answer,
    ):
        for line in answer.iter_lines():
            if line.startswith("data: "):
                seen.append(line.removeprefix("data: "))
                assert seen[-1] in shop.items()
    assert seen == shop.items() == ["tea", "rice"]


@neighbour("Socket.IO", "python-socketio")
@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_socketio(shop: Shop, transport: str) -> None:
    """What an event acknowledges is committed; one whose COMMIT fails, or without a scope, acknowledges nothing."""
    import socketio

    block = shop.load("Socket.IO")
    block.sio.eio.ping_interval = block.sio.eio.ping_timeout = 2  # how long a poller waits after its client has left
    raised: list[str] = []

    async def forgotten(sid: str) -> str | None:
        try:
            block.db.async_session.add(block.Order(item="forgotten"))
        except NoUnitOfWorkError as exc:
            raised.append(str(exc))
            await asyncio.Event().wait()
        return "told"

    block.sio.event(forgotten)

    async def talk(url: str) -> None:
        async with socketio.AsyncSimpleClient() as client:
            await client.connect(url, transports=[transport])
            assert await client.call("order", "tea", timeout=PATIENCE) == "ordered tea"
            assert shop.items() == ["tea"]
            with pytest.raises(socketio.exceptions.TimeoutError):
                await client.call("order", "tea", timeout=0.5)
            with pytest.raises(socketio.exceptions.TimeoutError):
                await client.call("forgotten", timeout=0.5)

    with Server(block.app) as server:
        asyncio.run(talk(server.url))
    assert shop.items() == ["tea"]
    assert "there is a SQLAlchemyMiddleware, but not around this code" in raised[0]


def event(item: str) -> dict[str, Any]:
    """Return what API Gateway hands to a function for one order."""
    http = {"method": "POST", "path": "/orders", "sourceIp": "192.0.2.1", "protocol": "HTTP/1.1"}
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/orders",
        "rawQueryString": f"item={item}",
        "headers": {"host": "shop.example"},
        "requestContext": {"http": http},
        "isBase64Encoded": False,
    }


@neighbour("Mangum", "mangum")
@pytest.mark.parametrize(("lifespan", "connections"), [("off", 1), ("auto", 4)])
def test_mangum(shop: Shop, lifespan: str, connections: int) -> None:
    """Connections are kept between invocations; with ``"auto"`` each one connects anew, and keeps the promises, too."""
    from mangum import Mangum

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)  # where Mangum looks for one when it is made
    block = shop.load("Mangum")
    with shop.witness.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE orders ADD pid int DEFAULT pg_backend_pid()")
    handler = block.handler if lifespan == "off" else Mangum(block.app, lifespan=lifespan)
    try:
        told = [handler(event(item), None)["statusCode"] for item in ("tea", "rice", "tea", "salt", "flour")]
        loop.run_until_complete(block.db.async_dispose())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    assert told == [201, 201, 500, 201, 201]
    assert shop.items() == ["tea", "rice", "salt", "flour"]
    assert len(set(shop.rows("SELECT pid FROM orders"))) == connections


@neighbour("executors")
def test_executors(shop: Shop) -> None:
    """A thread that has a copy of the context works in the unit of the request; others open scopes of their own."""
    block = shop.load("Executors")
    with served(block.app) as client:
        assert orders(client, "tea", "tea") == [201, 500]
        told = [client.post("/orders/in-a-pool", params={"item": item}).status_code for item in ("rice", "rice")]
        assert told == [201, 500]
        told = [client.post("/orders/side-by-side", json=items).status_code for items in (["a", "b"], ["c", "tea"])]
        assert told == [201, 500]
    block.pool.shutdown()
    assert sorted(shop.items()) == ["a", "b", "c", "rice", "tea"]
