"""The log: one logger, one record for one event, the unit and its outcome in each, and levels with a rule."""

from __future__ import annotations

import ast
import asyncio
import functools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from support.asgi import Call, http_scope, respond
from support.databases import NO_OWNER, Backend
from support.failing import BrokenError, insert, until
from support.observing import do, flush_one, locked, select_one

import asgi_sqla
from asgi_sqla import Database, SQLAlchemyMiddleware, current_unit, on_commit, session_scope
from asgi_sqla.unit import logs

HOUSE = Path(asgi_sqla.__file__).parent
LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARNING", "error": "ERROR", "exception": "ERROR"}
WITHOUT_A_UNIT = {
    "asgi/lifespan.py": 3,  # startup and shutdown
    "asgi/retry.py": 1,  # a body that is too large to keep, which may never matter
    "unit/written.py": 1,  # a replica that does not answer, of a database
    "unit/logs.py": 1,  # the function itself
}
"""Where the rooms that know units write records that are about none, and how many."""
ERRORS = {
    "%r cannot be used at startup",
    "%r does not answer: its connections are cut",
    "%s, but its COMMIT is in doubt: nobody can tell whether it was applied",
    "ROLLBACK failed on %r",
    "ROLLBACK failed on a session after the end",
    "a connection could not be closed when its event loop ended",
    "a session could not be closed after its event loop had ended",
    "answered %s, as COMMIT failed",
    "close failed",
    "failed",
    "failed, and then the application raised another error",
    "its response is incomplete, so the work after its %s is rolled back",
    "its server does not end its statement, so its connection is cut",
    "its stream ends without the next part, as COMMIT failed: %r",
    "nobody can tell whether its COMMIT was applied: %s%s",
    "on_startup=%r failed",
    "CUT",
}
"""Every message of this level: work or a connection is lost, or may be, or the application cannot start."""


def calls(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Yield the function, the level and the message of every call that writes a record."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "logger":
            level = LEVELS.get(node.func.attr)
            if level is not None:
                yield "logger", level, message_of(node.args[0])
            elif node.func.attr == "log":
                yield "logger", ast.unparse(node.args[0]), message_of(node.args[1])
        elif isinstance(node.func, ast.Name) and node.func.id == "tell":
            yield "tell", ast.unparse(node.args[0]), message_of(node.args[2])


def message_of(node: ast.expr) -> str:
    """Return a message, or the name of what holds it."""
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


@functools.cache
def trees() -> dict[str, ast.AST]:
    """Return every module of ours, read when a test asks: each process that collects the tests imports this file."""
    return {path.relative_to(HOUSE).as_posix(): ast.parse(path.read_text()) for path in sorted(HOUSE.rglob("*.py"))}


@functools.cache
def every_call() -> list[tuple[str, str, str, str]]:
    """Return the calls of every module, with its name."""
    return [(room, *call) for room, tree in trees().items() for call in calls(tree)]


def test_there_is_one_logger() -> None:
    """Its name is that of the package."""
    names = {
        ast.unparse(node.args[0])
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger" and node.args
    }
    assert names - {"name"} == {"'asgi_sqla'"}  # the command line shows the records of Alembic as well
    assert len(every_call()) > 35


def test_every_record_about_a_unit_has_its_name_and_outcome() -> None:
    """It is written by the one function that adds them, wherever a unit is known."""
    direct = [
        room for room, function, _, _ in every_call() if function == "logger" and room.startswith(("asgi", "unit"))
    ]
    assert {room: direct.count(room) for room in direct} == WITHOUT_A_UNIT
    assert [
        message for *_, function, _, message in every_call() if function == "tell" and message.startswith("%s:")
    ] == []


def test_the_level_error_has_a_rule() -> None:
    """A new message of this level must be one of a loss."""
    assert {message for *_, level, message in every_call() if level == "ERROR"} == ERRORS


def ours(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "asgi_sqla"]


async def later(database: Database) -> None:
    await do(database, "async", select_one)
    raise BrokenError


EVENTS = {
    "a retry": ("INFO", "attempt 1 is retried after", "rolled back"),
    "a mapped failure": ("WARNING", "answered from error_responses", "rolled back"),
    "a failed callback": ("ERROR", "failed", "rolled back"),
    "an incomplete response": ("ERROR", "its response is incomplete", "committed"),
    "a commit before an error": ("INFO", "answered 500, but some of its work", "committed"),
}


@pytest.mark.parametrize("what", EVENTS)
async def test_a_record_about_a_unit(sqlite: Backend, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """It begins with the name of the unit, and its fields show the name and the outcome to any formatter."""
    caplog.set_level(logging.INFO, "asgi_sqla")
    database = Database(sqlite.url)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if what == "a mapped failure":
            await insert(database, "async", name="a", owner_id=NO_OWNER)
        else:
            await do(database, "async", flush_one)
        if what == "a retry" and current_unit().attempt == 1:
            raise locked()
        if what == "a failed callback":
            on_commit(later, database)
        if what == "a commit before an error":
            await database.async_session.commit()
        if what == "an incomplete response":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await do(database, "async", select_one)
            return
        await respond(send, 500 if what == "a commit before an error" else 201)

    middleware = SQLAlchemyMiddleware(app, database, retries=1, error_responses=asgi_sqla.ERROR_RESPONSES)
    await Call(middleware, http_scope("/orders", "POST"))()

    (record,) = ours(caplog)
    level, message, outcome = EVENTS[what]
    unit = "on_commit callback later of POST /orders" if what == "a failed callback" else "POST /orders"
    assert (record.levelname, record.unit, record.outcome) == (level, unit, outcome)
    assert record.getMessage().startswith(f"{unit}: {message}")
    assert record.funcName != logs.tell.__name__
    await database.async_dispose()


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_thread_that_outlives_its_request_is_one_record(
    sqlite: Backend, caplog: pytest.LogCaptureFixture, cancelled: bool
) -> None:
    """It is a warning if the request was cancelled, for nothing is lost: the work is rolled back when the call returns.

    Where the application itself did not wait for the thread, that is an error of the unit.
    """
    caplog.set_level(logging.INFO, "asgi_sqla")
    database = Database(sqlite.url)
    running, release = threading.Event(), threading.Event()

    def handler() -> None:
        database.session.execute(text("SELECT 1"))
        running.set()
        database.session.execute(text("SELECT 2"))

    @event.listens_for(database.engine, "before_cursor_execute")
    def wait(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement == "SELECT 2":
            assert release.wait(10)

    threads: list[asyncio.Task[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if cancelled:
            await asyncio.to_thread(handler)
        threads.append(asyncio.create_task(asyncio.to_thread(handler)))
        await until(lambda: running.is_set() and database.holders()[0].idle == 0)
        await respond(send, 500)

    call = Call(SQLAlchemyMiddleware(app, database), http_scope("/orders", "POST"))
    request = asyncio.create_task(call())
    await until(lambda: running.is_set() and bool(database.holders()) and database.holders()[0].idle == 0)
    if cancelled:
        request.cancel()
    await request
    release.set()
    await asyncio.gather(*threads, return_exceptions=True)
    await until(lambda: database.pools()[0].out == 0)

    (record,) = ours(caplog)
    assert "a task or thread was still using one of its sessions" in record.getMessage()
    assert (record.levelname, record.exc_info) == ("WARNING" if cancelled else "ERROR", None)
    assert record.unit == "POST /orders"
    await database.async_dispose()


def test_a_rollback_that_fails_is_one_record(sqlite: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """The connection is lost, which is an error."""
    database = Database(sqlite.url)

    def fail(_connection: Any) -> None:
        raise BrokenError

    event.listen(database.engine, "rollback", fail)
    with session_scope(database) as session:
        session.execute(text("SELECT 1"))
        current_unit().rollback_only()

    (record,) = ours(caplog)
    assert (record.levelname, record.unit) == ("ERROR", "session_scope()")
    assert "ROLLBACK failed on <Database sqlite" in record.getMessage()
    database.dispose()


def test_a_message_that_nobody_reads_costs_nothing() -> None:
    """The unit is not even looked at."""
    logs.tell(logs.DEBUG - 5, None, "%s", "nothing")
