"""A statement that fails before the driver has it: nothing was sent, so nothing is lost, and nothing is in doubt."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
from sqlalchemy import bindparam, event, text
from sqlalchemy.exc import SQLAlchemyError, StatementError
from sqlalchemy.orm import Session
from support.databases import Backend, Item
from support.failing import engine_of
from support.marks import KINDS, WAYS
from support.scopes import in_scope

from asgi_sqla import Database, current_unit, session_scope


@pytest.fixture(params=WAYS, ids=["pipelined", "plain"])
def pipelining(request: pytest.FixtureRequest) -> bool:
    """Have a ``Database`` with our adapters, and one with SQLAlchemy's own."""
    return bool(request.param)


def closed(database: Database, kind: str) -> list[Any]:
    """Return what grows when the pool gives a connection up."""
    found: list[Any] = []
    event.listen(engine_of(database, kind).pool, "invalidate", lambda *_: found.append(1))
    return found


@pytest.mark.parametrize("kind", KINDS)
async def test_a_missing_value_leaves_the_transaction(database: Database, backend: Backend, kind: str) -> None:
    """Its error is the application's, which may go on; the connection stays as it is."""
    given_up = closed(database, kind)

    def work(session: Session) -> None:
        session.add(Item(name="before"))
        session.flush()
        with pytest.raises(StatementError, match="A value is required for bind parameter"):
            session.execute(text("SELECT :missing"))
        session.add(Item(name="after"))

    await in_scope(database, kind, work)
    assert (backend.names(), given_up) == (["after", "before"], [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_flush_in_commit_that_lacks_a_value(database: Database, backend: Backend, kind: str) -> None:
    """COMMIT was not sent: its work is rolled back, as is told, and the connection goes back to the pool."""
    given_up = closed(database, kind)
    told: list[str] = []

    def work(session: Session) -> None:
        current_unit().on_rollback(told.append, "rolled back")
        session.add(Item(name="before"))
        session.flush()
        session.add(Item(name=bindparam("missing")))
        session.commit()

    with pytest.raises(StatementError, match="A value is required for bind parameter"):
        await in_scope(database, kind, work)
    assert (backend.names(), given_up, told) == ([], [], ["rolled back"])


async def test_a_lazy_load_without_await_leaves_the_transaction(database: Database, backend: Backend) -> None:
    """SQLAlchemy's own adapters need a greenlet for a cursor already."""
    given_up = closed(database, "async")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SQLAlchemy does not close what aiosqlite wants awaited
        async with session_scope(database) as session:
            session.add(item := Item(name="before"))
            await session.flush()
            session.expire(item)
            with pytest.raises(SQLAlchemyError, match="greenlet_spawn has not been called"):
                _ = item.name
            session.add(Item(name="after"))
        gc.collect()
    assert (backend.names(), given_up) == (["after", "before"], [])
