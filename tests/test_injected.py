"""Sessions that others inject, ``db.get_session`` and ``db.get_async_session``: in a unit of work, and before one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from support.databases import Backend

from asgi_sqla import Database, NoUnitOfWorkError, UnitOfWorkEndedError, session_scope

TOO_LATE = "session_scope() as a decorator of that function comes too late: open it in the dependency"
"""What the error says to those who have made a job of a decorated function."""


@pytest.fixture(params=["sync", "async"])
def get(request: pytest.FixtureRequest, sqlite: Backend) -> Callable[[], Any]:
    """Return what is injected, as a plain function, for each kind."""
    database = Database(sqlite.url)
    if request.param == "sync":
        return database.get_session
    return lambda: asyncio.run(database.get_async_session())


def test_a_session_injected_before_its_scope_says_where_to_open_one(get: Callable[[], Any]) -> None:
    """A worker resolves the dependencies of a job before it calls the job, and so before its decorator."""
    with pytest.raises(NoUnitOfWorkError, match="no unit of work: ") as raised:
        get()
    assert TOO_LATE in str(raised.value)


def test_a_session_that_nobody_injects_says_nothing_of_dependencies(sqlite: Backend) -> None:
    """The advice would mislead who wrote ``db.session``."""
    with pytest.raises(NoUnitOfWorkError) as raised:
        Database(sqlite.url).session  # noqa: B018  # it raises
    assert "decorator" not in str(raised.value)


async def test_a_session_injected_in_a_unit_is_that_of_the_unit(sqlite: Backend) -> None:
    """It is the same object as in ``db.session``, and after the unit the error is that of a unit that has ended."""
    database = Database(sqlite.url)
    async with session_scope(database) as session:
        assert await database.get_async_session() is session is database.async_session
        late = copy_context()
    with pytest.raises(UnitOfWorkEndedError):
        late.run(database.get_session)
    with session_scope(database) as sync_session:
        assert database.get_session() is sync_session
    await database.async_dispose()


async def test_a_thread_without_a_context_is_told_how_to_get_one(sqlite: Backend) -> None:
    """A ``def`` handler cannot await ``asyncio.to_thread``; what the message names instead works."""
    database = Database(sqlite.url)
    with ThreadPoolExecutor(1) as pool, session_scope(database) as session:
        with pytest.raises(NoUnitOfWorkError, match=r"or pass contextvars\.copy_context\(\)\.run"):
            pool.submit(lambda: database.session).result()
        assert pool.submit(copy_context().run, lambda: database.session).result() is session
