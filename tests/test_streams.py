"""Results that are fetched in parts: a reader after the end of its unit gets an error, and no other unit does."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anyio import to_thread
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session
from sqlalchemy.util import get_cls_kwargs
from support.asgi import Call
from support.databases import Backend, Item
from support.drivers import POSTGRESQL, on_drivers
from support.scopes import in_scope

from asgi_sqla import Database, SQLAlchemyMiddleware, session_scope

ROWS = 30
FORMS: dict[str, Callable[[Session], Iterator[Any]]] = {
    "argument": lambda session: iter(session.scalars(select(Item), execution_options={"yield_per": 2})),
    "statement": lambda session: iter(session.scalars(select(Item).execution_options(yield_per=2))),
    "query": lambda session: iter(session.query(Item).yield_per(2)),
    "stream_results": lambda session: iter(
        session.connection().execute(
            select(Item.__table__.c.id).execution_options(stream_results=True, max_row_buffer=2)
        )
    ),
    "session": lambda session: iter(session.scalars(select(Item))),
}
"""Where a result can be asked for in parts."""
if "execution_options" not in get_cls_kwargs(Session):  # SQLAlchemy 2.0
    del FORMS["session"]


@pytest.fixture
def filled(backend: Backend) -> Backend:
    """Return the backend with more rows than are fetched at once."""
    with backend.witness.begin() as connection:
        connection.execute(insert(Item), [{"name": f"row {number:02}"} for number in range(ROWS)])
    return backend


def one_connection(backend: Backend) -> Database:
    """Return a database with one connection, which the next unit gets."""
    return Database(backend.url, engine_options={"pool_size": 1, "max_overflow": 0})


@on_drivers(*POSTGRESQL, "pymysql", "sqlite3", "aiosqlite")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:.*ServerCursor.*:ResourceWarning")
async def test_a_late_reader_affects_no_other_unit(filled: Backend, kind: str, form: str) -> None:
    """It gets an error, or rows fetched before; the next unit on the connection reads and writes as usual."""
    database = one_connection(filled)
    options = {"execution_options": {"yield_per": 2}} if form == "session" else {}
    left: list[Iterator[Any]] = []

    def read(session: Session) -> None:
        left.append(FORMS[form](session))
        next(left[0])

    def work(session: Session) -> None:
        session.add(Item(name="other"))
        session.flush()
        seen = 0
        try:
            for _ in left[0]:
                seen += 1
        except Exception:  # each driver has its own
            seen = -1
        assert seen < ROWS - 1
        assert session.scalar(text("SELECT count(*) FROM item")) == ROWS + 1

    def in_thread() -> None:
        with session_scope(database, session_options=options) as session:
            read(session)
        with session_scope(database) as session:
            work(session)

    if kind == "sync":
        await to_thread.run_sync(in_thread)
    else:
        async with session_scope(database, session_options=options) as async_session:
            await async_session.run_sync(read)
        async with session_scope(database) as async_session:
            await async_session.run_sync(work)
    await database.async_dispose()

    assert "other" in filled.names()


@on_drivers("asyncpg", "psycopg async", "aiosqlite", "asyncmy")
async def test_a_stream_that_is_read_late_affects_no_other_unit(filled: Backend, kind: str) -> None:
    """This holds for ``AsyncSession.stream()`` too."""
    database = one_connection(filled)
    async with session_scope(database) as session:
        result = await session.stream(select(Item.id), execution_options={"yield_per": 2})
        await result.fetchone()

    async with session_scope(database) as session:
        session.add(Item(name="other"))
        await session.flush()
        with pytest.raises(Exception):  # noqa: B017, PT011  # each driver has its own
            await result.all()
        assert await session.scalar(text("SELECT count(*) FROM item")) == ROWS + 1
    await database.async_dispose()

    assert "other" in filled.names()


@on_drivers("pymysql", "asyncmy", "aiomysql")
@pytest.mark.parametrize("read_only", [False, True])
async def test_a_reader_that_hangs_up_reads_no_more(filled: Backend, kind: str, read_only: bool) -> None:
    """MariaDB's cursors read every row to come when they are closed; a rollback closes their connection instead."""
    database = one_connection(filled)
    left: list[Any] = []

    def read(session: Session) -> None:
        connection = session.connection()
        rows = iter(session.scalars(select(Item.name), execution_options={"yield_per": 2}))
        left.extend((connection.connection.driver_connection, next(rows), rows))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        await in_scope(database, kind, read, read_only=read_only)

    assert left[1] == "row 00"

    def look(session: Session) -> None:
        assert session.connection().connection.driver_connection is not left[0]
        assert len(session.scalars(select(Item)).all()) == ROWS

    await in_scope(database, kind, look)
    await database.async_dispose()


def test_a_result_is_kept_only_while_somebody_may_read_it(sqlite: Backend) -> None:
    """A long unit that reads thousands of results to their end keeps none of them."""
    with session_scope(Database(sqlite.url)) as session:
        session.add(Item(name="a"))
        session.flush()
        for _ in range(1000):
            assert len(session.scalars(select(Item), execution_options={"yield_per": 2}).all()) == 1
        gc.collect()

        outcome: Any = session.guard_outcome  # type: ignore[attr-defined]  # it is a guarded session
        assert len(outcome.streams) == 0


def test_two_results_may_be_read_in_turns(sqlite: Backend) -> None:
    """Both are closed with their unit, if they are not read to the end."""
    with sqlite.witness.begin() as connection:
        connection.execute(insert(Item), [{"name": f"row {number:02}"} for number in range(ROWS)])
    database = one_connection(sqlite)
    with session_scope(database) as session:
        both = [iter(session.scalars(select(Item.name), execution_options={"yield_per": 2})) for _ in range(2)]
        assert [next(each) for _ in range(2) for each in both] == ["row 00"] * 2 + ["row 01"] * 2
    for each in both:
        with pytest.raises(Exception):  # noqa: B017, PT011  # each driver has its own
            list(each)
    database.dispose()


@on_drivers("asyncpg", "psycopg async", "aiosqlite")
@pytest.mark.parametrize("writes", [True, False])
async def test_a_stream_of_the_handler_is_closed_by_its_commit(filled: Backend, kind: str, writes: bool) -> None:
    """A body that opens its own reads all of it, on the one connection of the pool."""
    database = one_connection(filled)
    query = select(Item.id).execution_options(yield_per=2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = database.async_session
        if writes:
            await session.execute(insert(Item).values(name="other"))
        early = await session.stream(query)
        await early.fetchone()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with pytest.raises(Exception):  # noqa: B017, PT011  # each driver has its own
            await early.all()
        late = await session.stream(query)
        count = b"%d" % len(await late.all())
        await send({"type": "http.response.body", "body": count})

    call = await Call(SQLAlchemyMiddleware(app, database))()
    await database.async_dispose()
    assert (call.raised, call.body) == (None, b"%d" % (ROWS + writes))
