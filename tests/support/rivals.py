"""Real transient errors: another transaction interferes with a session, or its connection is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

from anyio import to_thread
from sqlalchemy import Connection, case, insert, select, text, update
from sqlalchemy.orm import Session

from asgi_sqla import Database
from support.databases import MARIADB_DRIVERS, POSTGRESQL_DRIVERS, Backend, Item, Owner, backend_names
from support.servers import wait_until

Trouble: TypeAlias = Callable[[Backend, Session], None]
ONE, TWO = 1_000_001, 1_000_002
"""The primary keys of the two rows that transactions compete for, and of two owners."""


def rows(backend: Backend) -> list[str]:
    """Insert the two rows, and return their names."""
    names = ["row 1", "row 2"]
    with backend.witness.begin() as connection:
        connection.execute(insert(Owner), [{"id": ONE}, {"id": TWO}])
        connection.execute(insert(Item), [{"id": ONE, "name": names[0]}, {"id": TWO, "name": names[1]}])
    return names


def _touch(target: Session | Connection, key: int) -> None:
    # Always a change, and of no column with an index, which might be locked beyond the row.
    other = case((Item.owner_id == ONE, TWO), else_=ONE)
    target.execute(update(Item).where(Item.id == key).values(owner_id=other))


def stale(backend: Backend, session: Session) -> None:
    """Write a row that another transaction has changed since it was read: 40001, or SQLite's old snapshot."""
    if backend.is_postgresql:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        session.execute(insert(Item).values(name="lost"))
    session.scalar(select(Item.name).where(Item.id == ONE))
    with backend.witness.begin() as rival:
        _touch(rival, ONE)
    _touch(session, ONE)


def stale_on_mariadb(backend: Backend, session: Session) -> None:
    """Do so with MariaDB's snapshot isolation, which is new and optional: 1020."""
    session.execute(text("SET SESSION innodb_snapshot_isolation = ON"))
    session.execute(insert(Item).values(name="lost"))
    stale(backend, session)


def busy(backend: Backend, session: Session) -> None:
    """Write while another connection writes, without waiting for it: SQLite's busy."""
    session.execute(text("PRAGMA busy_timeout=0"))
    with backend.witness.connect() as rival:
        rival.exec_driver_sql("BEGIN IMMEDIATE")
        _touch(session, ONE)


def lock_wait(backend: Backend, session: Session) -> None:
    """Wait for a lock until MariaDB's timeout: 1205."""
    session.execute(text("SET SESSION innodb_lock_wait_timeout = 1"))
    session.execute(insert(Item).values(name="lost"))
    with backend.witness.begin() as rival:
        _touch(rival, ONE)
        _touch(session, ONE)


def lost(backend: Backend, session: Session) -> None:
    """Lose the connection between two statements."""
    session.execute(insert(Item).values(name="lost"))
    assert backend.terminate() > 0
    session.scalar(select(Item.name).where(Item.id == ONE))


def deadlock(backend: Backend, session: Session) -> None:
    """Take two locks in the other order than a rival with more work to lose: 40P01, 1213."""
    session.execute(insert(Item).values(name="lost"))
    _touch(session, ONE)
    holding = threading.Event()
    rival = threading.Thread(target=_rival, args=(backend, holding))
    _rivals.append(rival)
    rival.start()
    assert holding.wait(5)
    assert wait_until(lambda: _waits(backend)), "the rival does not wait"
    _touch(session, TWO)


_rivals: list[threading.Thread] = []


def join_rivals() -> None:
    """Wait until every rival has ended."""
    while _rivals:
        _rivals.pop().join(10)


def _rival(backend: Backend, holding: threading.Event) -> None:
    with backend.witness.connect() as connection:
        if backend.is_postgresql:
            connection.execute(text("SET LOCAL deadlock_timeout = '10s'"))
        connection.execute(insert(Item), [{"name": f"weight {number}"} for number in range(20)])
        _touch(connection, TWO)
        holding.set()
        _touch(connection, ONE)
        connection.rollback()


def _waits(backend: Backend) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    if backend.is_mariadb:  # (innodb_trx shows the same figures for as long as it is asked often)
        query = (
            "SELECT count(*) FROM information_schema.processlist "
            "WHERE db = database() AND info LIKE 'UPDATE item%' AND time_ms > 50"
        )
    with backend.witness.connect() as connection:
        return int(connection.execute(text(query)).scalar_one()) > 0


TROUBLES: dict[str, tuple[Trouble, ...]] = {
    "sqlite": (stale, busy),
    **dict.fromkeys(POSTGRESQL_DRIVERS, (stale, deadlock, lost)),
    **dict.fromkeys(MARIADB_DRIVERS, (deadlock, lock_wait, lost, stale_on_mariadb)),
}
"""The transient errors that can be caused on each database."""
EVERY = [(name, trouble) for name in backend_names() for trouble in TROUBLES[name]]
"""Each of them on each database under test."""


def trouble(backend: Backend, session: Session) -> None:
    """Cause the transient error that comes first on this database."""
    TROUBLES[backend.name][0](backend, session)


async def perform(database: Database, kind: str, work: Callable[[Session], object]) -> None:
    """Do ``work`` as a handler of ``kind`` does."""
    if kind == "sync":
        await to_thread.run_sync(lambda: work(database.session))
    else:
        await database.async_session.run_sync(work)
