"""Several databases in one unit: what only read ends at the same time, and then what wrote, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
from sqlalchemy import Connection, text, util
from support.databases import Backend, Item, connections_out

from asgi_sqla import Database, session_scope


@pytest.fixture
async def databases(backend: Backend) -> AsyncIterator[list[Database]]:
    """Return four Databases of one server, each with a pool and a transaction of its own."""
    made = [Database(backend.url) for _ in range(4)]
    yield made
    for one in made:
        await one.async_dispose()


def before_commit(database: Database, do: Callable[[], object]) -> None:
    """Call ``do`` before each COMMIT on ``database``."""

    def commit(_connection: Connection) -> None:
        do()

    database.listen("commit", commit)


async def read(database: Database) -> None:
    """Read in the current unit."""
    await database.async_session.execute(text("SELECT count(*) FROM item"))


async def insert(database: Database, name: str) -> None:
    """Write in the current unit."""
    await database.async_session.execute(text("INSERT INTO item (name) VALUES (:name)"), {"name": name})


async def test_transactions_that_only_read_end_at_the_same_time(databases: list[Database]) -> None:
    """Each COMMIT waits for the others here, so one after the other none would be sent."""
    meeting = asyncio.Barrier(len(databases))
    for one in databases:
        before_commit(one, lambda: util.await_only(asyncio.wait_for(meeting.wait(), 20)))

    async with session_scope(databases[0]):
        for one in databases:
            await read(one)

    assert [connections_out(one) for one in databases] == [0] * 4


async def test_what_wrote_commits_after_what_only_read(databases: list[Database], backend: Backend) -> None:
    """The writers keep the order of first use. A file of SQLite has one writer at a time."""
    order: list[int] = []
    for number, one in enumerate(databases):
        before_commit(one, partial(order.append, number))
    writers = [0] if backend.name == "sqlite" else [0, 3]

    async with session_scope(databases[0]):
        for number, one in enumerate(databases):
            await (insert(one, str(number)) if number in writers else read(one))

    readers = [number for number in range(4) if number not in writers]
    assert (sorted(order[: len(readers)]), order[len(readers) :]) == (readers, writers)
    assert backend.names() == list(map(str, writers))


async def test_a_failed_end_of_a_reader_keeps_the_writers_from_committing(
    databases: list[Database], backend: Backend
) -> None:
    """What a serializable transaction has read holds only if it commits; the error names what had."""

    def fail() -> None:
        raise ConnectionError("no")

    before_commit(databases[1], fail)

    @session_scope(databases[0])
    async def work() -> None:
        databases[0].async_session.add(Item(name="a"))
        for one in databases[1:]:
            await read(one)

    with pytest.raises(ConnectionError) as told:
        await work()

    (note,) = told.value.__notes__
    assert f"committed: {databases[2]!r}, {databases[3]!r}; these are rolled back: {databases[0]!r}" in note
    assert (backend.names(), [connections_out(one) for one in databases]) == ([], [0] * 4)
