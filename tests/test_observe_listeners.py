"""The observers that come with the package, over real sockets: one line for each thing that deserves attention."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError
from support import browser
from support.databases import NO_OWNER, Backend, Item
from support.observing import Reports, locked
from support.servers import Server

from asgi_sqla import ConfigurationError, Database, SQLAlchemyMiddleware, current_unit, session_scope
from asgi_sqla.observe import (
    Report,
    failed_log,
    idle_in_transaction,
    repeated_statements,
    server_timing,
    slow_log,
)

KINDS = ["sync", "async"]
ITEM = r"SELECT item\.id.* FROM item WHERE item\.id = \S+"
LINES = {
    "/list": r"GET /list: the same statement was sent 12 times from \S*test_observe_listeners\.py:(\d+), "
    rf"which took 0\.\d+ s: {ITEM}",
    "/pay": r"GET /pay: held a connection to sqlite\S+ for 0\.[3-9]\d+ s in which nothing was asked of it, between "
    r"SELECT 1 and SELECT 2",
    "/refused": r"GET /refused: its COMMIT failed, so its work is rolled back: IntegrityError \(conflict\); the client "
    "got 500",
    "/retried": r"GET /retried: attempt 1 is retried after OperationalError: .*database is locked",
    "/slow": r"GET /slow: took [01]\.\d+ s and was rolled back \(answered 422\); sqlite\S+: 1 statements in 0\.\d+ s, "
    r"waited 0\.\d+ s for a connection and held one for [01]\.\d+ s, [01]\.\d+ s of it idle, the slowest took 0\.\d+ s "
    r"from \S*test_observe_listeners\.py:\d+: SELECT 1",
}
"""What a stranger reads in the log about each path."""


@pytest.fixture(params=KINDS)
def served(sqlite: Backend, request: pytest.FixtureRequest) -> Iterator[tuple[Server, Backend]]:
    """Serve an application with a fault on each path, whose database has every observer."""
    observe: list[Any] = [slow_log(0.9), repeated_statements(10), idle_in_transaction(0.3), failed_log, server_timing]
    database = Database(sqlite.url, observe=observe)
    app = FastAPI()
    app.add_middleware(SQLAlchemyMiddleware, database=database, retries=1)
    routes = (handlers if request.param == "sync" else async_handlers)(database)
    for path, handler in routes.items():
        app.get(path, status_code=422 if path == "/slow" else 200)(handler)
    with sqlite.witness.begin() as connection:
        connection.execute(insert(Item), [{"id": number, "name": f"{number}"} for number in range(1, 13)])
    with Server(app) as server:
        yield server, sqlite


def handlers(database: Database) -> dict[str, Callable[[], Any]]:
    """Return the plain handlers, by their paths."""

    def each() -> list[str]:
        identifiers = database.session.scalars(select(Item.id)).all()
        return [database.session.get_one(Item, one).name for one in identifiers]

    def pay() -> None:
        database.session.execute(text("SELECT 1"))
        time.sleep(0.35)
        database.session.execute(text("SELECT 2"))

    def refused() -> None:
        database.session.add(Item(name="a", owner_id=NO_OWNER))
        database.session.flush()

    def retried() -> None:
        database.session.execute(text("SELECT 1"))
        if current_unit().attempt == 1:
            raise locked()

    def slow() -> None:
        database.session.execute(text("SELECT 1"))
        for _ in range(4):
            time.sleep(0.25)

    return {"/list": each, "/pay": pay, "/refused": refused, "/retried": retried, "/slow": slow}


def async_handlers(database: Database) -> dict[str, Callable[[], Any]]:
    """Return the same as async functions."""

    async def async_each() -> list[str]:
        identifiers = (await database.async_session.scalars(select(Item.id))).all()
        return [(await database.async_session.get_one(Item, one)).name for one in identifiers]

    async def async_pay() -> None:
        await database.async_session.execute(text("SELECT 1"))
        await asyncio.sleep(0.35)
        await database.async_session.execute(text("SELECT 2"))

    async def async_refused() -> None:
        database.async_session.add(Item(name="a", owner_id=NO_OWNER))
        await database.async_session.flush()

    async def async_retried() -> None:
        await database.async_session.execute(text("SELECT 1"))
        if current_unit().attempt == 1:
            raise locked()

    async def async_slow() -> None:
        await database.async_session.execute(text("SELECT 1"))
        await asyncio.sleep(1)

    return {
        "/list": async_each,
        "/pay": async_pay,
        "/refused": async_refused,
        "/retried": async_retried,
        "/slow": async_slow,
    }


@pytest.mark.parametrize("path", LINES)
def test_a_fault_is_a_line(served: tuple[Server, Backend], path: str, caplog: pytest.LogCaptureFixture) -> None:
    """It names the request, what is wrong, and where to look; the transaction of a slow request is idle as well."""
    server, _ = served
    caplog.set_level(logging.INFO, "asgi_sqla")

    response = httpx.get(server.url + path)
    server.idle()

    said = [record.getMessage() for record in caplog.records if record.name == "asgi_sqla"]
    said = [line for line in said if path != "/slow" or "took" in line]
    assert len(said) == 1, said
    assert re.fullmatch(LINES[path], said[0]), said[0]
    assert response.status_code == {"/refused": 500, "/slow": 422}.get(path, 200)


def test_a_response_says_where_the_time_went(served: tuple[Server, Backend]) -> None:
    """The header has numbers only, and comes with the answer to a failed COMMIT too."""
    server, _ = served

    good, bad = (httpx.get(f"{server.url}/{path}").headers["server-timing"] for path in ("list", "refused"))

    form = r'db;dur=\d+\.\d;desc="{}", db-wait;dur=\d+\.\d, db-idle;dur=\d+\.\d, db-end;dur=\d+\.\d'
    assert re.fullmatch(form.format("13 statements"), good)
    assert re.fullmatch(form.format("1 statement"), bad)


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium: apt-get install chromium, or nox -s screenshot")
def test_a_browser_sees_it(served: tuple[Server, Backend], tmp_path: Path) -> None:
    """Scripts of the page, and the developer tools, get each number by its name."""
    server, _ = served
    with browser.browser(tmp_path / "profile") as tab:
        tab.open(f"{server.url}/pay", width=800, height=600, scheme="light")
        seen = tab.evaluate(
            "performance.getEntriesByType('navigation')[0].serverTiming.map(one => "
            "({name: one.name, duration: one.duration, description: one.description}))"
        )
    timed = {one["name"]: one["duration"] for one in seen}
    assert list(timed) == ["db", "db-wait", "db-idle", "db-end"]
    assert seen[0]["description"] == "2 statements"
    assert timed["db-idle"] >= 300  # it sleeps for longer in its transaction


def test_units_without_a_fault_are_not_mentioned(sqlite: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """The limits count, and outside a request there is no header to add."""
    observe: list[Any] = [slow_log(60), repeated_statements(3), idle_in_transaction(60), failed_log, server_timing]
    database = Database(sqlite.url, observe=observe)
    with session_scope(database) as session:
        for _ in range(2):
            session.execute(text("SELECT 1"))

    assert [record for record in caplog.records if record.name == "asgi_sqla"] == []
    database.dispose()


FAULTS = ("slow", "repeated", "idle", "refused", "retried", "fine")


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_lines_are_those_of_the_reports(
    sqlite: Backend, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """Most units have no report; where each one has, for the sake of another observer, the log says the same."""

    async def work(database: Database) -> None:
        session = database.async_session
        await session.execute(text("SELECT 1"))
        if fault in ("idle", "slow"):
            await asyncio.sleep(0.12 if fault == "idle" else 0.22)
        for _ in range(3 if fault == "repeated" else 1):
            await session.execute(text("SELECT 2"))
        if fault == "refused":
            session.add(Item(name="a", owner_id=NO_OWNER))
            await session.flush()
        if fault == "retried" and current_unit().attempt == 1:
            await asyncio.sleep(0.22)
            raise locked()

    async def said(*observers: Any) -> list[str]:
        slow, idle = 0.2 if fault in ("slow", "retried") else 60, 0.1 if fault == "idle" else 60
        observe = (slow_log(slow), repeated_statements(3), idle_in_transaction(idle), failed_log, *observers)
        database = Database(sqlite.url, observe=observe)
        with suppress(IntegrityError):
            await session_scope(database, retries=1)(work)(database)
        await database.async_dispose()
        lines = [record.getMessage() for record in caplog.records if record.name == "asgi_sqla"]
        caplog.clear()
        return [re.sub(r"\d+\.\d+ s|, the slowest .*", "", line) for line in lines]

    reports = Reports()
    alone, beside = await said(), await said(reports)

    assert alone == beside
    assert (bool(alone), bool(reports)) == (fault != "fine", True)


def test_a_commit_in_doubt_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can tell whether the work was done."""
    failed_log(Report("POST /orders", "request", "in doubt", "OperationalError", 500, 1, 0.0, 0.0, (), ()))

    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "ERROR",
        "POST /orders: nobody can tell whether its COMMIT was applied: OperationalError; the client got 500",
    )


def test_all_attempts_count(sqlite: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """A slow unit is as slow as all its attempts, and each of them may have been idle."""
    reports = Reports()
    database = Database(sqlite.url, observe=[reports, slow_log(0.2), idle_in_transaction(0.12)])

    @session_scope(database, retries=1)
    def work() -> None:
        database.session.execute(text("SELECT 1"))
        time.sleep(0.13)
        if current_unit().attempt == 1:
            raise locked()

    work()

    said = [record.getMessage() for record in caplog.records if record.name == "asgi_sqla"]
    assert len([line for line in said if "in 2 attempts and was committed" in line]) == 1
    assert len([line for line in said if "between SELECT 1 and ROLLBACK" in line]) == 1
    assert len([line for line in said if "between SELECT 1 and COMMIT" in line]) == 1
    database.dispose()


def test_a_statement_is_shown_on_one_line(sqlite: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """It is shortened, and cannot forge a line of the log; what else was repeated is counted."""
    database = Database(sqlite.url, observe=[repeated_statements(2)])
    with session_scope(database) as session:
        for _ in range(3):
            session.execute(text(f"SELECT 1,\n  '\x1b[31m', '{'x' * 300}'"))
        for _ in range(2):
            session.execute(text("SELECT 2"))

    (record,) = [record for record in caplog.records if record.name == "asgi_sqla"]
    assert record.getMessage().isprintable()
    assert re.search(r"sent 3 times .*: SELECT 1, \S+ 'x+\.\.\.; others that were repeated: 1$", record.getMessage())
    database.dispose()


@pytest.mark.parametrize("make", [slow_log, idle_in_transaction])
@pytest.mark.parametrize("seconds", [-1, "1", None, True, float("nan")])
def test_a_limit_is_a_number_of_seconds(make: Any, seconds: Any) -> None:
    """The error says what to write."""
    with pytest.raises(ConfigurationError, match=rf"{make.__name__}: seconds=.*; write .* such as {make.__name__}\(1"):
        make(seconds)


@pytest.mark.parametrize("times", [1, 0, -1, "10", None, True, 2.5])
def test_a_repetition_is_a_count(times: Any) -> None:
    """Once is no repetition."""
    with pytest.raises(ConfigurationError, match=r"repeated_statements: times=.*; write"):
        repeated_statements(times)
