"""The end of a sync session that waits for nothing runs on the event loop, and every other end in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio import to_thread
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool
from support.asgi import Call, http_scope, respond
from support.dark import dark
from support.databases import Backend, Item, connections_out
from support.drivers import on_drivers
from support.failing import BrokenError
from support.hops import Hops
from support.marks import alone, on_one_postgresql, on_postgresql

from asgi_sqla import Database, SQLAlchemyMiddleware, current_unit
from asgi_sqla.unit import at_once

SYNC = ("sqlite3", "psycopg", "psycopg2", "pymysql")
PATIENCE = 30.0

Work = Callable[[Session], object]


def read(session: Session) -> None:
    """Read."""
    session.execute(select(Item)).all()


def serve(database: Database, work: Work, *, status: int = 200, **options: Any) -> SQLAlchemyMiddleware:
    """Return an application whose handler does ``work`` in a worker thread; a GET only reads."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await to_thread.run_sync(lambda: work(database.session))
        await respond(send, status)

    return SQLAlchemyMiddleware(app, database, **{"read_only": {"GET"}, **options})


@pytest.mark.parametrize("status", [200, 404])
@on_drivers(*SYNC)
@pytest.mark.usefixtures("kind")
async def test_a_unit_that_reads_in_autocommit_ends_at_once(database: Database, hops: Hops, status: int) -> None:
    """No thread is needed to commit it, or to roll it back; the next one has its connection."""
    app = serve(database, read, status=status)

    calls = [await Call(app)() for _ in range(3)]

    assert ([call.starts for call in calls], hops.count) == ([[status]] * 3, 0)
    assert connections_out(database) == 0
    assert sum(one.idle for one in database.pools() if one.role == "read") == 1


@alone
@on_drivers(*SYNC)
@pytest.mark.usefixtures("kind")
async def test_a_unit_that_writes_ends_in_a_thread(database: Database, backend: Backend, hops: Hops) -> None:
    """Its COMMIT waits for the database."""
    app = serve(database, lambda session: session.execute(insert(Item).values(name="a")))

    call = await Call(app, http_scope(method="POST"))()

    assert (call.starts, hops.count, backend.names()) == ([200], 1, ["a"])


async def test_a_session_that_asked_nothing_ends_at_once(database: Database, hops: Hops) -> None:
    """Its transaction has begun in the session, and in no driver."""
    app = serve(database, lambda session: session.begin())

    call = await Call(app, http_scope(method="POST"))()

    assert (call.starts, hops.count) == ([200], 0)


@pytest.mark.parametrize("failing", [False, True])
async def test_callbacks_and_retries_do_not_need_a_thread(database: Database, hops: Hops, failing: bool) -> None:
    """What they listen to never waits, and they are called after the end as always."""
    called: list[str] = []

    def work(session: Session) -> None:
        read(session)
        current_unit().on_commit(called.append, "commit")
        current_unit().on_rollback(called.append, "rollback")
        if failing:
            raise BrokenError

    call = await Call(serve(database, work, retries=2))()

    assert (call.starts, hops.count) == ([] if failing else [200], 0)
    assert called == ["rollback" if failing else "commit"]


async def test_an_observed_unit_ends_at_once(backend: Backend, hops: Hops) -> None:
    """Its report has the end all the same."""
    reports: list[Any] = []
    database = Database(backend.url, observe=[reports.append])

    call = await Call(serve(database, read))()
    await database.async_dispose()

    assert (call.starts, hops.count) == ([200], 0)
    assert [one.outcome for one in reports] == ["committed"]


@pytest.mark.parametrize("begins", [False, True])
async def test_all_sessions_of_a_unit_end_in_one_place(backend: Backend, hops: Hops, begins: bool) -> None:
    """If one of them may have to wait, a thread ends them all, in their order."""
    first, second = Database(backend.url), Database(backend.url)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await to_thread.run_sync(lambda: read(first.session))
        await to_thread.run_sync(lambda: (begin_nested if begins else read)(second.session))
        await respond(send)

    call = await Call(SQLAlchemyMiddleware(app, database=(first, second), read_only={"GET"}))()
    out = connections_out(first) + connections_out(second)
    for database in (first, second):
        await database.async_dispose()

    assert (call.starts, hops.count, out) == ([200], int(begins), 0)


@pytest.mark.usefixtures("hops")
def test_under_trio_it_ends_at_once_too(sqlite: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the threads are anyio's."""
    database = Database(sqlite.url)
    ran: list[str] = []
    run_sync = to_thread.run_sync

    async def counted(function: Any, *args: Any, **options: Any) -> Any:
        ran.append(getattr(function, "__name__", "a step"))
        return await run_sync(function, *args, **options)

    monkeypatch.setattr(to_thread, "run_sync", counted)
    starts: list[int] = []

    async def send(message: Any) -> None:
        if "status" in message:
            starts.append(message["status"])

    async def request() -> None:
        await serve(database, read)(http_scope(), anyio.sleep_forever, send)

    anyio.run(request, backend="trio")
    database.dispose()

    assert (starts, ran) == ([200], ["<lambda>"])


# Whatever may wait, or is not known not to.


def hear_engine(name: str) -> Callable[[Database], Work]:
    """Return what listens to an event of the engine for reading, before it reads."""

    def prepare(database: Database) -> Work:
        database.listen(name, lambda *_arguments: None)
        return read

    return prepare


def hear_session(name: str) -> Callable[[Database], Work]:
    """Return what listens to an event of its session."""
    kept: list[Item] = []

    def work(session: Session) -> None:
        event.listen(session, name, lambda *_arguments: None)
        kept.extend(session.scalars(select(Item)))

    return lambda _database: work


def doing(work: Work) -> Callable[[Database], Work]:
    """Return what does ``work``, whatever the database."""
    return lambda _database: work


def begin_nested(session: Session) -> None:
    """Begin a savepoint, and so a transaction."""
    session.begin_nested()
    read(session)


def set_level(session: Session) -> None:
    """Set what SQLAlchemy sets back when the connection returns to its pool."""
    session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    read(session)


def begin_by_hand(session: Session) -> None:
    """Begin a transaction behind the session's back."""
    raw: Any = session.connection().connection.driver_connection
    raw.cursor().execute("BEGIN")


def fail(session: Session) -> None:
    """Go on after an error of the database."""
    with pytest.raises(OperationalError if session.get_bind().dialect.name == "sqlite" else Exception):
        session.execute(text("SELECT * FROM nothing"))
    session.rollback()
    read(session)


def add(session: Session) -> None:
    """Add what the end would flush, and so refuse."""
    read(session)
    session.add(Item(name="a"))


CAREFUL: dict[str, Callable[[Database], Work]] = {
    **{f"engine {name}": hear_engine(name) for name in ("commit", "reset", "checkin")},
    **{f"session {name}": hear_session(name) for name in (*at_once._HEARD, *at_once._HEARD_OF_OBJECTS)},
    "a savepoint": doing(begin_nested),
    "an isolation level": doing(set_level),
    "a transaction that SQLAlchemy does not know of": doing(begin_by_hand),
    "an error": doing(fail),
}


@alone
@pytest.mark.parametrize("case", CAREFUL)
async def test_an_end_that_may_wait_has_a_thread(database: Database, backend: Backend, hops: Hops, case: str) -> None:
    """Somebody listens to it, or the driver has something to end."""
    with backend.witness.begin() as connection:
        connection.execute(insert(Item).values(name="a"))
    call = await Call(serve(database, CAREFUL[case](database)))()

    assert (call.starts, hops.count) == ([200], 1)


async def test_a_flush_has_a_thread(database: Database, backend: Backend, hops: Hops) -> None:
    """Here it is refused, because the unit only reads."""
    call = await Call(serve(database, add))()

    assert (call.starts, hops.count, backend.names()) == ([500], 1, [])


def options_of(case: str) -> dict[str, Any]:
    """Return the arguments of a ``Database`` whose sessions end in a way of their own."""

    class Own(Session):
        """A session with a commit of its own."""

        def commit(self) -> None:
            """Commit."""
            super().commit()

    class OwnPool(QueuePool):
        """A pool that takes connections back in its own way."""

        def _do_return_conn(self, record: Any) -> None:
            super()._do_return_conn(record)

    options: dict[str, dict[str, Any]] = {
        "a session class": {"session_options": {"class_": Own}},
        "no pool": {"engine_options": {"poolclass": NullPool}},
        "a pool": {"engine_options": {"poolclass": OwnPool}},
    }
    return options[case]


@pytest.mark.parametrize("case", ["a session class", "no pool", "a pool"])
async def test_what_is_of_the_users_own_has_a_thread(backend: Backend, hops: Hops, case: str) -> None:
    """Nobody knows what it waits for."""
    database = Database(backend.url, **options_of(case))

    call = await Call(serve(database, read))()
    await database.async_dispose()

    assert (call.starts, hops.count) == ([200], 1)


async def test_a_connection_that_the_pool_would_close_has_a_thread(backend: Backend, hops: Hops) -> None:
    """Closing one may wait: SQLite moves what was written into its file."""
    database = Database(backend.url, engine_options={"pool_size": 1, "max_overflow": 1})
    both = threading.Barrier(2)

    def work(session: Session) -> None:
        read(session)
        both.wait(PATIENCE)

    app = serve(database, work)
    calls = await asyncio.gather(Call(app)(), Call(app)())
    await database.async_dispose()

    assert ([call.starts for call in calls], hops.count) == ([[200]] * 2, 1)


@on_one_postgresql
async def test_a_changed_connection_has_a_thread(database: Database, hops: Hops) -> None:
    """What a unit set on its connection is undone by closing that."""
    app = serve(database, lambda session: session.execute(text("SET application_name = 'a'")))

    call = await Call(app)()

    assert (call.starts, hops.count) == ([200], 1)


@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize("many", [False, True])
async def test_many_objects_have_a_thread(
    database: Database, backend: Backend, hops: Hops, heard: bool, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To expire and detach them takes longer than a hop; and so does one object, if somebody listens to it."""
    monkeypatch.setattr(at_once, "MOST_OBJECTS", 1)
    with backend.witness.begin() as connection:
        connection.execute(insert(Item), [{"name": "a"}, {"name": "b"}])
    kept: list[Item] = []

    def work(session: Session) -> None:
        kept.extend(session.scalars(select(Item).limit(2 if many else 1)))

    if heard:
        event.listen(Item, "expire", note_expired)
    try:
        call = await Call(serve(database, work))()
    finally:
        if heard:
            event.remove(Item, "expire", note_expired)

    assert (call.starts, hops.count, len(kept)) == ([200], int(heard or many), 2 if many else 1)


def note_expired(_target: object, _names: object) -> None:
    """Listen to an object that expires."""


# What no end at once may change.


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("expires", [False, True])
@pytest.mark.parametrize("only_reads", [False, True])
async def test_what_is_left_is_that_of_a_commit(
    backend: Backend, only_reads: bool, expires: bool, begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record, its objects, its callbacks and the next transaction are the same as after ``session.commit()``."""
    with backend.witness.begin() as connection:
        connection.execute(insert(Item).values(name="there"))
    ended: list[str] = []

    async def run() -> dict[str, Any]:
        database = Database(backend.url, session_options={"expire_on_commit": expires})
        said: dict[str, Any] = {}

        def work(session: Session) -> Item:
            if begins:
                session.begin()
            current_unit().on_commit(ended.append, "committed")
            return session.scalars(select(Item)).one()

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            session: Any = database.session
            item = await to_thread.run_sync(work, session)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            outcome = session.guard_outcome
            said["record"] = outcome.committed, outcome.kept, outcome.rolled_back, outcome.connections, outcome.state
            said["item"] = "name" in vars(item), item in session, session.in_transaction(), session.guard_lock.locked()
            said["out"] = connections_out(database)
            said["again"] = (await to_thread.run_sync(work, session)) is item
            await send({"type": "http.response.body", "body": b""})

        await Call(SQLAlchemyMiddleware(app, database, read_only={"GET"} if only_reads else ()))()
        said["ended"] = ended.copy(), connections_out(database)
        ended.clear()
        await database.async_dispose()
        return said

    found = await run()
    with monkeypatch.context() as patched:
        patched.setattr(at_once, "let_go", lambda operation, one: operation(one.session))
        assert found == await run()
    with monkeypatch.context() as patched:
        patched.setattr(at_once, "_may_end_at_once", lambda _sessions: False)
        assert found == await run()


async def test_a_session_in_use_is_an_error_as_ever(database: Database) -> None:
    """A thread that still reads has its session for itself, and the response is an error."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        session: Any = database.session
        await to_thread.run_sync(read, session)
        assert session.guard_lock.acquire(False)  # as by a call in another thread
        try:
            await respond(send)
        finally:
            session.guard_lock.release()

    call = await Call(SQLAlchemyMiddleware(app, database, read_only={"GET"}))()

    assert call.starts == [500]


@on_postgresql
async def test_a_silent_server_does_not_stop_the_loop(backend: Backend, hops: Hops) -> None:
    """The server is gone when the unit ends: nothing is asked of it, so nothing waits."""
    with dark(backend) as (proxy, url):
        database = Database(url)

        def work(session: Session) -> None:
            read(session)
            proxy.go_dark()

        began = time.monotonic()
        call = await asyncio.wait_for(Call(serve(database, work))(), PATIENCE)
        took = time.monotonic() - began
        out = connections_out(database)
        proxy.let_through()
        await database.async_dispose()

    assert (call.starts, hops.count, out) == ([200], 0, 0)
    assert took < PATIENCE / 3


# SQLite: a transaction that only read.


def read_and(statement: str) -> Work:
    """Return what reads, and executes ``statement`` on the session."""

    def work(session: Session) -> None:
        read(session)
        session.execute(text(statement))

    return work


def read_and_go_past(statement: str) -> Work:
    """Return what reads, and executes ``statement`` on the driver's connection."""

    def work(session: Session) -> None:
        read(session)
        raw: Any = session.connection().connection.driver_connection
        raw.execute(statement)

    return work


def call_what_writes(session: Session) -> None:
    """Call a function that writes on the same connection, in a SELECT."""
    raw: Any = session.connection().connection.driver_connection
    raw.create_function("write", 0, lambda: raw.execute("INSERT INTO item (name) VALUES ('a')").rowcount)
    read(session)
    session.execute(select(func.write()))


def use_other_cursors(session: Session) -> None:
    """Write on a cursor of another class."""
    raw: Any = session.connection().connection.driver_connection
    read(session)
    raw.cursor(sqlite3.Cursor).execute("CREATE TABLE other (id)")


def execute_for_none(session: Session) -> None:
    """Execute a statement for none of no rows."""
    raw: Any = session.connection().connection.driver_connection
    read(session)
    raw.executemany("UPDATE item SET name = ?", [])


WRITING: dict[str, Work] = {
    "an UPDATE of no row": read_and("UPDATE item SET name = 'b'"),
    "DDL": read_and("CREATE TABLE other (id)"),
    "a PRAGMA that writes": read_and("PRAGMA user_version = 1"),
    "a CTE that writes": read_and("WITH one AS (SELECT 'a' AS name) INSERT INTO item (name) SELECT name FROM one"),
    "past the session": read_and_go_past("CREATE TABLE other (id)"),
    "a function that writes": call_what_writes,
    "a cursor of another class": use_other_cursors,
    "no row of many": execute_for_none,
}


async def end_on_sqlite(
    sqlite: Backend, work: Work, hops: Hops, *, status: int = 200, **options: Any
) -> tuple[list[int], int]:
    """Return how a unit on SQLite is answered, and how many hops its end took."""
    database = Database(sqlite.url, **options)
    call = await Call(serve(database, work, status=status), http_scope(method="POST"))()
    assert connections_out(database) == 0
    await database.async_dispose()
    return call.starts, hops.count


@pytest.mark.parametrize("status", [200, 404])
async def test_a_transaction_of_sqlite_that_only_read_ends_at_once(sqlite: Backend, hops: Hops, status: int) -> None:
    """Its COMMIT waits for no lock and no disk; and neither does a ROLLBACK."""
    assert await end_on_sqlite(sqlite, read, hops, status=status) == ([status], 0)


@pytest.mark.parametrize("case", WRITING)
async def test_a_transaction_of_sqlite_that_did_more_has_a_thread(sqlite: Backend, hops: Hops, case: str) -> None:
    """It may have to write into the file, whatever wrote, and whether or not a row has changed."""
    assert await end_on_sqlite(sqlite, WRITING[case], hops) == ([200], 1)


async def test_a_transaction_of_sqlite_that_began_with_the_lock_has_a_thread(sqlite: Backend, hops: Hops) -> None:
    """BEGIN IMMEDIATE is one of a writer."""
    assert await end_on_sqlite(sqlite, read, hops, transaction_mode="immediate") == ([200], 1)


class OwnConnection(sqlite3.Connection):
    """A connection of the user's own class."""


async def test_a_connection_of_the_users_own_class_stays_one(sqlite: Backend, hops: Hops) -> None:
    """And its transactions end in a thread, as nobody knows what they did."""
    made: list[type[Any]] = []

    def work(session: Session) -> None:
        read(session)
        made.append(type(session.connection().connection.driver_connection))

    options = {"connect_args": {"factory": OwnConnection}}

    assert await end_on_sqlite(sqlite, work, hops, engine_options=options) == ([200], 1)
    assert made == [OwnConnection]


@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
async def test_the_end_of_a_reader_does_not_wait_for_a_writer(sqlite: Backend, hops: Hops, journal: str) -> None:
    """Another connection holds the lock, and would hold up a writer for seconds; the log is not moved into the file."""
    database = Database(sqlite.url)

    def work(session: Session) -> None:
        read(session)
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO item (name) VALUES ('b')")

    writer = sqlite3.connect(str(sqlite.witness.url.database), isolation_level=None, check_same_thread=False)
    with contextlib.closing(writer):
        await to_thread.run_sync(lambda: database.engine.connect().close())  # it switches the file to WAL
        writer.execute(f"PRAGMA journal_mode = {journal}")
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        began = time.monotonic()
        call = await Call(serve(database, work), http_scope(method="POST"))()
        took = time.monotonic() - began
        writer.execute("ROLLBACK")
    await database.async_dispose()

    assert (call.starts, hops.count, sqlite.names()) == ([200], 0, [])
    assert took < PATIENCE / 3
