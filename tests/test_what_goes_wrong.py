"""The README's "When something goes wrong": each message that it quotes is said, by the error that it names."""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, create_engine, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from support.databases import PLAIN, Backend, Item, backend_names
from support.failing import lose_network, until
from support.scopes import in_scope

import asgi_sqla
from asgi_sqla import Database, errors, session_scope

_, _, _TOLD = (Path(__file__).parent.parent / "README.rst").read_text().partition("\nWhen something goes wrong\n")
SECTION, _, _ = _TOLD.partition("\nWhat it does not do\n")
TERMS = re.findall(r"^``.*$", SECTION, re.MULTILINE)
"""The lines that an explanation follows."""
SLOW = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000) SELECT count(*) FROM n")
ELSEWHERE = {"can't start new thread"}
"""What Python says where the system gives no thread; test_threads.py has such a system."""


class Quote(NamedTuple):
    """A message with ``...`` for what is filled in, and the names of the errors that say it."""

    message: str
    names: tuple[str, ...]


def quotes() -> dict[str, Quote]:
    """Return every message of the section: what is in quotation marks, and each literal of several words."""
    found = {}
    for term in TERMS:
        literals = re.findall(r"``(.+?)``", term)
        names = tuple(literal for literal in literals if literal.isidentifier())
        for message in (
            *re.findall(r'"(.+?)"', term),
            *(literal for literal in literals if " " in literal and "(" not in literal),
        ):
            found[message] = Quote(message, names)
    return found


def chain(error: BaseException | None) -> list[BaseException]:
    """Return ``error`` and what it was made from."""
    return [] if error is None else [error, *chain(getattr(error, "orig", None) or error.__cause__)]


def check(quote: Quote, error: BaseException) -> None:
    """Fail unless ``error`` says the message, and is or comes from one of the class that the README names."""
    pattern = ".+".join(re.escape(part.strip()) for part in quote.message.split("...")).removeprefix(".+")
    said = "\n".join("\n".join((str(one), *getattr(one, "__notes__", ()))) for one in chain(error))
    names = {kind.__name__ for one in chain(error) for kind in type(one).__mro__}
    assert re.search(pattern.removesuffix(".+"), said, re.IGNORECASE | re.DOTALL), said
    assert names & set(quote.names) or not quote.names, names


# What goes wrong on SQLite. Each is called with a ``Database`` of a file.

ONE: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}


@asynccontextmanager
async def other(database: Database, **options: Any) -> AsyncIterator[Database]:
    """Give another ``Database`` on the same file."""
    made = Database(f"sqlite:///{database.engine.url.database}", **options)
    try:
        yield made
    finally:
        await made.async_dispose()


async def outside(database: Database) -> None:
    """Ask for a session outside any unit."""
    _ = database.session


async def afterwards(database: Database) -> None:
    """Use a session after its unit."""
    async with session_scope(database) as session:
        pass
    await session.execute(SLOW)


async def shared(database: Database) -> None:
    """Use a session in two tasks."""
    async with session_scope(database) as session:
        outcomes = await asyncio.gather(session.execute(SLOW), session.execute(SLOW), return_exceptions=True)
        raise next(one for one in outcomes if isinstance(one, BaseException))


async def not_awaited(database: Database) -> None:
    """Leave a task behind that still uses the session."""
    tasks: list[asyncio.Task[Any]] = []
    try:
        async with session_scope(database) as session:
            await session.execute(text("SELECT 1"))
            tasks.append(asyncio.create_task(session.execute(SLOW)))
            await asyncio.sleep(0)
    finally:
        await asyncio.gather(*tasks, return_exceptions=True)


async def elsewhere(database: Database) -> None:
    """Ask for the async session in a sync scope."""
    with session_scope(database):
        _ = database.async_session


async def doomed(database: Database) -> None:
    """Suppress the exception of a joined scope."""
    async with session_scope(database):
        with suppress(KeyError):
            async with session_scope(database, propagation="join"):
                raise KeyError


async def discarded(database: Database) -> None:
    """Close a session with work."""
    async with session_scope(database) as session:
        session.add(Item(name="a"))
        await session.close()


async def read_only(database: Database) -> None:
    """Write where nothing may be written."""
    async with session_scope(database, read_only=True) as session:
        await session.execute(insert(Item).values(name="a"))


async def exhausted(database: Database) -> None:
    """Ask for a connection where one waits for it already."""
    async with other(database, max_waiting=1, engine_options=ONE) as small, session_scope(small) as session:
        await session.execute(SLOW)
        waiting = asyncio.create_task(in_scope(small, "async", lambda session: session.execute(SLOW)))
        await until(lambda: any(pool.waiting for pool in small.pools()))
        try:
            await in_scope(small, "async", lambda session: session.execute(SLOW))
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])


async def too_late(database: Database) -> None:
    """Send a statement after the deadline."""
    async with session_scope(database, deadline=0.01) as session:
        await asyncio.sleep(0.02)
        await session.execute(SLOW)


async def blocking(database: Database) -> None:
    """Use a sync session on the event loop."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", asgi_sqla.BlockingSessionWarning)
        async with session_scope(database):
            database.session.execute(SLOW)


async def rolled_back(database: Database) -> None:
    """Let SQLite roll a transaction back, and go on."""
    async with session_scope(database) as session:
        await session.execute(insert(Item).values(name="a"))
        with suppress(DBAPIError):
            await session.execute(text("INSERT OR ROLLBACK INTO item (name) VALUES ('a')"))
        await session.execute(text("SELECT 1"))


async def ended(database: Database) -> None:
    """Roll back by a statement, and go on."""
    async with session_scope(database) as session:
        await session.execute(insert(Item).values(name="a"))
        await session.execute(text("ROLLBACK"))
        await session.execute(text("SELECT 1"))


async def lazily(database: Database) -> None:
    """Load an attribute without ``await``."""
    async with session_scope(database) as session:
        session.add(item := Item(name="a"))
        await session.flush()
        session.expire(item)
        _ = item.name


async def detached(database: Database) -> None:
    """Load an attribute after the unit."""
    async with session_scope(database) as session:
        session.add(item := Item(name="a"))
        await session.flush()
        session.expire(item)
    _ = item.name


async def timed_out(database: Database) -> None:
    """Wait for a connection for too long."""
    options = {**ONE, "pool_timeout": 0.01}
    async with other(database, engine_options=options) as small, session_scope(small) as session:
        await session.execute(SLOW)
        await in_scope(small, "async", lambda session: session.execute(SLOW))


async def locked(database: Database) -> None:
    """Write while another one writes."""
    options = {"connect_args": {"timeout": 0.01}}
    async with other(database, engine_options=options) as hasty, session_scope(database) as session:
        await session.execute(insert(Item).values(name="a"))
        await in_scope(hasty, "async", lambda session: session.execute(insert(Item).values(name="b")))


async def twice(database: Database) -> None:
    """Break a unique constraint."""
    async with session_scope(database) as session:
        session.add_all([Item(name="a"), Item(name="a")])


async def no_table(database: Database) -> None:
    """Ask for a table that was not created."""
    async with session_scope(database) as session:
        await session.execute(text("SELECT * FROM nowhere"))


async def own_commit(database: Database) -> None:
    """Commit inside a block that commits."""
    async with session_scope(database) as session, session.begin():
        await session.commit()
        await session.execute(SLOW)


Cause = Callable[[Database], Awaitable[None]]
ON_SQLITE: dict[str, Cause] = {
    "no unit of work: ...": outside,
    "... has ended, and its sessions with it": afterwards,
    "a session of ... is in use by ...": shared,
    "... using one of its sessions ...": not_awaited,
    "an AsyncSession of ... was requested ...": elsewhere,
    "... a scope that had joined it ended with an exception": doomed,
    "... discarded work that was neither committed ...": discarded,
    "... in ..., which is read-only": read_only,
    "all ... connections are in use and ...": exhausted,
    "the deadline of ... s is over": too_late,
    "a sync session ran SQL on a thread with a running event loop": blocking,
    "... has rolled back this session's whole transaction": rolled_back,
    "... outside the session ...": ended,
    "greenlet_spawn has not been called": lazily,
    "... is not bound to a Session": detached,
    "QueuePool limit of size ... reached": timed_out,
    "database is locked": locked,
    "UNIQUE constraint failed": twice,
    "no such table": no_table,
    "Can't operate on closed transaction inside context manager": own_commit,
}


@pytest.mark.parametrize("message", ON_SQLITE)
async def test_a_message_is_said_on_sqlite(sqlite: Backend, message: str) -> None:
    """The error is caused, and says it."""
    database = Database(sqlite.url)
    with pytest.raises(Exception) as caught:  # noqa: PT011  # check() knows which
        await ON_SQLITE[message](database)
    await database.async_dispose()
    check(quotes()[message], caught.value)
    if PLAIN:
        del caught
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # SQLAlchemy does not close what aiosqlite wants awaited
            gc.collect()


# What goes wrong on PostgreSQL. Each is called with a backend and a ``Database``.


async def after_a_failure(_backend: Backend, database: Database) -> None:
    """Go on after a failed statement."""
    async with session_scope(database) as session:
        with suppress(DBAPIError):
            await session.execute(text("SELECT nothing"))
        await session.execute(text("SELECT 1"))


async def a_duplicate(_backend: Backend, database: Database) -> None:
    """Break a unique constraint."""
    await twice(database)


async def a_missing_relation(_backend: Backend, database: Database) -> None:
    """Ask for a table that was not created."""
    await no_table(database)


async def a_closed_port(_backend: Backend, _database: Database) -> None:
    """Connect where no server listens."""
    closed: Engine = create_engine("postgresql+psycopg://me@127.0.0.1:9/shop", poolclass=NullPool)
    with closed.connect():
        raise AssertionError


async def a_lost_connection(_backend: Backend, database: Database) -> None:
    """Lose the connection in the middle of a transaction."""

    def work(session: Session) -> None:
        session.execute(select(Item))
        lose_network(session.connection())
        session.execute(select(Item))

    await in_scope(database, "sync", work)


OnServer = Callable[[Backend, Database], Awaitable[None]]
ON_POSTGRESQL: dict[str, OnServer] = {
    "current transaction is aborted": after_a_failure,
    "duplicate key value": a_duplicate,
    "relation ... does not exist": a_missing_relation,
    "connection refused": a_closed_port,
    "server closed the connection unexpectedly": a_lost_connection,
}


@pytest.mark.parametrize("backend", [name for name in backend_names() if name == "psycopg"], indirect=True)
@pytest.mark.parametrize("message", ON_POSTGRESQL)
async def test_a_message_is_said_on_postgresql(backend: Backend, database: Database, message: str) -> None:
    """The error is caused, and says it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # check() knows which
        await ON_POSTGRESQL[message](backend, database)
    check(quotes()[message], caught.value)


TWO_LOOPS = """
import asyncio, logging, sys
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from asgi_sqla import Database, session_scope

async def ask(engine):
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))

async def through_ours(database):
    async with session_scope(database) as session:
        await session.execute(text("SELECT 1"))

logging.basicConfig()
engine, database = create_async_engine(sys.argv[1]), Database(sys.argv[1])
asyncio.run(ask(engine))
try:
    asyncio.run(ask(engine))
except RuntimeError as exc:
    print(exc)
asyncio.run(engine.dispose())
for _ in range(2):
    asyncio.run(through_ours(database))
print("served by ours")
"""
ON_TWO_LOOPS = {"attached to a different loop", "Event loop is closed"}


@pytest.mark.parametrize("backend", [name for name in backend_names() if name == "asyncpg"], indirect=True)
def test_an_engine_of_the_users_says_it_on_two_event_loops(backend: Backend) -> None:
    """The second loop gets a connection of the first, and cannot close it either; a ``Database`` serves both."""
    program = [sys.executable, "-W", "ignore", "-c", TWO_LOOPS, backend.url]
    ran = subprocess.run(program, capture_output=True, text=True, check=False)
    assert "served by ours" in ran.stdout, ran.stderr
    assert [message for message in ON_TWO_LOOPS if message not in ran.stdout + ran.stderr] == []


def test_every_message_is_caused() -> None:
    """One that is added to the README fails this test until something here causes it."""
    assert {*ON_SQLITE, *ON_POSTGRESQL, *ON_TWO_LOOPS, *ELSEWHERE} == quotes().keys()


def test_each_error_is_the_type_in_parentheses() -> None:
    """Whoever catches that type catches ours."""
    found = [(ours, base) for term in TERMS for ours, base in re.findall(r"``(\w+)`` \(.*?``(\w+)``\)", term)]
    known = {**vars(asgi_sqla), **vars(errors)}
    assert {name for name, value in vars(errors).items() if isinstance(value, type)} <= {
        *(ours for ours, _ in found),
        "AsgiSqlaError",
    }
    for ours, base in found:
        kinds = known[ours].__mro__
        assert base in {kind.__name__ for kind in kinds}
        assert (asgi_sqla.AsgiSqlaError in kinds) is not issubclass(known[ours], Warning)
