"""Exact costs of a request, so that no clock is needed. A change that raises one fails a test."""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from support.asgi import http_scope, respond
from support.databases import NO_OWNER, PLAIN, Backend, Item, make_backend
from support.marks import pipelined
from support.wire import Wire, wire

from asgi_sqla import Database, SQLAlchemyMiddleware

KINDS = ["sync", "async"]
KNOWN_ID = 1_000_000
"""The primary key of a row that is there."""


class Counts(NamedTuple):
    """The costs of one request."""

    sessions: int
    checkouts: int
    statements: int
    round_trips: int


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Answer without a database."""
    await respond(send)


async def receive() -> Any:
    """Receive nothing."""


async def drop(message: Any) -> None:
    """Send nothing."""


_names = count(1)


def writing(database: Database, kind: str, status: int, owner_id: int | None = None) -> Any:
    """Return an application that inserts a row and answers ``status``."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        item = Item(name=f"item {next(_names)}", owner_id=owner_id)
        if kind == "sync":
            database.session.add(item)
            await asyncio.to_thread(database.session.flush)
        else:
            database.async_session.add(item)
            await database.async_session.flush()
        await respond(send, status)

    return app


async def calls(app: Any) -> Counter[str]:
    """Return how often one request enters each Python function; a coroutine that waits would count again."""
    entered: Counter[str] = Counter()

    def profile(frame: Any, what: str, _argument: Any) -> None:
        if what == "call":
            entered[frame.f_code.co_name] += 1

    scope = http_scope()
    sys.setprofile(profile)
    try:
        await app(scope, receive, drop)
    finally:
        sys.setprofile(None)
    return entered


async def test_an_unused_request_enters_three_functions_of_ours(sqlite: Backend) -> None:
    """They are the middleware, and ``send`` for each of two messages."""
    ours = SQLAlchemyMiddleware(bare, Database(sqlite.url))

    added = await calls(ours) - await calls(bare)

    assert added == {"__call__": 1, "send": 2}


async def test_an_unused_request_holds_few_blocks_of_memory(sqlite: Backend) -> None:
    """While the application runs there are a stand-in, its ``send``, its undo, and the coroutine around all."""
    held: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        held.append(sys.getallocatedblocks())
        await respond(send)

    async def blocks(app: Any) -> int:
        scopes = [http_scope() for _ in range(20)]
        before = sys.getallocatedblocks()
        held.clear()
        for scope in scopes:
            await app(scope, receive, drop)
        return min(held) - before

    behind = SQLAlchemyMiddleware(app, Database(sqlite.url))
    tracer = sys.gettrace()  # such as that of coverage, which keeps what it has seen
    sys.settrace(None)
    gc.disable()
    try:
        await blocks(app), await blocks(behind)
        added = [await blocks(behind) - await blocks(app) for _ in range(5)]
    finally:
        gc.enable()
        sys.settrace(tracer)

    # A thread of an earlier test may end meanwhile; a context that holds more variables has one node more.
    assert statistics.mode(added) in (4, 5)


@pytest.mark.parametrize("status", [201, 422])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_leaves_nothing_for_the_garbage_collector(sqlite: Backend, kind: str, status: int) -> None:
    """Units, sessions and transactions are freed with the request, used or not."""
    database = Database(sqlite.url)
    app = SQLAlchemyMiddleware(writing(database, kind, status), database)
    for _ in range(3):
        await app(http_scope(), receive, drop)

    garbage: list[int] = []
    gc.disable()
    try:
        for _ in range(3):  # a thread of an earlier test that ends meanwhile may leave something, but not each time
            gc.collect()
            await app(http_scope(), receive, drop)
            await SQLAlchemyMiddleware(bare, database)(http_scope(), receive, drop)
            garbage.append(gc.collect())
    finally:
        gc.enable()
    await database.async_dispose()

    assert min(garbage) == 0


class Counting(Session):
    """Counts how many instances are made."""

    made = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Counting.made += 1


class Tally:
    """Counts the effects of requests on one database behind a wire."""

    def __init__(self, wire: Wire, database: Database) -> None:
        self.database = database
        self._wire = wire
        self._checkouts = 0
        self._statements = 0
        for engine in (database.engine, database.async_engine.sync_engine):
            event.listen(engine, "checkout", self._checkout)
            event.listen(engine, "before_cursor_execute", self._statement)

    def _checkout(self, *_: Any) -> None:
        self._checkouts += 1

    def _statement(self, *_: Any) -> None:
        self._statements += 1

    def _now(self) -> Counts:
        return Counts(Counting.made, self._checkouts, self._statements, self._wire.round_trips)

    async def request(self, app: Any, **options: Any) -> Counts:
        """Return the costs of one request of ``app``, after a few that warm it up."""
        for _ in range(8):  # psycopg prepares a statement that it has seen five times
            await self._call(app, options)
        before = self._now()
        await self._call(app, options)
        return Counts(*(now - then for now, then in zip(self._now(), before, strict=True)))

    async def _call(self, app: Any, options: Any) -> None:
        with suppress(IntegrityError):
            await SQLAlchemyMiddleware(app, self.database, **options)(http_scope(), receive, drop)


@pytest.fixture
def pipelining() -> bool:
    """Return the default, which a test may replace by its own parameter."""
    return not PLAIN


@pytest.fixture(params=["asyncpg", "psycopg"])
async def tally(request: pytest.FixtureRequest, pipelining: bool, tmp_path: Path) -> AsyncIterator[Tally]:
    """Return a count of everything on PostgreSQL, whose table has one row."""
    backend = make_backend(request.param, tmp_path)
    with Session(backend.witness) as session:
        session.add(Item(id=KNOWN_ID, name="known"))
        session.commit()
    with wire(backend.url) as (counting, url):
        database = Database(url, session_options={"class_": Counting}, pipelining=pipelining)
        yield Tally(counting, database)
        await database.async_dispose()
    backend.witness.dispose()


def reading(database: Database, kind: str) -> Any:
    """Return an application that reads a row by its key."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if kind == "sync":
            found = await asyncio.to_thread(database.session.get, Item, KNOWN_ID)
        else:
            found = await database.async_session.get(Item, KNOWN_ID)
        assert found is not None
        await respond(send)

    return app


async def test_an_unused_request_sends_nothing(tally: Tally) -> None:
    """It has no session, no connection, no statement and no round trip."""
    assert await tally.request(bare) == Counts(sessions=0, checkouts=0, statements=0, round_trips=0)


@pipelined
@pytest.mark.parametrize("kind", KINDS)
async def test_a_select_takes_two_round_trips(tally: Tally, kind: str) -> None:
    """They are BEGIN with SELECT, and COMMIT, on one connection of one session."""
    app = reading(tally.database, kind)

    assert await tally.request(app) == Counts(sessions=1, checkouts=1, statements=1, round_trips=2)


@pytest.mark.parametrize("pipelining", [False])
@pytest.mark.parametrize("kind", KINDS)
async def test_without_pipelining_a_select_takes_three_round_trips(tally: Tally, kind: str) -> None:
    """They are BEGIN, SELECT and COMMIT."""
    app = reading(tally.database, kind)

    assert await tally.request(app) == Counts(sessions=1, checkouts=1, statements=1, round_trips=3)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_read_only_select_takes_one_round_trip(tally: Tally, kind: str) -> None:
    """It sends neither BEGIN nor COMMIT; its separate engine is not counted."""
    app = reading(tally.database, kind)

    assert await tally.request(app, read_only={"GET"}) == Counts(sessions=1, checkouts=0, statements=0, round_trips=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [201, 422])
async def test_an_insert_takes_two_round_trips(tally: Tally, kind: str, status: int) -> None:
    """They are BEGIN with INSERT, and COMMIT or ROLLBACK."""
    app = writing(tally.database, kind, status)

    assert await tally.request(app) == Counts(sessions=1, checkouts=1, statements=1, round_trips=2 + PLAIN)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failed_commit_takes_two_round_trips(tally: Tally, kind: str) -> None:
    """PostgreSQL has rolled back when it refuses a COMMIT, so no ROLLBACK is sent."""
    app = writing(tally.database, kind, 201, NO_OWNER)

    assert await tally.request(app) == Counts(sessions=1, checkouts=1, statements=1, round_trips=2 + PLAIN)
