"""The same MCP tools for the official SDK and for FastMCP; each writes items, and has a scope of its own."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any, Self

os.environ["FASTMCP_ENABLE_RICH_LOGGING"] = "false"  # it is read at import, and draws a box for each traceback
import fastmcp
import fastmcp.client
import mcp.client
import mcp.server.mcpserver
from fastapi import FastAPI
from mcp_types import CallToolResult, TextContent
from sqlalchemy import text
from support.databases import Item

from asgi_sqla import Database, current_unit, session_scope

LIBRARIES = ("MCP SDK", "FastMCP")
ADDED = "added"


def server(library: str, database: Database, *, scoped: bool = True) -> Any:  # noqa: C901  # a list of tools
    """Return a server of ``library``; without ``scoped`` its tools are decorated by the library alone."""
    made: Any = mcp.server.mcpserver.MCPServer("shop") if library == "MCP SDK" else fastmcp.FastMCP("shop")
    context: Any = mcp.server.mcpserver.Context if library == "MCP SDK" else fastmcp.Context
    scope: Callable[[Any], Any] = session_scope(database) if scoped else lambda tool: tool
    kept: list[asyncio.Task[None]] = []
    over = asyncio.Event()

    @made.tool()
    @scope
    async def add(name: str, owner: int | None = None) -> str:
        """Add an item."""
        database.async_session.add(Item(name=name, owner_id=owner))
        return ADDED

    @made.tool()
    @scope
    def add_in_thread(name: str, owner: int | None = None) -> str:
        """Add an item from a worker thread."""
        database.session.add(Item(name=name, owner_id=owner))
        return ADDED

    @made.tool()
    @scope
    async def fail(name: str) -> str:
        """Add an item, and fail."""
        database.async_session.add(Item(name=name))
        await database.async_session.flush()
        raise ValueError("no")

    @made.tool()
    @scope
    async def say_no(name: str) -> CallToolResult:
        """Add an item, and say that it failed, without an exception."""
        database.async_session.add(Item(name=name))
        current_unit().rollback_only()
        return CallToolResult(content=[TextContent(type="text", text="no")], is_error=True)

    @made.tool()
    @scope
    async def report(name: str, ctx: context, owner: int | None = None) -> str:
        """Add an item, report half-way, and add a second one."""
        database.async_session.add(Item(name=name))
        await database.async_session.flush()
        await ctx.report_progress(1, 2)
        with contextlib.suppress(Exception):  # the newest protocol wants it requested
            await ctx.info("half")
        await asyncio.sleep(0.01)
        database.async_session.add(Item(name=f"{name} too", owner_id=owner))
        return ADDED

    @made.tool()
    @scope
    async def in_tasks(name: str) -> str:
        """Add an item in a task of its own, which finds the unit of the tool."""

        async def write() -> None:
            database.async_session.add(Item(name=name))

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
        return ADDED

    @made.tool()
    @scope
    async def forget(name: str) -> str:
        """Add an item, and leave a task behind."""

        async def late() -> None:
            await over.wait()
            database.async_session.add(Item(name=f"{name} late"))

        database.async_session.add(Item(name=name))
        kept.append(asyncio.create_task(late()))
        return ADDED

    @made.tool()
    async def forgotten() -> str:
        """Return what became of the tasks that were left behind."""
        over.set()
        await asyncio.wait(kept)
        return " ".join(type(task.exception()).__name__ for task in kept)

    @made.tool()
    @scope
    async def wait(name: str, seconds: float) -> str:
        """Add an item, and wait in the database."""
        database.async_session.add(Item(name=name))
        await database.async_session.flush()
        await database.async_session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
        return ADDED

    return made


def application(library: str, made: Any, *, json: bool, stateless: bool, mounted: bool) -> Any:
    """Return the ASGI application of a server, alone or mounted in FastAPI."""
    options: dict[str, Any] = {"json_response": json, "stateless_http": stateless}
    inner = made.streamable_http_app(**options) if library == "MCP SDK" else made.http_app(path="/mcp", **options)
    if not mounted:
        return inner
    api = FastAPI(lifespan=lambda _: inner.router.lifespan_context(inner))
    api.mount("/", inner)
    return api


class Client:
    """A client of ``library``; ``mode`` is "legacy" for the protocol with a handshake, or "auto" for the newest."""

    def __init__(self, library: str, target: Any, mode: str) -> None:
        self._sdk = library == "MCP SDK"
        self.reported = 0
        made: Callable[..., Any] = mcp.client.Client if self._sdk else fastmcp.client.Client
        self.client = made(target, mode=mode)

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.client.__aexit__(*exc)

    async def call(self, tool: str, **arguments: Any) -> tuple[bool, str]:
        """Call a tool; return whether it is said to have succeeded, and the text of its answer."""
        if self._sdk:
            answer = await self.client.call_tool(tool, arguments, progress_callback=self._note)
        else:
            answer = await self.client.call_tool(tool, arguments, progress_handler=self._note, raise_on_error=False)
        return not answer.is_error, answer.content[0].text

    async def schemas(self) -> list[Any]:
        """Return what the server says of its tools."""
        listed = await self.client.list_tools()
        tools = listed.tools if self._sdk else listed
        return [tool.model_dump(include={"name", "description", "input_schema", "output_schema"}) for tool in tools]

    async def _note(self, *_: Any) -> None:
        self.reported += 1
