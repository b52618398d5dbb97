"""Hooks at begin: settings that apply to every transaction of a unit, such as row-level security."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session
from support.asgi import Call, http_scope, respond
from support.databases import Backend, Item
from support.failing import BrokenError
from support.marks import KINDS, on_postgresql
from support.rivals import join_rivals, perform, rows, trouble

from asgi_sqla import ConfigurationError, Database, SQLAlchemyMiddleware, current_unit, session_scope

TENANT = "SELECT current_setting('app.tenant', true)"


def as_tenant(tenant: str) -> Callable[[Connection], object]:
    """Return the hook that sets the tenant for one transaction."""
    return lambda connection: connection.execute(text("SELECT set_config('app.tenant', :it, true)"), {"it": tenant})


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hook_is_called_at_each_begin(database: Database, backend: Backend, kind: str) -> None:
    """It runs for the first transaction and after each commit or rollback in the middle, but not for a savepoint."""
    begun: list[str] = []

    def work(session: Session) -> None:
        session.scalar(text("SELECT 1"))
        with session.begin_nested():
            session.scalar(text("SELECT 1"))
        session.commit()
        session.scalar(text("SELECT 1"))
        session.rollback()
        session.add(Item(name="a"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_unit().on_begin(lambda connection: begun.append(connection.dialect.name))
        await perform(database, kind, work)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.status, backend.names()) == (None, 201, ["a"])
    assert begun == [backend.witness.dialect.name] * 3


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_setting_is_repeated_after_a_commit(database: Database, backend: Backend, kind: str) -> None:
    """SET LOCAL ends with its transaction, and the next request on that connection does not see it."""
    seen: list[Any] = []

    def work(session: Session) -> None:
        for _ in range(2):
            seen.append(session.scalar(text(TENANT)))
            session.commit()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/nobody":
            current_unit().on_begin(as_tenant(scope["path"]))
        await perform(database, kind, work)
        await respond(send)

    middleware = SQLAlchemyMiddleware(app, database)
    for path in ("/7", "/nobody", "/8"):
        await Call(middleware, http_scope(path))()

    assert seen == ["/7", "/7", "", "", "/8", "/8"]


@pytest.fixture
def secrets(backend: Backend) -> Iterator[None]:
    """Create a table whose rows each tenant sees only of its own, and a role under that rule."""
    drop = ["DROP TABLE IF EXISTS secret", "DROP ROLE IF EXISTS asgi_sqla_tenant"]
    create = [
        "CREATE TABLE secret (tenant TEXT, word TEXT)",
        "INSERT INTO secret VALUES ('7', 'seven'), ('8', 'eight')",
        "ALTER TABLE secret ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON secret USING (tenant = current_setting('app.tenant', true))",
        "CREATE ROLE asgi_sqla_tenant",
        "GRANT SELECT, INSERT ON secret TO asgi_sqla_tenant",
    ]
    for statements in (drop + create, drop):
        with backend.witness.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
        if statements is not drop:
            yield


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
@pytest.mark.usefixtures("secrets")
async def test_row_level_security_hides_rows(database: Database, backend: Backend, kind: str, read_only: bool) -> None:
    """Each tenant sees its own rows, in writing and in read-only requests. Without a tenant there are none."""
    seen: dict[str, list[Any]] = {}

    def hook(tenant: str) -> Callable[[Connection], None]:
        def begin(connection: Connection) -> None:
            connection.execute(text("SET LOCAL ROLE asgi_sqla_tenant"))
            as_tenant(tenant)(connection)

        return begin

    def work(path: str, session: Session) -> None:
        seen[path] = list(session.scalars(text("SELECT word FROM secret")))
        session.commit()
        seen[path] += session.scalars(text("SELECT word FROM secret"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        current_unit().on_begin(hook(path[1:]))
        await perform(database, kind, lambda session: work(path, session))
        await respond(send)

    middleware = SQLAlchemyMiddleware(app, database, read_only={"GET"} if read_only else ())
    for path in ("/7", "/8", "/"):
        assert (await Call(middleware, http_scope(path))()).raised is None

    assert seen == {"/7": ["seven"] * 2, "/8": ["eight"] * 2, "/": []}


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_hook_makes_a_read_only_unit_a_transaction(database: Database, backend: Backend, kind: str) -> None:
    """A hook needs a transaction, so the unit begins one, and it still refuses to write."""
    seen: list[Any] = []

    def work(session: Session) -> None:
        seen.append(session.scalar(text(TENANT)))
        seen.append(session.scalar(text("SHOW transaction_read_only")))
        session.execute(text("INSERT INTO item (name) VALUES ('no')"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_unit().on_begin(as_tenant("7"))
        await perform(database, kind, work)
        await respond(send)

    call = await Call(SQLAlchemyMiddleware(app, database, read_only={"GET"}))()

    assert "read-only transaction" in str(call.raised)
    assert (seen, backend.names()) == (["7", "on"], [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hook_that_comes_too_late_is_refused(database: Database, backend: Backend, kind: str) -> None:
    """The open transaction would run without the hook, so it is refused; the unit stays usable."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, lambda session: session.add(Item(name="a")))
        with pytest.raises(ConfigurationError, match="comes too late for a transaction of <UnitOfWork"):
            current_unit().on_begin(print)
        await respond(send)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.raised, call.status, backend.names()) == (None, 200, ["a"])


@pytest.mark.parametrize("level", [None, "SERIALIZABLE"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_hook_of_a_read_only_scope(database: Database, backend: Backend, kind: str, level: str | None) -> None:
    """Its session is there before the hook, and must not have been used; then each read is in a transaction."""
    begun: list[str] = []

    def hook(connection: Connection) -> None:
        begun.append(connection.execute(text("SELECT 'begun'")).scalar_one())
        if backend.is_postgresql:
            as_tenant("7")(connection)

    tenant = text(TENANT if backend.is_postgresql else "SELECT '7'")

    def work(session: Session) -> None:
        current_unit().on_begin(hook)
        for transactions in (1, 2):
            assert [session.scalar(tenant), session.scalar(tenant)] == ["7", "7"]
            assert begun == ["begun"] * transactions
            with pytest.raises(ConfigurationError, match="comes too late"):
                current_unit().on_begin(print)
            session.commit()

    if kind == "sync":

        def in_thread() -> None:
            with session_scope(database, read_only=True, isolation_level=level) as session:
                work(session)

        await asyncio.to_thread(in_thread)
    else:
        async with session_scope(database, read_only=True, isolation_level=level) as async_session:
            await async_session.run_sync(work)
    if backend.is_postgresql:
        async with session_scope(database, read_only=True) as after:
            assert await after.scalar(text(TENANT)) in (None, "")
        assert backend.backends("idle in transaction%") == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hook_that_fails_fails_the_query(database: Database, backend: Backend, kind: str) -> None:
    """No statement runs without the settings that the hook was to make."""

    def breaks(connection: Connection) -> None:
        raise BrokenError

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_unit().on_begin(breaks)
        await perform(database, kind, lambda session: session.execute(text("INSERT INTO item (name) VALUES ('no')")))
        await respond(send)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert isinstance(call.raised, BrokenError)
    assert (call.starts, backend.names()) == ([], [])


async def test_every_session_of_the_unit_calls_the_hooks(database: Database, backend: Backend) -> None:
    """Both kinds of session call the hooks, in the order of registration. A scope inside has its own hooks."""
    called: list[str] = []

    def note(word: str, _connection: Connection) -> None:
        called.append(word)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for word in ("one", "two"):
            current_unit().on_begin(partial(note, word))
        for kind in KINDS:
            await perform(database, kind, lambda session: session.scalar(text("SELECT 1")))
        async with session_scope(database) as session:
            await session.scalar(text("SELECT 1"))
        await respond(send)

    await Call(SQLAlchemyMiddleware(app, database))()

    assert called == ["one", "two"] * 2


async def test_each_attempt_registers_its_own_hook(database: Database, backend: Backend) -> None:
    """A retried request is a new unit, and its handler registers the hook again."""
    attempts: list[int] = []
    rows(backend)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempt = current_unit().attempt
        current_unit().on_begin(lambda connection: attempts.append(attempt))
        work = (lambda session: trouble(backend, session)) if attempt == 1 else (lambda session: session.connection())
        await perform(database, "async", work)
        await respond(send)

    call = await Call(SQLAlchemyMiddleware(app, database, retries=1))()
    join_rivals()

    assert (call.raised, attempts) == (None, [1, 2])


async def test_every_database_of_the_unit_calls_the_hooks(database: Database, sqlite: Backend) -> None:
    """Whichever is used first; a tenant is one for all."""
    second = Database(sqlite.url)
    begun: list[Connection] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_unit().on_begin(begun.append)
        for one in (database, second):
            await one.async_session.execute(text("SELECT 1"))
        await respond(send)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    engines = [one.async_engine.sync_engine for one in (database, second)]
    await second.async_dispose()

    assert (call.raised, [connection.engine for connection in begun]) == (None, engines)
