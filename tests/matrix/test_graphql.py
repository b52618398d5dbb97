"""GraphQL: an operation with ``errors`` is a 200, resolvers run side by side, and subscriptions last."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.databases import NO_OWNER, Backend, Item
from support.servers import Server

from asgi_sqla import Database, SQLAlchemyMiddleware, session_scope
from matrix.applications.graphql_shops import LIBRARIES, Socket, shop
from matrix.pages import run_page

pytestmark = pytest.mark.parametrize("backend", ["asyncpg"], indirect=True)
LIBRARY = pytest.mark.parametrize("library", LIBRARIES)
TRANSPORT = pytest.mark.parametrize("transport", ["HTTP", "websocket"])
BOTH = 'mutation { x: add(name: "a")  fail(name: "b")  y: add(name: "c") }'
DOOMED = f'mutation {{ x: add(name: "a")  y: add(name: "b", owner: {NO_OWNER}) }}'


async def ask(transport: str, url: str, query: str) -> dict[str, Any]:
    """Return the answer to one operation; ``errors`` are there if there were none, too."""
    if transport == "HTTP":
        async with httpx.AsyncClient(timeout=20) as client:
            answer = await client.post(url, json={"query": query})
        answer.raise_for_status()
        return {"errors": [], "data": None, **answer.json()}
    async with Socket(url) as socket:
        async for first in socket.ask(query):
            return {"errors": [], "data": None, **first}
    raise AssertionError(query)


@LIBRARY
@TRANSPORT
@pytest.mark.cell("GraphQL", "a transaction per field, {transport}", "{library}")
async def test_each_field_of_a_mutation_is_told_what_is_committed_of_it(
    backend: Backend, database: Database, library: str, transport: str
) -> None:
    """Under ``@session_scope()`` a field that fails, at its COMMIT too, keeps nothing; the others are committed."""
    with Server(SQLAlchemyMiddleware(shop(library, database, "field"), database), lifespan="off") as server:
        first = await ask(transport, server.url, BOTH)
        kept = backend.names()
        second = await ask(transport, server.url, DOOMED.replace('"a"', '"d"'))
        out = server.out(database)

    assert (first["data"], len(first["errors"])) == ({"x": "added", "fail": None, "y": "added"}, 1)
    assert kept == ["a", "c"]
    assert (second["data"], len(second["errors"])) == ({"x": "added", "y": None}, 1)
    assert (backend.names(), out) == (["a", "c", "d"], 0)


@LIBRARY
@TRANSPORT
@pytest.mark.cell("GraphQL", "a transaction per operation, {transport}", "{library}")
async def test_an_operation_with_errors_keeps_nothing(
    backend: Backend, database: Database, library: str, transport: str
) -> None:
    """It is a 200 all the same, and its ``data`` is null; a COMMIT that fails is never told as success."""
    with Server(SQLAlchemyMiddleware(shop(library, database, "operation"), database), lifespan="off") as server:
        answer = await ask(transport, server.url, BOTH)
        assert (answer["data"], len(answer["errors"]), backend.names()) == (None, 1, [])
        try:
            doomed = await ask(transport, server.url, DOOMED)
        except Exception:
            doomed = {"data": None, "errors": ["an error of HTTP, or a closed socket"]}
        assert (doomed["data"], len(doomed["errors"]), backend.names()) == (None, 1, [])
        fine = await ask(transport, server.url, 'mutation { x: add(name: "a")  y: add(name: "b") }')
        out = server.out(database)

    assert (fine["data"], fine["errors"], backend.names(), out) == ({"x": "added", "y": "added"}, [], ["a", "b"], 0)


@LIBRARY
@pytest.mark.cell("GraphQL", "fields side by side, a scope each", "{library}")
async def test_20_fields_side_by_side_share_a_pool_of_2(backend: Backend, library: str) -> None:
    """Each has its own scope, a DataLoader one for each batch, and none fails."""
    database = Database(backend.url, engine_options={"pool_size": 2, "max_overflow": 0, "pool_timeout": 25})
    with session_scope(database) as session:
        session.add_all(Item(id=number, name=f"item {number}") for number in range(10))
    fields = [f"s{number}: slow(number: {number})" for number in range(20)]
    loaded = [f"n{number}: name(id: {number})" for number in range(10)]
    with Server(SQLAlchemyMiddleware(shop(library, database, None), database), lifespan="off") as server:
        answer = await ask("HTTP", server.url, f"{{ {' '.join(fields + loaded)} }}")
        out = server.out(database)
    await database.async_dispose()

    names = {f"n{number}": f"item {number}" for number in range(10)}
    assert (answer["errors"], answer["data"], out) == ([], {f"s{n}": n for n in range(20)} | names, 0)


@LIBRARY
@pytest.mark.cell("GraphQL", "fields side by side, one session", "{library}")
async def test_a_shared_session_ends_in_an_error_that_says_what_to_write(
    database: Database, library: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The second resolver gets it; what its framework cancels then is named, too, if the request fails for it."""
    with Server(SQLAlchemyMiddleware(shop(library, database, None), database), lifespan="off") as server:
        async with httpx.AsyncClient(timeout=20) as client:
            answer = await client.post(server.url, json={"query": "{ a: shared(number: 1)  b: shared(number: 2) }"})
        out = server.out(database)

    assert "the resolvers of one GraphQL query" in caplog.text
    assert "let each open its own" in caplog.text
    assert answer.status_code == 500 or answer.json()["errors"]
    assert answer.status_code != 500 or "a statement of this session was cancelled" in caplog.text
    assert out == 0


@LIBRARY
@pytest.mark.cell("GraphQL", "subscriptions", "{library}")
async def test_an_event_of_a_subscription_is_told_when_it_is_committed(
    backend: Backend, database: Database, library: str
) -> None:
    """With a scope for each event; between two of them the socket holds no connection."""
    with Server(SQLAlchemyMiddleware(shop(library, database, "field"), database), lifespan="off") as server:
        async with Socket(server.url) as socket:
            seen = []
            async for event in socket.ask('subscription { added(names: ["a", "b", "c"]) }'):
                name = event["data"]["added"]
                rows = await asyncio.to_thread(backend.names)
                seen.append((name, name in rows, await asyncio.to_thread(server.out_now, database)))
            told = [each async for each in socket.ask('mutation { add(name: "d") }', "2")]
            assert told[0]["data"] == {"add": "added"}
            assert "d" in backend.names()
            idle = server.out_now(database)

    assert [each[:2] for each in seen] == [("a", True), ("b", True), ("c", True)]
    assert (seen[-1][2], idle) == (0, 0)


@pytest.mark.cell("GraphQL", "tests/neighbours/graphql.rst", "runs")
def test_the_page_runs(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reader copies runs as it stands."""
    assert run_page("graphql.rst", tmp_path, monkeypatch) > 4
