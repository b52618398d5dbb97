"""Sessions of the application's own class that commit in two phases: MariaDB's XA, which needs no setting."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from support.asgi import Call, http_scope, respond
from support.databases import Backend
from support.drivers import on_drivers
from support.observing import Reports, do, flush_one

from asgi_sqla import Database, SQLAlchemyMiddleware


class TwoPhaseSession(Session):
    """A session that prepares before it commits."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.twophase = True


def made(backend: Backend, reports: Reports) -> Database:
    """Return a database with such sessions of both kinds."""
    options = {"class_": AsyncSession, "sync_session_class": TwoPhaseSession}
    return Database(backend.url, session_options=options, observe=[reports])


@on_drivers("pymysql", "asyncmy")
@pytest.mark.parametrize(
    ("status", "names", "operation"), [(201, ["one"], "PREPARE"), (422, [], "ROLLBACK")], ids=["commits", "rolls back"]
)
async def test_a_request_ends_in_two_phases(
    backend: Backend, kind: str, status: int, names: list[str], operation: str
) -> None:
    """A 201 has its rows and a 422 has none; PREPARE and the COMMIT that follows it are reported as one end."""
    reports = Reports()
    database = made(backend, reports)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await do(database, kind, flush_one)
        await respond(send, status)

    call = Call(SQLAlchemyMiddleware(app, database))
    await call()
    await database.async_dispose()

    assert (call.starts, backend.names()) == ([status], names)
    assert [end.operation for one in reports.only.databases for end in one.ends] == [operation]


@on_drivers("pymysql", "asyncmy")
async def test_one_transaction_after_the_other(backend: Backend, kind: str) -> None:
    """A rollback, a COMMIT and an INSERT that fails leave nothing on the connection; here a name comes twice."""
    reports = Reports()
    database = made(backend, reports)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await do(database, kind, flush_one)
        await respond(send, 422 if scope["path"] == "/fails" else 201)

    paths = ("/fails", "/", "/", "/fails")
    calls = [await Call(SQLAlchemyMiddleware(app, database), http_scope(path))() for path in paths]
    await database.async_dispose()

    assert [call.starts for call in calls] == [[422], [201], [], []]
    assert [type(call.raised).__name__ for call in calls[2:]] == ["IntegrityError"] * 2
    assert backend.names() == ["one"]
