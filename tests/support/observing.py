"""An observer that keeps its reports, and work of which the wire counts the statements."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable

from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from asgi_sqla import Database
from asgi_sqla.observe import Report
from support.databases import Item


class Reports(list[Report]):
    """Keeps every report that it receives."""

    def __call__(self, report: Report) -> None:
        self.append(report)

    @property
    def only(self) -> Report:
        """The one report that there is."""
        (report,) = self
        return report


def select_one(session: Session) -> None:
    session.execute(select(Item.name)).all()


def flush_one(session: Session) -> None:
    session.add(Item(name="one"))
    session.flush()


def insert_many_values(session: Session) -> None:
    """Insert 25 rows with RETURNING, in three statements."""
    rows = [{"name": f"row {number}"} for number in range(25)]
    options = {"insertmanyvalues_page_size": 10}
    session.execute(insert(Item).returning(Item.id), rows, execution_options=options).all()


def execute_many(session: Session) -> None:
    """Change rows with one executemany()."""
    session.connection().execute(
        update(Item).where(Item.name == text(":old")).values(name=text(":new")),
        [{"old": f"row {number}", "new": f"other {number}"} for number in range(3)],
    )


def use_savepoint(session: Session) -> None:
    """Set a savepoint, write in it, and release it."""
    with session.begin_nested():
        session.execute(text("UPDATE item SET name = name"))


def read_stream(session: Session) -> None:
    """Read through a server-side cursor."""
    for _ in session.execute(select(Item.id), execution_options={"yield_per": 2}):
        pass


def fail_in_savepoint(session: Session) -> None:
    """Send a statement that fails, and roll it back."""
    savepoint = session.begin_nested()
    try:
        session.execute(text("SELECT * FROM nothing"))
    except Exception:
        savepoint.rollback()


def textual(session: Session) -> None:
    """Send on the connection itself, which bypasses the methods of the session."""
    session.connection().exec_driver_sql("SELECT 1")


Work = Callable[[Session], None]


async def do(database: Database, kind: str, *works: Work) -> None:
    """Do some work as a handler of ``kind`` does."""

    def all_of(session: Session) -> None:
        for work in works:
            work(session)

    if kind == "sync":
        await asyncio.to_thread(lambda: all_of(database.session))
    else:
        await database.async_session.run_sync(all_of)


def locked() -> OperationalError:
    """Return what SQLite raises when another transaction is in the way."""
    original = sqlite3.OperationalError("database is locked")
    original.sqlite_errorcode = 5  # as the driver sets it
    return OperationalError("UPDATE", {}, original)
