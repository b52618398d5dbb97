"""What a program does with a session: plain functions of a sync ``Session``, which an async one runs as well."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from fuzz.ledger import Write
from fuzz.witness import TAKEN, Entry, values

Script: TypeAlias = Callable[[Session], Any]

INSERT = "INSERT INTO fuzz_entry (program, attempt, name, owner_id) VALUES ({program}, {attempt}, '{name}', {owner})"
AGAIN = f"INTO fuzz_entry (id, program, attempt, name) VALUES ({TAKEN}, -1, 0, 'again')"
FAILING = {
    "core": f"INSERT {AGAIN}",
    "OR ROLLBACK": f"INSERT OR ROLLBACK {AGAIN}",
    "missing table": "SELECT * FROM nothing_there",
    "division": "SELECT 1/0",
}
SERIALIZATION = "DO $$BEGIN RAISE EXCEPTION 'transient' USING ERRCODE = '40001'; END$$"
LOST = "SELECT pg_terminate_backend(pg_backend_pid())"


def drive(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits, because all its sessions are sync, without an event loop."""
    try:
        work.send(None)
    except StopIteration as exc:
        return exc.value
    raise AssertionError("a program of sync sessions has waited for an event loop")


def write(how: str, program: int, row: Write, *, orphan: bool) -> Script:
    """Return what writes a row."""
    columns = values(program, row, orphan=orphan)
    sql = INSERT.format(owner=columns["owner_id"] or "NULL", **columns)

    def script(session: Session) -> None:
        if how.startswith("add"):
            row.entry = Entry(**columns)
            session.add(row.entry)
            if how == "add and flush":
                session.flush()
        elif how == "core":
            session.execute(insert(Entry).values(columns))
        elif how == "text":
            session.execute(text(sql))
        elif how == "on the connection":
            session.connection().execute(text(sql))
        else:
            on_driver(session, sql)

    return script


def on_driver(session: Session, sql: str) -> None:
    """Send ``sql`` outside SQLAlchemy, on a connection that has begun: before that asyncpg is in autocommit."""
    session.execute(select(1))
    connection = session.connection().connection
    result = connection.driver_connection.execute(sql)  # type: ignore[union-attr]  # each driver here has it
    if session.get_bind().dialect.is_async:
        await_only(result)


def fail(how: str) -> Script:
    """Return what fails."""

    def script(session: Session) -> None:
        if how == "flush":
            session.add(Entry(id=TAKEN, program=-1, attempt=0, name="again"))
            session.flush()
        elif how == "on the driver's connection":
            on_driver(session, FAILING["core"])
        else:
            session.execute(text(FAILING[how]))

    return script


def in_core_savepoint(sql: str, *, keep: bool) -> Script:
    """Return what executes ``sql`` in a savepoint of the connection, which the session does not know."""

    def script(session: Session) -> None:
        connection = session.connection()
        savepoint = connection.begin_nested()
        connection.execute(text(sql))
        savepoint.commit() if keep else savepoint.rollback()

    return script


def in_text_savepoint(sql: str, *, keep: bool) -> Script:
    """Return what executes ``sql`` in a savepoint that only the text knows."""

    def script(session: Session) -> None:
        session.execute(text("SAVEPOINT by_text"))
        session.execute(text(sql))
        session.execute(text("RELEASE SAVEPOINT by_text" if keep else "ROLLBACK TO SAVEPOINT by_text"))

    return script


def end(how: str) -> Script:
    """Return what ends the transaction outside the session."""

    def script(session: Session) -> None:
        if how.startswith("textual"):
            session.execute(text(how.removeprefix("textual ")))
        elif how == "commit on the connection":
            session.connection().commit()
        elif how == "rollback on the connection":
            session.connection().rollback()
        else:
            on_driver(session, how.partition(" ")[0])

    return script


def unflushed(session: Session) -> set[int]:
    """Return the identities of the objects that wait for a flush."""
    return {id(entry) for entry in session.new}


def busy(session: Session) -> None:
    """Let SQLite refuse a write while another connection writes; do nothing if this one writes already."""
    rival = sqlite3.connect(str(session.get_bind().engine.url.database), timeout=0, isolation_level=None)
    try:
        try:
            rival.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return
        session.execute(text(f"UPDATE fuzz_entry SET attempt = 0 WHERE id = {TAKEN}"))
    finally:
        rival.close()


def transient(session: Session) -> None:
    """Let the database raise a transient error."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(SERIALIZATION))
    else:
        busy(session)
