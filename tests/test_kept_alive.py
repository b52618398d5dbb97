"""Nothing is kept alive by an ended unit, and nothing is left by a dropped database."""

from __future__ import annotations

import contextvars
import gc
import weakref
from typing import Any

import pytest
from sqlalchemy import text
from support.asgi import Call, http_scope, respond
from support.databases import Backend
from support.failing import insert, until
from support.marks import KINDS, on_postgresql

from asgi_sqla import Database, SQLAlchemyMiddleware, current_unit, session_scope


class Body(bytearray):
    """An object in a scope that a weak reference can follow."""


def gone(*refs: weakref.ref[Any]) -> bool:
    """Collect, and return whether all that is referred to is gone."""
    gc.collect()
    return not any(ref() for ref in refs)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_captured_context_keeps_nothing_of_a_request(database: Database, backend: Backend, kind: str) -> None:
    """A task that outlives the request, or a transport that was opened in it, holds an empty unit."""
    kept: list[contextvars.Context] = []
    refs: list[weakref.ref[Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept.append(contextvars.copy_context())
        await insert(database, kind, name="a")
        session = database.session if kind == "sync" else database.async_session
        callback = Body()
        current_unit().on_commit(callback.clear)
        refs.extend((weakref.ref(session), weakref.ref(callback), weakref.ref(scope["state"])))
        await respond(send, 201)

    call = Call(SQLAlchemyMiddleware(app, database), http_scope(state=Body()))
    await call()
    assert (call.starts, backend.names()) == ([201], ["a"])
    del call
    await until(lambda: gone(*refs))  # the thread of a sync session tells the event loop, and lets go only after that
    assert [ref() for ref in refs] == [None, None, None]
    assert kept[0] is not None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_captured_context_keeps_no_database(backend: Backend, kind: str) -> None:
    """A context captured in a scope does not hold the database either."""
    database = Database(backend.url)
    kept: list[contextvars.Context] = []

    async with session_scope(database) as session:
        kept.append(contextvars.copy_context())
        await session.execute(text("SELECT 1"))
        if kind == "sync":
            database.session.execute(text("SELECT 1"))
    await database.async_dispose()
    ref = weakref.ref(database)
    del database, session
    await until(lambda: gone(ref))

    assert (ref(), len(kept)) == (None, 1)


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*:ResourceWarning")  # nobody closed them: that is what the test is about
async def test_databases_that_are_dropped_leave_no_connection(backend: Backend, kind: str) -> None:
    """A database per tenant is made, used and dropped, and the server sees its connections close."""
    of_others = backend.backends()  # that of an earlier test whose driver could not be stopped, for example
    for _ in range(30):
        database = Database(backend.url)
        if kind == "sync":
            with session_scope(database) as session:
                session.execute(text("SELECT 1"))
        else:
            async with session_scope(database) as async_session:
                await async_session.execute(text("SELECT 1"))
        del database
    session = async_session = None  # type: ignore[assignment]  # the last of them
    gc.collect()

    await until(lambda: bool(gc.collect()) or backend.backends() <= of_others)
    assert backend.backends() <= of_others
