"""The middleware as a whole: what passes through, layers, several databases, many instances."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from support.asgi import Call, http_scope, respond
from support.databases import NO_OWNER, Backend, Item, sqlite_backend

from asgi_sqla import Database, NoUnitOfWorkError, SQLAlchemyMiddleware, UnitOfWork, current_unit


@pytest.fixture
async def shops(tmp_path: Path) -> AsyncIterator[list[tuple[Database, Backend]]]:
    """Return three SQLite databases, each in its own file."""
    made = []
    for name in ("first", "second", "third"):
        folder = tmp_path / name
        folder.mkdir()
        backend = sqlite_backend(folder)
        made.append((Database(backend.url), backend))
    yield made
    for database, backend in made:
        await database.async_dispose()
        backend.witness.dispose()


@pytest.fixture
async def shop(sqlite: Backend) -> AsyncIterator[Database]:
    """Return a database in a file."""
    database = Database(sqlite.url)
    yield database
    await database.async_dispose()


@pytest.mark.parametrize("kind", ["webtransport", "", "http2"])
async def test_what_is_not_ours_passes_through(shop: Database, kind: str) -> None:
    """Scope, receive, send and the result are the same objects, and there is no unit of work."""
    seen: list[Any] = []

    async def app(*arguments: Any) -> None:
        with pytest.raises(NoUnitOfWorkError):
            current_unit()
        seen.append(arguments)

    call = Call(app, {"type": kind})
    await SQLAlchemyMiddleware(app, shop)(call.scope, call.receive, call.send)
    ((scope, receive, send),) = seen
    assert scope is call.scope
    assert scope == {"type": kind}
    assert (receive, send) == (call.receive, call.send)


async def test_the_unit_is_in_the_scope_and_leaves_it(shop: Database) -> None:
    """``scope["asgi_sqla"]`` leads to the unit while the request runs; afterwards the scope is as before."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["asgi_sqla"].unit() is current_unit())
        seen.append(isinstance(current_unit(), UnitOfWork))
        await respond(send)

    call = await Call(SQLAlchemyMiddleware(app, shop))()
    assert (seen, call.status, call.scope) == ([True, True], 200, http_scope())
    with pytest.raises(NoUnitOfWorkError):
        current_unit()


async def test_a_second_layer_leaves_the_request_alone(shop: Database, sqlite: Backend) -> None:
    """There is one unit, which the outer layer judges once."""
    units: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        units.append(current_unit())
        shop.async_session.add(Item(name=scope["path"]))
        await respond(send, int(scope["path"][1:]))

    async def between(scope: Any, receive: Any, send: Any) -> None:
        units.append(current_unit())
        await SQLAlchemyMiddleware(app, shop, commit_on=range(400, 600))(scope, receive, send)

    for path in ("/201", "/400"):
        call = await Call(SQLAlchemyMiddleware(between, shop), http_scope(path))()
        assert call.raised is None
    assert sqlite.names() == ["/201"]
    assert [units[0] is units[1], units[2] is units[3], units[0] is units[2]] == [True, True, False]


async def test_a_scope_that_is_copied_on_the_way_is_one_request(shop: Database, sqlite: Backend) -> None:
    """Routers that mount applications copy the scope."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        shop.async_session.add(Item(name="a"))
        await respond(send)

    inner = SQLAlchemyMiddleware(app, shop)

    async def mount(scope: Any, receive: Any, send: Any) -> None:
        outer = current_unit()
        await inner({**scope, "path": "/below"}, receive, send)
        assert current_unit() is outer

    call = await Call(SQLAlchemyMiddleware(mount, shop))()
    assert (call.raised, call.status, sqlite.names()) == (None, 200, ["a"])


async def test_a_request_inside_a_request_is_its_own(shop: Database, sqlite: Backend) -> None:
    """A client that calls the application in process starts another scope, and so another unit."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/outer":
            unit = current_unit()
            inner = await Call(wrapped, http_scope("/inner"))()
            assert (inner.status, current_unit()) == (200, unit)
            await respond(send, 400)
        else:
            shop.async_session.add(Item(name="inner"))
            await respond(send)

    wrapped = SQLAlchemyMiddleware(app, shop)
    call = await Call(wrapped, http_scope("/outer"))()
    assert (call.raised, call.status, sqlite.names()) == (None, 400, ["inner"])


async def test_many_instances_share_one_database(shop: Database, sqlite: Backend) -> None:
    """Litestar makes one for each route: nothing is made again, and the state of a request is its own."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        shop.async_session.add(Item(name=scope["path"]))
        await asyncio.sleep(0.001)
        await respond(send)

    instances = [SQLAlchemyMiddleware(app, shop) for _ in range(20)]
    calls = [Call(instance, http_scope(f"/{n:02}")) for n, instance in enumerate(instances)]
    calls += [Call(instances[0], http_scope(f"/{n:02}")) for n in range(20, 30)]
    await asyncio.gather(*(call() for call in calls))
    assert {call.status for call in calls} == {200}
    assert sqlite.names() == [f"/{n:02}" for n in range(30)]


def test_its_repr_says_what_it_wraps() -> None:
    """It shows the application, and the databases without their passwords."""
    database = Database("postgresql://u:s3cret@h/d")

    class App:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            """Do nothing."""

        def __repr__(self) -> str:
            return "app"

    assert repr(SQLAlchemyMiddleware(App(), database)) == (
        "SQLAlchemyMiddleware(app, (<Database postgresql://u:***@h/d>,))"
    )


# Several databases


@pytest.mark.parametrize(("status", "kept"), [(200, ["a"]), (400, [])])
@pytest.mark.parametrize("kind", ["sync", "async", "both"])
async def test_several_databases_are_one_decision(
    shops: list[tuple[Database, Backend]], kind: str, status: int, kept: list[str]
) -> None:
    """All commit, or none, including one that the middleware does not name."""
    (first, one), (second, two), (third, three) = shops

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for number, database in enumerate((first, second, third)):
            asynchronous = kind == "async" or (kind == "both" and number % 2)
            (database.async_session if asynchronous else database.session).add(Item(name="a"))
        await respond(send, status)

    call = await Call(SQLAlchemyMiddleware(app, (first, second)))()
    assert (call.raised, call.status) == (None, status)
    assert [backend.names() for backend in (one, two, three)] == [kept] * 3


async def test_they_commit_in_the_order_of_first_use(
    shops: list[tuple[Database, Backend]],
) -> None:
    """If one fails, those after it are rolled back, and the exception says which had committed."""
    (first, one), (second, two), (third, three) = shops

    async def app(scope: Any, receive: Any, send: Any) -> None:
        third.session.add(Item(name="a"))
        second.async_session.add(Item(name="a", owner_id=NO_OWNER))
        first.async_session.add(Item(name="a"))
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, (first, second, third)))()
    assert (call.starts, type(call.raised)) == ([500], IntegrityError)
    assert [backend.names() for backend in (one, two, three)] == [[], [], ["a"]]
    assert isinstance(call.raised, IntegrityError)
    (note,) = call.raised.__notes__
    assert note.endswith(
        f"COMMIT failed; these had been committed: {third!r}; these are rolled back: {second!r}, {first!r}"
    )


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_session_of_each_kind_and_database(shops: list[tuple[Database, Backend]], kind: str) -> None:
    """There is at most one of each, and it is the same wherever it is used."""
    (first, _), (second, _), _ = shops
    seen: list[Any] = []

    def sessions() -> list[Any]:
        return [first.session, second.session] + ([first.async_session] if kind == "async" else [])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        before = sessions()
        again = await asyncio.to_thread(sessions) if kind == "sync" else sessions()
        seen.extend([before == again, len(set(before)) == len(before)])
        await respond(send)

    await Call(SQLAlchemyMiddleware(app, (first, second)))()
    assert seen == [True, True]
