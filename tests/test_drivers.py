"""What each driver says of its transaction, and that a connection can be cut during a call that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from anyio import to_thread
from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import DBAPIError
from support.databases import Backend, Item
from support.drivers import EACH, POSTGRESQL, SQLITE, TELLING, on_drivers
from support.failing import engine_of

from asgi_sqla import Database
from asgi_sqla.engine.drivers import DRIVERS, FAILED, IDLE, OPEN, OTHER, UNKNOWN, Word, cut, driver_of

WAITING = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "postgresql": "SELECT pg_sleep(30)",
    "mysql": "SELECT sleep(30)",
}
"""A statement that does not end by itself within the time of a test."""


async def on_connection(database: Database, kind: str, work: Callable[[Connection], object]) -> None:
    """Do ``work`` on a new connection, in a worker thread or under an ``AsyncConnection``."""
    if kind == "sync":

        def in_thread() -> None:
            with database.engine.connect() as connection:
                work(connection)

        await to_thread.run_sync(in_thread)
    else:
        async with database.async_engine.connect() as connection:
            await connection.run_sync(work)


def say(connection: Connection) -> Word:
    """Return what the driver says of its transaction."""
    raw: Any = connection.connection.driver_connection
    return driver_of(connection.dialect).ask(raw)


@on_drivers(*TELLING)
async def test_a_driver_knows_its_transaction(database: Database, backend: Backend, kind: str) -> None:
    """It says idle before a statement, open after a write, failed if it can tell, and idle after each end."""
    words: list[Word] = []

    def work(connection: Connection) -> None:
        words.append(say(connection))
        for end in (connection.rollback, connection.commit):
            connection.execute(insert(Item).values(name="a"))
            words.append(say(connection))
            if end == connection.rollback:
                with suppress(DBAPIError):
                    connection.execute(text("SELECT no_such_column"))
                words.append(say(connection))
            end()
            words.append(say(connection))

    await on_connection(database, kind, work)

    after_error = FAILED if backend.name in ("psycopg", "psycopg2") else OPEN
    assert words == [IDLE, OPEN, after_error, IDLE, OPEN, IDLE]
    assert backend.names() == ["a"]


@on_drivers(*SQLITE, *POSTGRESQL)
async def test_a_closed_connection_is_not_said_to_be_idle(database: Database, backend: Backend, kind: str) -> None:
    """A driver of a closed connection says nothing, or fails, but never says idle."""
    words: list[Word] = []

    def work(connection: Connection) -> None:
        raw: Any = connection.connection.driver_connection
        connection.execute(text("SELECT 1"))
        connection.invalidate()
        with suppress(Exception):  # sqlite3 refuses to say anything of a closed connection
            words.append(driver_of(connection.dialect).ask(raw))

    await on_connection(database, kind, work)

    assert set(words) <= {UNKNOWN, OPEN}


@on_drivers(*TELLING)
async def test_a_cut_wakes_a_waiting_call(database: Database, backend: Backend, kind: str) -> None:
    """A running statement ends with an error, from another thread or task, well before its time."""
    taken: list[tuple[Any, Any]] = []
    raised: list[BaseException] = []

    def work(connection: Connection) -> None:
        taken.append((connection.connection.driver_connection, connection.dialect))
        statement = text(WAITING[connection.dialect.name.replace("mariadb", "mysql")])
        try:
            connection.execute(statement)
        except BaseException as exc:
            raised.append(exc)
        connection.invalidate()

    task = asyncio.create_task(on_connection(database, kind, work))
    async with asyncio.timeout(5):
        while not task.done():  # again, for an interrupted SQLite goes on if its statement had not begun
            await asyncio.sleep(0.05)
            if taken:
                cut(*taken[0])
    await task
    if backend.witness.dialect.name != "sqlite":  # a server goes on with its statement: the next tests would count it
        backend.terminate()

    assert len(raised) == 1
    assert isinstance(raised[0], Exception)


@on_drivers(*TELLING)
async def test_a_second_cut_does_nothing(database: Database, backend: Backend, kind: str) -> None:
    """Cutting a cut or closed connection raises nothing."""

    def work(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))
        raw, dialect = connection.connection.driver_connection, connection.dialect
        cut(raw, dialect)
        cut(raw, dialect)
        connection.invalidate()
        cut(raw, dialect)

    await on_connection(database, kind, work)


@on_drivers("mysqlclient")
async def test_an_unknown_driver_says_nothing(database: Database, backend: Backend, kind: str) -> None:
    """Nothing is guessed of a driver outside the table, and cutting its connection changes nothing."""
    words: list[Word] = []

    def work(connection: Connection) -> None:
        connection.execute(insert(Item).values(name="a"))
        words.append(say(connection))
        cut(connection.connection.driver_connection, connection.dialect)
        connection.commit()
        words.append(say(connection))

    await on_connection(database, kind, work)

    assert (words, backend.names()) == ([UNKNOWN, UNKNOWN], ["a"])
    assert driver_of(database.engine.dialect) is OTHER


async def test_every_known_driver_is_tested() -> None:
    """A driver that is added to the table fails this test until the others cover it."""
    tested = {name.removesuffix(" async").replace("sqlite3", "pysqlite") for name in TELLING}

    assert tested == DRIVERS.keys()
    assert {*SQLITE, *POSTGRESQL} <= EACH.keys()


@on_drivers(*EACH)
async def test_a_case_uses_the_driver_that_it_is_named_after(
    database: Database, backend: Backend, kind: str, request: pytest.FixtureRequest
) -> None:
    """Otherwise a driver would seem to be tested."""
    named = {"sqlite3": "pysqlite", "mysqlclient": "mysqldb"}

    driver = request.node.callspec.id.removesuffix("_async")
    assert engine_of(database, kind).dialect.driver == named.get(driver, driver)
