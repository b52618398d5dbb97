"""No client is told "done" without its rows, whatever has ended the transaction."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from support.asgi import Call, respond
from support.databases import NO_OWNER, Backend, Item, empty
from support.drivers import EACH, MARIADB, POSTGRESQL, SQLITE, TELLING, case
from support.rivals import deadlock as fight
from support.rivals import join_rivals, perform, rows

from asgi_sqla import Database, SQLAlchemyMiddleware

Spoil: TypeAlias = Callable[[Backend, Session], object]
"""What a handler does to its transaction between its writes."""


class Case(NamedTuple):
    """A way to spoil a transaction, the drivers that it concerns, and how a request that answers 201 is answered."""

    spoil: Spoil
    drivers: tuple[str, ...]
    status: int
    """What the client sees if the application answers 201; 0 if it sees either."""


def statement(sql: str) -> Spoil:
    """Send a textual statement."""

    def send(_backend: Backend, session: Session) -> None:
        session.execute(text(sql))

    send.__name__ = repr(sql)
    return send


def on_cursor(sql: str) -> Spoil:
    """Send it on a cursor of the driver, outside SQLAlchemy."""

    def send(_backend: Backend, session: Session) -> None:
        cursor = session.connection().connection.cursor()
        with suppress(Exception):
            cursor.execute(sql)
        cursor.close()

    send.__name__ = f"cursor {sql!r}"
    return send


def on_connection(call: str) -> Spoil:
    """Call a method of the session's ``Connection``."""

    def do(_backend: Backend, session: Session) -> None:
        getattr(session.connection(), call)()

    do.__name__ = f"connection.{call}"
    return do


def on_pooled(call: str) -> Spoil:
    """Call a method of the pool's connection, outside SQLAlchemy's transaction."""

    def do(_backend: Backend, session: Session) -> None:
        getattr(session.connection().connection, call)()

    do.__name__ = f"pooled.{call}"
    return do


def on_transaction(call: str) -> Spoil:
    """Call a method of the transaction of the session's ``Connection``."""

    def do(_backend: Backend, session: Session) -> None:
        getattr(session.connection().get_transaction(), call)()

    do.__name__ = f"transaction.{call}"
    return do


def conflict(_backend: Backend, session: Session) -> None:
    """Let SQLite roll everything back at a conflict."""
    session.execute(text("INSERT OR ROLLBACK INTO item (name) VALUES ('taken')"))


def conflict_in_trigger(_backend: Backend, session: Session) -> None:
    """Let a trigger of SQLite roll everything back."""
    session.execute(text("INSERT INTO item (name) VALUES ('refused')"))


def full(_backend: Backend, session: Session) -> None:
    """Fill the disk."""
    pages = session.scalar(text("PRAGMA page_count"))
    session.execute(text(f"PRAGMA max_page_count = {pages}"))
    try:
        for number in range(2000):
            session.execute(insert(Item).values(name=f"big {number} ".ljust(200, "x")))
    finally:
        session.execute(text("PRAGMA max_page_count = 1073741823"))


def interrupted(_backend: Backend, session: Session) -> None:
    """Interrupt a write of SQLite."""
    raw: Any = session.connection().connection.driver_connection
    raw = getattr(raw, "_conn", raw)
    raw.set_progress_handler(lambda: 1, 1000)
    try:
        session.execute(
            text(
                "INSERT INTO item (name) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 99999) "
                "SELECT 'many ' || i FROM n"
            )
        )
    finally:
        raw.set_progress_handler(None, 0)


def failing_savepoint(_backend: Backend, session: Session) -> None:
    """Fail in a savepoint of the connection, which is rolled back."""
    with suppress(DBAPIError), session.connection().begin_nested():
        session.connection().execute(text("SELECT no_such_column"))


def failing_statement(_backend: Backend, session: Session) -> None:
    """Fail."""
    session.execute(text("SELECT no_such_column"))


def textual_savepoint(back: str) -> Spoil:
    """Fail between a textual SAVEPOINT and its ROLLBACK."""

    def do(_backend: Backend, session: Session) -> None:
        session.execute(text("SAVEPOINT mark"))
        with suppress(DBAPIError):
            session.execute(text("SELECT no_such_column"))
        session.execute(text(back))

    do.__name__ = repr(back)
    return do


def times_out(_backend: Backend, session: Session) -> None:
    """Run into the statement timeout."""
    session.execute(text("SET LOCAL statement_timeout = 20"))
    session.execute(text("SELECT pg_sleep(5)"))


def mariadb_times_out(_backend: Backend, session: Session) -> None:
    """Run into MariaDB's limit for a statement."""
    session.execute(text("SET STATEMENT max_statement_time = 0.05 FOR SELECT sleep(5), count(*) FROM item, item AS b"))


def idles(backend: Backend, session: Session) -> None:
    """Idle until PostgreSQL ends the transaction."""
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 50"))
    for _ in range(200):
        if not backend.backends("idle in transaction"):
            return
        time.sleep(0.02)


def killed(backend: Backend, _session: Session) -> None:
    """Let an administrator terminate the connection."""
    assert backend.terminate() > 0


def deadlocked(backend: Backend, session: Session) -> None:
    """Lose a deadlock."""
    try:
        fight(backend, session)
    finally:
        join_rivals()


def commits_in_vain(_backend: Backend, session: Session) -> None:
    """Let the COMMIT of the application fail."""
    session.add(Item(name="orphan", owner_id=NO_OWNER))
    session.commit()


def script(_backend: Backend, session: Session) -> None:
    """Let sqlite3 run a script, before which it commits."""
    raw: Any = session.connection().connection.driver_connection
    getattr(raw, "_conn", raw).executescript("CREATE TEMP TABLE IF NOT EXISTS scratch (x)")


ENDS_ALL = ["commit", "-- why\n  COMMIT", "/* why */ Commit", "rollback", "/* to */ -- b\nROLLBACK"]
ENDS_SQLITE = ["END", "end transaction", "ROLLBACK TRANSACTION"]
ENDS_POSTGRESQL = [
    "END",
    "END TRANSACTION",
    "ABORT",
    "abort work",
    "COMMIT WORK",
    "ROLLBACK WORK",
    "ROLLBACK AND CHAIN",
] + ["COMMIT AND CHAIN", "COMMIT AND NO CHAIN"]
ENDS_MARIADB = ["ROLLBACK WORK", "COMMIT AND CHAIN", "ROLLBACK AND CHAIN", "/*!50003 COMMIT */", "/*M! ROLLBACK */"]
BACK_TO_A_SAVEPOINT = ["rollback to mark", "ROLLBACK TRANSACTION TO mark", "ROLLBACK /* x */ TO SAVEPOINT mark"]
IMPLICIT_COMMITS = (
    [
        "CREATE TABLE IF NOT EXISTS other (x INT)",
        "DROP TABLE IF EXISTS other",
        "TRUNCATE TABLE owner",
        "ANALYZE TABLE owner",
    ]
    + ["START TRANSACTION", "BEGIN", "begin work", "SET autocommit = 1", "FLUSH TABLES"]
    + ["OPTIMIZE TABLE owner", "SET @@autocommit = ON", "ALTER TABLE owner COMMENT 'a'", "SET SESSION autocommit=1"]
    + ["CHECK TABLE owner", "REPAIR TABLE owner", "CREATE OR REPLACE VIEW seen AS SELECT 1", "RESET QUERY CACHE"]
)

PROCEDURES = ["commits", "rolls_back", "commits_and_fails"]

EVERY = tuple(EACH)
CASES = [
    *[Case(statement(sql), EVERY, 500) for sql in ("COMMIT", "ROLLBACK")],
    *[Case(statement(sql), ("sqlite3",), 500) for sql in [*ENDS_ALL, *ENDS_SQLITE]],
    *[Case(statement(sql), ("psycopg",), 500) for sql in ENDS_POSTGRESQL],
    *[Case(statement(sql), ("pymysql",), 500) for sql in ENDS_MARIADB],
    *[Case(statement(sql), ("pymysql",), 201) for sql in IMPLICIT_COMMITS],
    # mysqlclient keeps no state of a transaction, so what a procedure does to one is not seen there.
    *[Case(statement(f"CALL {name}()"), MARIADB[:3], 0) for name in PROCEDURES],
    *[Case(on_cursor(sql), TELLING, 0) for sql in ("COMMIT", "SELECT no_such_column")],
    Case(on_cursor("ROLLBACK"), (*SQLITE, *POSTGRESQL), 500),
    *[Case(on_connection(call), EVERY, 0) for call in ("commit", "rollback", "close", "invalidate")],
    *[Case(on_pooled(call), TELLING, 0) for call in ("commit", "close", "invalidate")],
    # Of MariaDB's drivers none tells such a rollback after the first statement from a table without transactions.
    Case(on_pooled("rollback"), (*SQLITE, *POSTGRESQL), 500),
    *[Case(on_transaction(call), EVERY, 0) for call in ("commit", "rollback", "close")],
    Case(textual_savepoint("ROLLBACK TO SAVEPOINT mark"), EVERY, 201),
    *[Case(textual_savepoint(sql), ("sqlite3", "psycopg"), 201) for sql in BACK_TO_A_SAVEPOINT],
    *[Case(one, SQLITE, 500) for one in (conflict, conflict_in_trigger, interrupted)],
    Case(full, SQLITE, 201),
    Case(script, SQLITE, 500),
    Case(failing_savepoint, EVERY, 201),
    Case(failing_statement, POSTGRESQL, 500),
    Case(failing_statement, (*SQLITE, *MARIADB), 201),
    *[Case(one, POSTGRESQL, 500) for one in (times_out, idles)],
    Case(mariadb_times_out, MARIADB, 201),
    Case(killed, (*POSTGRESQL, *MARIADB), 500),
    Case(deadlocked, (*POSTGRESQL, *MARIADB), 500),
    Case(commits_in_vain, (*SQLITE, *POSTGRESQL, *MARIADB), 0),
]

TRIGGER = (
    "CREATE TRIGGER refuse BEFORE INSERT ON item WHEN NEW.name = 'refused' BEGIN SELECT RAISE(ROLLBACK, 'refused'); END"
)
CALLED = "INSERT INTO item (name) VALUES ('called')"
PREPARATIONS = {
    "sqlite": [TRIGGER],
    "mysql": [
        f"CREATE OR REPLACE PROCEDURE commits() BEGIN {CALLED}; COMMIT; END",
        f"CREATE OR REPLACE PROCEDURE rolls_back() BEGIN {CALLED}; ROLLBACK; END",
        f"CREATE OR REPLACE PROCEDURE commits_and_fails() BEGIN {CALLED}; COMMIT; SIGNAL SQLSTATE '45000'; END",
    ],
}
"""What the cases need in their database."""
OTHERS = re.compile("taken|called|lost|big|row|weight")
"""The rows that a test has not written itself."""


@pytest.fixture
def prepared(backend: Backend) -> Backend:
    """Return the backend with the objects that the cases need."""
    dialect = backend.witness.dialect.name.replace("mariadb", "mysql")
    with backend.witness.begin() as connection:
        for sql in PREPARATIONS.get(dialect, []):
            connection.execute(text(sql))
    return backend


def prepare(backend: Backend) -> None:
    """Leave one row in the database, for conflicts."""
    empty(backend.witness, insert(Item).values(name="taken"))


async def ask(database: Database, kind: str, work: Callable[[Session], object], status: int) -> Call:
    """Return the request of an application that runs ``work`` on its session, and answers ``status``."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        await respond(send, status)

    return await Call(SQLAlchemyMiddleware(app, database))()


def told_of_commit(call: Call, caplog: pytest.LogCaptureFixture) -> bool:
    """Return whether the log, or the exception that the server logs, says that something was kept, or may have been."""
    told = "\n".join([*caplog.messages, str(call.raised)])
    return re.search("already been committed|has committed|has ended|in doubt", told) is not None


def handler(backend: Backend, spoil: Spoil, written: list[str], *, reads: bool, goes_on: bool) -> Callable[..., object]:
    """Return what a handler does: write, spoil the transaction, and write again if it ``goes_on``."""

    def work(session: Session) -> None:
        if reads:
            session.execute(text("SELECT count(*) FROM item")).all()
        session.execute(insert(Item).values(name="first"))
        written.append("first")
        with suppress(Exception):
            spoil(backend, session)
        if goes_on:
            session.execute(insert(Item).values(name="after"))
            written.insert(0, "after")

    return work


@pytest.mark.parametrize(
    ("backend", "kind", "spoil", "status"),
    [case(driver, one.spoil, one.status) for one in CASES for driver in one.drivers],
    indirect=["backend"],
)
async def test_a_spoilt_transaction_is_reported_as_it_is(
    database: Database, prepared: Backend, kind: str, spoil: Spoil, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A 201 has every row that was written; an error has none, or a log line that says what was kept."""
    caplog.set_level(logging.INFO, "asgi_sqla")
    for answer, reads, goes_on in [(201, False, False), (422, False, False), (201, True, True), (422, True, False)]:
        caplog.clear()
        prepare(prepared)
        if spoil is deadlocked:
            rows(prepared)
        written: list[str] = []

        call = await ask(database, kind, handler(prepared, spoil, written, reads=reads, goes_on=goes_on), answer)

        kept = [name for name in prepared.names() if not OTHERS.match(name)]
        seen = (answer, reads, goes_on, call.starts, kept, call.raised, caplog.messages)
        if call.starts == [201]:
            assert kept == written, seen
        else:
            assert kept == [] or told_of_commit(call, caplog), seen
        if answer == 201 and status and not goes_on:
            assert call.starts == [status], seen
