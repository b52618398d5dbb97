"""One application in four frameworks, each behind its own test client; ``suite.py`` tests whichever is named."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import String, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asgi_sqla import Database, SQLAlchemyMiddleware, current_unit


class Base(DeclarativeBase):
    """The table of the shop."""


class Order(Base):
    """A row."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), unique=True)


db = Database(os.environ["ASGI_SQLA_TEST_URL"])
told: list[str] = []
ERRORS = {OperationalError: 503}
COUNT = select(func.count()).select_from(Order)


async def add_async(name: str) -> int:
    """Add an order, and return how many there are."""
    db.async_session.add(Order(name=name))
    current_unit().on_commit(told.append, name)
    return await db.async_session.scalar(COUNT) or 0


def add_sync(name: str) -> int:
    """Do the same with the sync session."""
    db.session.add(Order(name=name))
    current_unit().on_commit(told.append, name)
    return db.session.scalar(COUNT) or 0


class Client:
    """A test client of whatever framework."""

    def __init__(self, send: Callable[[str], tuple[int, str]], run: Callable[..., Any]) -> None:
        self.send = send
        """Post to a path; return the status and the body."""
        self._run = run

    def run(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run ``work`` on the event loop of the application."""
        return self._run(work)


@contextmanager
def fastapi_client() -> Iterator[Client]:
    """FastAPI's TestClient."""
    from fastapi.testclient import TestClient

    with TestClient(fastapi_app(), raise_server_exceptions=False) as client:

        def send(path: str) -> tuple[int, str]:
            response = client.post(path)
            return response.status_code, response.text

        assert client.portal is not None
        yield Client(send, client.portal.call)


@contextmanager
def httpx_client() -> Iterator[Client]:
    """httpx, in process, on an event loop of the test."""
    import httpx

    with asyncio.Runner() as runner:
        transport = httpx.ASGITransport(fastapi_app())

        async def post(path: str) -> tuple[int, str]:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                response = await client.post(path)
            return response.status_code, response.text

        yield Client(lambda path: runner.run(post(path)), lambda work: runner.run(work()))


def fastapi_app() -> Any:
    """Return the application in FastAPI."""
    from fastapi import FastAPI, Response

    api = FastAPI()

    @api.post("/async/{name}/{status}")
    async def post_async(name: str, status: int) -> Response:
        return Response(str(await add_async(name)), status)

    @api.post("/sync/{name}/{status}")
    def post_sync(name: str, status: int) -> Response:
        return Response(str(add_sync(name)), status)

    return SQLAlchemyMiddleware(api, db, error_responses=ERRORS)


@contextmanager
def litestar_client() -> Iterator[Client]:
    """Litestar's TestClient."""
    from litestar import Litestar, MediaType, Response, post
    from litestar.params import FromPath
    from litestar.testing import TestClient

    @post("/async/{name:str}/{status:int}", media_type=MediaType.TEXT)
    async def post_async(name: FromPath[str], status: FromPath[int]) -> Response[str]:
        return Response(str(await add_async(name)), status_code=status)

    @post("/sync/{name:str}/{status:int}", media_type=MediaType.TEXT, sync_to_thread=True)
    def post_sync(name: FromPath[str], status: FromPath[int]) -> Response[str]:
        return Response(str(add_sync(name)), status_code=status)

    app: Any = SQLAlchemyMiddleware(Litestar([post_async, post_sync]), db, error_responses=ERRORS)
    with TestClient(app, raise_server_exceptions=False) as client:

        def send(path: str) -> tuple[int, str]:
            response = client.post(path)
            return response.status_code, response.text

        yield Client(send, client.blocking_portal.call)


@contextmanager
def quart_client() -> Iterator[Client]:
    """Quart's test client."""
    from quart import Quart

    app = Quart("shop")

    @app.post("/async/<name>/<int:status>")
    async def post_async(name: str, status: int) -> tuple[str, int]:
        return str(await add_async(name)), status

    @app.post("/sync/<name>/<int:status>")
    def post_sync(name: str, status: int) -> tuple[str, int]:
        return str(add_sync(name)), status

    app.asgi_app = SQLAlchemyMiddleware(app.asgi_app, db, error_responses=ERRORS)
    with asyncio.Runner() as runner:

        async def post(path: str) -> tuple[int, str]:
            response = await app.test_client().post(path)
            return response.status_code, await response.get_data(as_text=True)

        yield Client(lambda path: runner.run(post(path)), lambda work: runner.run(work()))


CLIENTS = {"fastapi": fastapi_client, "httpx": httpx_client, "litestar": litestar_client, "quart": quart_client}
