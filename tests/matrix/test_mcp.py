"""MCP: tools with a ``session_scope()`` of their own, on real servers, with real clients and both transports."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import Connection, text
from support.databases import NO_OWNER, Backend, Item
from support.servers import Server

from asgi_sqla import Database, SQLAlchemyMiddleware, session_scope
from matrix.applications.mcp_tools import ADDED, LIBRARIES, Client, application, server
from matrix.pages import run_page

pytestmark = [
    pytest.mark.parametrize("backend", ["asyncpg"], indirect=True),
    pytest.mark.filterwarnings("ignore:The logging capability is deprecated"),
]
LIBRARY = pytest.mark.parametrize("library", LIBRARIES)
MODE = pytest.mark.parametrize("mode", ["legacy", "auto"])
TRANSPORTS = {
    "event stream, stateful": {"json": False, "stateless": False, "mounted": False},
    "event stream, stateless": {"json": False, "stateless": True, "mounted": True},
    "JSON, stateful": {"json": True, "stateless": False, "mounted": True},
    "JSON, stateless": {"json": True, "stateless": True, "mounted": False},
}
WAYS = [
    ("event stream, stateful", "legacy"),
    ("event stream, stateless", "legacy"),
    ("event stream, stateless", "auto"),
    ("JSON, stateful", "legacy"),
    ("JSON, stateless", "auto"),
]
"""The newest protocol, which a client in the mode "auto" finds, has no sessions."""


@asynccontextmanager
async def connected(
    library: str, app: Any, mode: str = "auto", database: Database | None = None
) -> AsyncIterator[Client]:
    """Serve ``app``, and connect a client; check that the idle conversation holds no connection."""
    with Server(app, lifespan="on") as running:
        async with Client(library, f"{running.url}/mcp", mode) as client:
            yield client
            if database is not None:
                assert await asyncio.to_thread(running.out_now, database) == 0


def expected(tool: str, name: str, arguments: dict[str, Any]) -> set[str]:
    """Return the rows of a call that succeeds, and none for one that must fail."""
    if tool in ("fail", "say_no") or arguments.get("owner") == NO_OWNER:
        return set()
    return {name, f"{name} too"} if tool == "report" else {name}


CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("add", {}),
    ("add_in_thread", {}),
    ("fail", {}),
    ("add", {"owner": NO_OWNER}),  # COMMIT fails
    ("report", {}),
    ("add_in_thread", {"owner": NO_OWNER}),
    ("say_no", {}),
    ("report", {"owner": NO_OWNER}),
    ("in_tasks", {}),
)


@LIBRARY
@pytest.mark.parametrize(("transport", "mode"), WAYS)
@pytest.mark.cell("MCP", "50 calls, {transport}", "{library}")
async def test_each_of_50_calls_is_told_only_what_is_committed(
    backend: Backend,
    database: Database,
    library: str,
    transport: str,
    mode: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A COMMIT that fails is no success, and a failed tool keeps nothing, alone or mounted under the middleware."""
    caplog.set_level(logging.CRITICAL + 1)  # to format 300 tracebacks takes longer than the calls
    options = TRANSPORTS[transport]
    app = application(library, server(library, database), **options)
    app = SQLAlchemyMiddleware(app, database) if options["mounted"] else app
    with backend.witness.connect().execution_options(isolation_level="AUTOCOMMIT") as witness:
        async with connected(library, app, mode, database) as client:
            await check_50_calls(client, witness)


async def check_50_calls(client: Client, witness: Connection) -> None:
    """Make them, ten at a time, and look at the rows of each as soon as its answer is there."""
    rows_of = text("SELECT name FROM item WHERE name LIKE :name || '%'")

    async def check(number: int, tool: str, arguments: dict[str, Any]) -> None:
        name = f"{number:02} {tool}"
        succeeded, said = await client.call(tool, name=name, **arguments)
        kept = set(witness.scalars(rows_of, {"name": name}))
        rows = expected(tool, name, arguments)
        assert (succeeded, said == ADDED, kept) == (bool(rows), bool(rows), rows)

    calls = [(number, *call) for number, call in zip(range(50), cycle(CALLS), strict=False)]
    for start in range(0, 50, 10):
        await asyncio.gather(*(check(*call) for call in calls[start : start + 10]))


@LIBRARY
@MODE
@pytest.mark.cell("MCP", "20 tools in flight on a pool of 2", "{library}")
async def test_20_tools_in_flight_share_a_pool_of_2(backend: Backend, library: str, mode: str) -> None:
    """Each reports its progress in the middle of its transaction, and none fails."""
    database = Database(backend.url, engine_options={"pool_size": 2, "max_overflow": 0, "pool_timeout": 25})
    app = application(library, server(library, database), json=False, stateless=True, mounted=True)
    async with connected(library, SQLAlchemyMiddleware(app, database), mode, database) as client:
        answers = await asyncio.gather(*(client.call("report", name=f"{number:02}") for number in range(20)))
        reported = client.reported
    await database.async_dispose()

    assert answers == [(True, ADDED)] * 20
    assert len(backend.names()) == 40
    assert reported == 20


@LIBRARY
@MODE
@pytest.mark.cell("MCP", "a cancelled tool keeps nothing", "{library}")
async def test_a_cancelled_tool_keeps_nothing(backend: Backend, library: str, mode: str) -> None:
    """Its work is rolled back, and its connection, the only one of the pool, serves the next call."""
    database = Database(backend.url, engine_options={"pool_size": 1, "max_overflow": 0, "pool_timeout": 25})
    app = application(library, server(library, database), json=False, stateless=False, mounted=False)
    async with connected(library, app, mode, database) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.call("wait", name="cancelled", seconds=30)
        assert await client.call("add", name="next") == (True, ADDED)
    backend.terminate()  # the server notices late that nobody waits for the statement
    await database.async_dispose()
    assert backend.names() == ["next"]


@LIBRARY
@pytest.mark.cell("MCP", "tasks of a tool", "{library}")
async def test_a_task_that_outlives_its_tool_gets_an_error(backend: Backend, database: Database, library: str) -> None:
    """The unit has ended with the tool, and nothing is reopened."""
    app = application(library, server(library, database), json=False, stateless=False, mounted=False)
    async with connected(library, app) as client:
        assert await client.call("forget", name="a") == (True, ADDED)
        assert await client.call("forgotten") == (True, "UnitOfWorkEndedError")
    assert backend.names() == ["a"]


@LIBRARY
@pytest.mark.cell("MCP", "what clients see of a tool", "{library}")
async def test_the_decorator_changes_nothing_that_clients_see(database: Database, library: str) -> None:
    """Names, descriptions and schemas are those of the function, and so are the injected arguments."""
    seen = []
    for scoped in (True, False):
        async with Client(library, server(library, database, scoped=scoped), "auto") as client:  # in memory
            seen.append(await client.schemas())
    assert seen[0] == seen[1]
    assert any("owner" in tool["input_schema"]["properties"] for tool in seen[0])


@LIBRARY
@pytest.mark.cell("MCP", "without HTTP", "{library}")
async def test_a_tool_needs_no_asgi(backend: Backend, database: Database, library: str) -> None:
    """Over stdio, or in memory as in tests, the scope of the tool is all there is."""
    async with Client(library, server(library, database), "legacy") as client:
        assert await client.call("add", name="a") == (True, ADDED)
        assert backend.names() == ["a"]
        assert not (await client.call("fail", name="b"))[0]
    assert backend.names() == ["a"]


@LIBRARY
@pytest.mark.cell("MCP", "without a scope", "{library}")
async def test_a_tool_without_a_scope_gets_an_error(
    backend: Backend, database: Database, library: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no middleware is around the server; the log says that there is no unit of work."""
    app = application(library, server(library, database, scoped=False), json=False, stateless=True, mounted=False)
    async with connected(library, app) as client:
        succeeded, _ = await client.call("add", name="a")
    assert (succeeded, backend.names()) == (False, [])
    assert "NoUnitOfWorkError" in caplog.text


async def test_tools_made_of_an_api_have_the_units_of_its_requests(backend: Backend, database: Database) -> None:
    """FastMCP calls the API in process: its middleware commits before the tool has its answer."""
    import fastmcp

    api = FastAPI()
    api.add_middleware(SQLAlchemyMiddleware, database=database)

    @api.post("/items", operation_id="add", status_code=201)
    async def add(name: str, owner: int | None = None) -> str:
        database.async_session.add(Item(name=name, owner_id=owner))
        return ADDED

    made = fastmcp.FastMCP.from_fastapi(api)
    async with session_scope(database), connected("FastMCP", made.http_app(path="/mcp")) as client:
        assert (await client.call("add", name="a"))[0]
        assert backend.names() == ["a"]
        assert not (await client.call("add", name="b", owner=NO_OWNER))[0]
    assert backend.names() == ["a"]


@LIBRARY
@pytest.mark.cell("MCP", "without a scope, under the middleware", "{library}")
async def test_without_a_scope_success_is_told_after_the_commit(
    backend: Backend, database: Database, library: str
) -> None:
    """Each event is a part of the answer to an HTTP request, whose unit the tool finds."""
    made = server(library, database, scoped=False)
    app = SQLAlchemyMiddleware(application(library, made, json=False, stateless=False, mounted=True), database)
    async with connected(library, app, "legacy", database) as client:
        for number in range(5):
            assert await client.call("add", name=f"{number}") == (True, ADDED)
            assert f"{number}" in await asyncio.to_thread(backend.names)
        with pytest.raises(Exception, match="stream ended without a response"):
            await client.call("add", name="doomed", owner=NO_OWNER)
    assert backend.names() == [f"{number}" for number in range(5)]


@pytest.mark.cell("MCP", "tests/neighbours/mcp.rst", "runs")
def test_the_page_runs(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reader copies runs as it stands."""
    assert run_page("mcp.rst", tmp_path, monkeypatch) > 4
