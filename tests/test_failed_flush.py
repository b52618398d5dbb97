"""A failed flush has rolled everything back by itself: no error reports a commit, and a retry is allowed."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.orm import Session
from support.asgi import Call, respond
from support.databases import Backend, Item
from support.marks import KINDS
from support.rivals import perform

from asgi_sqla import Database, SQLAlchemyMiddleware, current_unit, session_scope


def twice(session: Session) -> None:
    """Flush a row, and then a duplicate, which is refused."""
    session.add(Item(name="a"))
    session.flush()
    session.add(Item(name="a"))
    session.flush()


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_failed_flush_rolled_back_was_not_committed(
    database: Database, backend: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log reports nothing for an ordinary error, because no row is in the database."""
    caplog.set_level(logging.INFO, "asgi_sqla")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, twice)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    said = [record.getMessage() for record in caplog.records if record.name == "asgi_sqla"]
    assert (type(call.raised), backend.names(), said) == (IntegrityError, [], [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failed_flush_that_was_caught_is_no_success(database: Database, backend: Backend, kind: str) -> None:
    """Without ``rollback()`` nothing can be committed: the client gets an error, and on_rollback callbacks run."""
    called: list[str] = []

    def work(session: Session) -> None:
        with pytest.raises(IntegrityError):
            twice(session)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_unit().on_commit(called.append, "commit")
        current_unit().on_rollback(called.append, "rollback")
        await perform(database, kind, work)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert (type(call.raised), call.starts) == (PendingRollbackError, [500])
    assert (backend.names(), called) == ([], ["rollback"])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failed_flush_that_was_rolled_back_is_over(database: Database, backend: Backend, kind: str) -> None:
    """The work after ``rollback()`` is kept."""

    def work(session: Session) -> None:
        with pytest.raises(IntegrityError):
            twice(session)
        session.rollback()
        session.add(Item(name="b"))
        session.flush()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert (call.raised, call.starts, backend.names()) == (None, [201], ["b"])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failed_flush_in_a_savepoint_leaves_the_rest(database: Database, backend: Backend, kind: str) -> None:
    """Only the work of the savepoint is lost."""

    def work(session: Session) -> None:
        session.add(Item(name="b"))
        session.flush()
        with pytest.raises(IntegrityError), session.begin_nested():
            twice(session)
        assert session.scalar(select(func.count()).select_from(Item)) == 1

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert (call.raised, call.starts, backend.names()) == (None, [201], ["b"])


def test_a_transient_failure_of_a_flush_is_retried(sqlite: Backend) -> None:
    """An earlier flush has committed nothing, so nothing is done twice."""
    database = Database(sqlite.url, engine_options={"connect_args": {"timeout": 0}})
    attempts = []

    @session_scope(database, retries=2)
    def job() -> None:
        session = database.session
        attempts.append(session.scalar(select(func.count()).select_from(Item)))
        session.add(Item(name="a"))
        if len(attempts) == 1:
            with sqlite.witness.connect() as rival:
                rival.exec_driver_sql("BEGIN IMMEDIATE")
                session.flush()

    job()
    database.dispose()
    assert (attempts, sqlite.names()) == ([0, 0], ["a"])


@pytest.mark.parametrize("kind", KINDS)
async def test_changes_in_a_lost_savepoint_are_never_written(database: Database, backend: Backend, kind: str) -> None:
    """Objects changed in a nested scope after a caught failure are lost with it, and all others stay."""
    kept, old = Item(name="kept"), Item(name="old")
    spoiled: list[bool] = []

    def spoil(session: Session) -> None:
        with pytest.raises(IntegrityError):
            twice(session)
        session.add(Item(name="after"))
        kept.name = "changed"
        session.delete(old)
        spoiled.append(True)

    if kind == "sync":
        with session_scope(database) as session:
            session.add_all([kept, old])
            session.flush()
            with pytest.raises(PendingRollbackError), session_scope(database, propagation="nested"):
                spoil(session)
            session.add(Item(name="later"))
    else:
        async with session_scope(database) as async_session:
            async_session.add_all([kept, old])
            await async_session.flush()
            with pytest.raises(PendingRollbackError):
                async with session_scope(database, propagation="nested"):
                    await async_session.run_sync(spoil)
            async_session.add(Item(name="later"))

    assert (spoiled, backend.names()) == ([True], ["kept", "later", "old"])
