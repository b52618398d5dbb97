"""What the README notes of single frameworks, under "Your framework"."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import falcon
import falcon.asgi
import httpx
import pytest
from blacksheep import Application
from litestar import Litestar, Response, get
from litestar.middleware import DefineMiddleware
from support.databases import Backend, Item

from asgi_sqla import Database, NoUnitOfWorkError, SQLAlchemyMiddleware

NOWHERE = "sqlite:////nowhere/at/all.db"
LIFESPAN = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]


async def ask(app: Any) -> str:
    """Return what the application answers to GET /."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return (await client.get("/")).text


async def test_litestars_hooks_stand_around_the_commit(sqlite: Backend) -> None:
    """``after_request`` runs before it, and ``before_send`` after it."""
    database = Database(sqlite.url)
    seen: dict[str, list[str]] = {}

    @get("/")
    async def write() -> str:
        database.async_session.add(Item(name="a"))
        await database.async_session.flush()
        return "written"

    async def before_send(message: Any, scope: Any) -> None:
        seen.setdefault("before_send", sqlite.names())

    async def after_request(response: Response[Any]) -> Response[Any]:
        seen["after_request"] = sqlite.names()
        return response

    app = Litestar(
        [write],
        middleware=[DefineMiddleware(SQLAlchemyMiddleware, database=database)],
        before_send=[before_send],
        after_request=after_request,
        on_shutdown=[database.async_dispose],
        openapi_config=None,
    )
    assert await ask(app) == "written"
    await database.async_dispose()
    assert seen == {"after_request": [], "before_send": ["a"]}


@pytest.mark.parametrize("checks", ["check_on_startup", "on_startup"])
async def test_litestars_middleware_sees_no_lifespan(checks: str) -> None:
    """So a database that is down stops the start only if Litestar itself is told to check it."""
    database, sent, events = Database(NOWHERE), [], iter(LIFESPAN)

    async def receive() -> Any:
        return next(events)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    middleware = DefineMiddleware(
        SQLAlchemyMiddleware, database=database, check_on_startup=checks == "check_on_startup"
    )
    on_startup = [database.check] if checks == "on_startup" else []
    app: Any = Litestar([], middleware=[middleware], on_startup=on_startup, openapi_config=None)
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "app": app, "state": {}}
    if checks == "on_startup":
        with pytest.raises(Exception, match=r"unable to open|unhandled errors"):
            await app(scope, receive, send)
        assert sent == ["lifespan.startup.failed"]
    else:
        await app(scope, receive, send)
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_plain_handler_of_blacksheep_runs_on_the_event_loop() -> None:
    """There it would block everybody."""
    app = Application()

    @app.router.get("/")
    def where() -> str:
        return str(asyncio.get_running_loop().is_running())

    await app.start()
    assert await ask(SQLAlchemyMiddleware(app, Database("sqlite://"))) == "True"


async def test_falcons_helper_does_not_copy_the_context(sqlite: Backend) -> None:
    """``asyncio.to_thread`` does, and finds the session of the request."""
    database = Database(sqlite.url)

    def find() -> str:
        try:
            return "found" if database.session else ""
        except NoUnitOfWorkError:
            return "none"

    class Find:
        async def on_get(self, req: Any, resp: Any) -> None:
            resp.text = f"{await falcon.sync_to_async(find)}, {await asyncio.to_thread(find)}"

    app: Any = falcon.asgi.App()
    app.add_route("/", Find())
    assert await ask(SQLAlchemyMiddleware(app, database)) == "none, found"
    await database.async_dispose()


DJANGO = """
import asyncio
from django.conf import settings
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
import django
import httpx
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.test import AsyncClient
from django.urls import path
from asgi_sqla import Database, NoUnitOfWorkError, SQLAlchemyMiddleware

db = Database("sqlite://")

async def find(request):
    try:
        return HttpResponse("found" if db.async_session else "")
    except NoUnitOfWorkError:
        return HttpResponse("none")

urlpatterns = [path("", find)]
django.setup()
application = SQLAlchemyMiddleware(get_asgi_application(), db)

async def main():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://test") as client:
        print((await AsyncClient().get("/")).content.decode(), (await client.get("/")).text)

asyncio.run(main())
"""


def test_djangos_test_client_calls_it_past_the_wrapping(tmp_path: Path) -> None:
    """A client of ASGI calls what is served."""
    program = [sys.executable, "-W", "ignore", "-c", DJANGO]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["none", "found"], ran.stderr
