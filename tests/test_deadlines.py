"""``deadline=``: the database stops a statement in time, nothing is sent or committed after it, and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from support.asgi import Call, http_scope, respond
from support.databases import ASKED_FOR, NO_OWNER, PLAIN, Backend, Item, postgresql_url, sqlite_backend
from support.drivers import EACH, MARIADB, POSTGRESQL, SQLITE, case
from support.failing import engine_of, execute, insert
from support.marks import KINDS, pipelined
from support.poolers import start
from support.wire import wire

from asgi_sqla import (
    ERROR_RESPONSES,
    ConfigurationError,
    Database,
    DeadlineExceededError,
    ErrorKind,
    SQLAlchemyMiddleware,
    classify,
    current_unit,
    session_scope,
)
from asgi_sqla.engine import limits
from asgi_sqla.engine.deadlines import Deadline
from asgi_sqla.testing import rolled_back

FOREVER = 30.0
SOON = 0.5
"""Seconds: enough for a statement on a busy machine, and soon over."""
ENDLESS = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t"
"""A statement that SQLite computes forever."""
SHOWN = "SELECT current_setting('statement_timeout')"
EVERY = (*SQLITE, *POSTGRESQL, *MARIADB)

pytestmark = pytest.mark.filterwarnings("ignore::asgi_sqla.BlockingSessionWarning")


def on_drivers(*drivers: str) -> pytest.MarkDecorator:
    """Run a test with each of ``drivers``; without an argument ``kind``, for which some would be left out."""
    asked = [name for name in drivers if ASKED_FOR is None or EACH[name][0] in ASKED_FOR.split(",")]
    return pytest.mark.parametrize(("backend", "form"), [case(name) for name in asked], indirect=["backend"])


@pytest.fixture
def kind(form: str) -> str:
    """Return the kind of session of the driver."""
    return form


def slow(backend: Backend, seconds: float = FOREVER) -> str:
    """Return a statement that takes so long."""
    if backend.name == "sqlite":
        return ENDLESS
    return f"SELECT SLEEP({seconds})" if backend.is_mariadb else f"SELECT pg_sleep({seconds})"


def setting(backend: Backend) -> str:
    """Return a statement that reads the limit of the database."""
    if backend.name == "sqlite":
        return "PRAGMA busy_timeout"
    return "SELECT @@max_statement_time" if backend.is_mariadb else SHOWN


def seconds(shown: Any, backend: Backend) -> float:
    """Return the limit that the database has shown, in seconds."""
    if backend.is_postgresql:
        number = float("".join(each for each in str(shown) if each.isdigit()))
        return number / 1000 if str(shown).endswith("ms") else number
    return float(shown) / (1000 if backend.name == "sqlite" else 1)


class Place:
    """A database with one connection, and one kind of session."""

    def __init__(self, backend: Backend, kind: str, url: str | None = None, **options: Any) -> None:
        self.backend = backend
        self.kind = kind
        pool = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 10, **options.pop("engine_options", {})}
        self.database = Database(url or backend.url, engine_options=pool, **options)
        self.connects = 0
        self.database.listen("connect", self._connected)

    def _connected(self, _connection: object, _record: object) -> None:
        self.connects += 1

    async def run(self, sql: str) -> Any:
        """Return the one value of a statement in the current unit."""
        return await execute(self.database, self.kind, sql)

    async def serve(self, work: Callable[[], Any], deadline: Any = None, path: str = "/", **options: Any) -> Call:
        """Serve a request that awaits ``work()``."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await work()
            await respond(send)

        given = {} if deadline is None else {"deadline": deadline}
        middleware = SQLAlchemyMiddleware(app, self.database, error_responses=ERROR_RESPONSES, **given, **options)
        return await Call(middleware, http_scope(path))()

    async def limit(self, deadline: Any = None, **options: Any) -> float:
        """Return the database's limit in seconds, as a request sees it."""
        seen: list[Any] = []

        async def look() -> None:
            seen.append(await self.run(setting(self.backend)))

        assert (await self.serve(look, deadline, **options)).starts == [200]
        return seconds(seen[0], self.backend)

    async def limit_outside(self) -> float:
        """Return it as a session sees it that is no unit's, on the same connection."""
        statement = text(setting(self.backend))
        if self.kind == "async":
            async with self.database.async_sessionmaker() as session:
                return seconds((await session.execute(statement)).scalar(), self.backend)

        def look() -> Any:
            with self.database.sessionmaker() as session:
                return session.execute(statement).scalar()

        return seconds(await asyncio.to_thread(look), self.backend)


@pytest.fixture
async def place(backend: Backend, kind: str) -> AsyncIterator[Place]:
    """Return a place; its connection must be back at the end."""
    place = Place(backend, kind)
    await place.limit()  # connecting takes time too
    yield place
    out = [status.out for status in place.database.pools()]
    await place.database.async_dispose()
    assert set(out) <= {0}


@pytest.fixture
def always_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the database told before each statement, as if each came much later than the last."""
    monkeypatch.setattr(limits, "SLACK", -FOREVER)


@on_drivers(*EVERY)
async def test_a_handler_past_its_deadline_is_a_504_and_its_connection_is_whole(place: Place) -> None:
    """The database stops the statement; the next request has the same connection, with the limit it had before."""
    before = await place.limit()

    async def work() -> None:
        await place.run(slow(place.backend))

    began = monotonic()
    call = await place.serve(work, SOON)
    took = monotonic() - began
    after = await place.limit(), await place.limit_outside()

    assert (call.raised, call.starts) == (None, [504])
    assert SOON <= took < FOREVER / 5
    assert (after, place.connects) == ((before, before), 1)


@on_drivers(*EVERY)
async def test_a_read_only_request_is_stopped_too(place: Place) -> None:
    """It is in autocommit, where PostgreSQL has no SET LOCAL."""

    async def work() -> None:
        await place.run(slow(place.backend))

    before = await place.limit(read_only={"GET"})
    call = await place.serve(work, SOON, read_only={"GET"})
    within = await place.limit(SOON, read_only={"GET"})
    after = await place.limit(read_only={"GET"})

    assert (call.raised, call.starts) == (None, [504])
    assert 0 < within <= SOON
    assert after == before


@on_drivers(*EVERY)
async def test_ten_statements_do_not_get_ten_deadlines(place: Place) -> None:
    """Each gets what is left, and the first after the deadline is refused."""
    shown: list[float] = []

    async def work() -> None:
        for _ in range(10):
            shown.append(seconds(await place.run(setting(place.backend)), place.backend))
            await asyncio.sleep(0.1)

    call = await place.serve(work, 0.5)

    assert call.starts == [504]
    assert 2 <= len(shown) <= 5
    assert shown[-1] <= 0.5 - 0.1 * (len(shown) - 1) + limits.SLACK


@on_drivers("aiosqlite", "asyncpg", "psycopg", "psycopg async", "asyncmy")
async def test_a_statement_after_the_deadline_is_not_sent(place: Place) -> None:
    """The error says so, names the request, and is an ordinary 504; without a mapping it is raised to the server."""
    sent: list[str] = []

    async def work() -> None:
        await place.run("SELECT 1")
        await asyncio.sleep(SOON)
        raw = engine_of(place.database, place.kind)
        event.listen(raw.dialect, "do_execute", lambda cursor, statement, *_: sent.append(statement))
        await place.run("SELECT 2")

    call = await place.serve(work, SOON)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await work()

    raised = (await Call(SQLAlchemyMiddleware(app, place.database, deadline=SOON))()).raised

    assert call.starts == [504]
    assert isinstance(raised, DeadlineExceededError)
    assert "GET / open>: 'SELECT 2' was not sent" in str(raised)
    assert (classify(raised), sent) == (ErrorKind.STATEMENT_TIMEOUT, ["SELECT 1"])
    assert place.connects == 1


@on_drivers("sqlite3", "aiosqlite", "asyncpg", "psycopg", "pymysql")
async def test_the_commit_of_a_write_is_refused_after_the_deadline(place: Place) -> None:
    """Nothing is kept, and nobody is told that it was; what only read is answered as ever."""

    async def write() -> None:
        await insert(place.database, place.kind, name="late")
        await asyncio.sleep(SOON)

    async def add() -> None:
        session: Any = place.database.session if place.kind == "sync" else place.database.async_session
        session.add(Item(name="later"))
        await asyncio.sleep(SOON)

    async def read() -> None:
        await place.run("SELECT 1")
        await asyncio.sleep(SOON)

    async def swallow() -> None:
        await write()
        with pytest.raises(DeadlineExceededError):
            await place.run("SELECT 1")

    calls = [await place.serve(work, SOON) for work in (write, add, read, swallow)]

    assert [call.starts for call in calls] == [[504], [504], [200], [504]]
    assert place.backend.names() == []


@on_drivers(*POSTGRESQL)
async def test_a_commit_that_was_sent_is_not_cut(place: Place) -> None:
    """It runs under the limit that the server has without us, however long it takes."""
    with place.backend.witness.begin() as connection:
        connection.execute(text("CREATE TABLE slow_commit (id int)"))
        connection.execute(
            text(
                "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "PERFORM pg_sleep(0.6); RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow_commit DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION wait()"
            )
        )
    try:
        call = await place.serve(lambda: place.run("INSERT INTO slow_commit VALUES (1) RETURNING id"), 0.4)
        with place.backend.witness.connect() as connection:
            kept = connection.execute(text("SELECT count(*) FROM slow_commit")).scalar()
    finally:
        with place.backend.witness.begin() as connection:
            connection.execute(text("DROP TABLE slow_commit"))
            connection.execute(text("DROP FUNCTION wait"))

    assert (call.raised, call.starts, kept) == (None, [200], 1)


@on_drivers("asyncpg", "psycopg", "psycopg async", "psycopg2")
async def test_a_commit_that_fails_does_so_as_ever(place: Place) -> None:
    """For a constraint, and after a statement that failed outside SQLAlchemy; the connection is whole afterwards."""
    sql = "SELECT 1/0"

    async def violate() -> None:
        await insert(place.database, place.kind, name="a", owner_id=NO_OWNER)

    def fail(session: Session) -> None:
        session.execute(text("SELECT 1"))
        connection: Any = session.connection().connection
        with suppress(Exception):
            if place.kind == "async":
                connection.dbapi_connection.run_async(lambda raw: raw.execute(sql))
            else:
                connection.driver_connection.cursor().execute(sql)

    async def unseen() -> None:
        await insert(place.database, place.kind, name="b")
        if place.kind == "async":
            await place.database.async_session.run_sync(fail)
        else:
            await asyncio.to_thread(fail, place.database.session)

    calls = [await place.serve(work, FOREVER) for work in (violate, unseen)]
    after = await place.limit(), await place.limit_outside()

    assert [call.starts for call in calls] == [[409], [500]]
    assert (after, place.backend.names(), place.connects) == ((0, 0), [], 1)


@on_drivers("asyncpg", "psycopg", "psycopg async", "psycopg2", "pymysql")
async def test_a_scope_in_autocommit_is_bound_as_far_as_its_driver_can(place: Place) -> None:
    """Every statement is, not only the first; where nothing travels it cannot be told, and the next is refused."""
    scope = session_scope(place.database, isolation_level="AUTOCOMMIT", deadline=1.5)
    shown: list[float] = []

    def work(session: Session) -> None:
        read = text(setting(place.backend))
        shown.extend([seconds(session.execute(read).scalar(), place.backend) for _ in range(2)])

    if place.kind == "async":
        async with scope as session:
            await session.run_sync(work)
    else:

        def in_thread() -> None:
            with scope as session:
                work(session)

        await asyncio.to_thread(in_thread)

    told = place.backend.is_mariadb or not (PLAIN or place.backend.name == "psycopg2")
    assert [0 < each <= 1.5 for each in shown] == [told] * 2
    assert await place.limit() == 0


@on_drivers(*SQLITE, *MARIADB)
async def test_a_commit_runs_without_the_limit(place: Place) -> None:
    """It is undone before COMMIT is sent."""
    shown: list[Any] = []
    usual = await place.limit()

    def at_commit(connection: Any) -> None:
        cursor = connection.connection.cursor()
        cursor.execute(setting(place.backend))
        shown.append(seconds(cursor.fetchone()[0], place.backend))
        cursor.close()

    async def work() -> None:
        shown.append(seconds(await place.run(setting(place.backend)), place.backend))
        event.listen(engine_of(place.database, place.kind), "commit", at_commit)

    call = await place.serve(work, 3.0)

    assert call.starts == [200]
    assert shown[0] <= 3
    assert shown[1:] == [usual]


async def counted(place: Place, wire: Any, work: Callable[[], Any], **options: Any) -> int:
    """Return how many round trips a request takes at least, after some that warm it up.

    On a busy machine the wire may see the two halves of one message apart.
    """
    for _ in range(7):  # psycopg prepares a statement that it has seen five times
        await place.serve(work, **options)
    taken: list[int] = []
    for _ in range(5):
        before = wire.round_trips
        call = await place.serve(work, **options)
        assert (call.raised, call.starts) == (None, [200])
        taken.append(int(wire.round_trips - before))
    return min(taken)


@pipelined
@pytest.mark.parametrize("told", ["once", "always"])
@on_drivers("asyncpg", "psycopg", "psycopg async")
async def test_it_takes_no_round_trip_where_begin_travels(
    backend: Backend, kind: str, told: str, request: pytest.FixtureRequest
) -> None:
    """The limit travels with the statement, its undoing with COMMIT; a SELECT in autocommit stays a single one."""
    if told == "always":
        request.getfixturevalue("always_told")
    found: dict[Any, list[int]] = {}
    statement = text("SELECT CAST(:value AS integer)")
    with wire(backend.url) as (counting, url):
        place = Place(backend, kind, url)

        async def select(times: int = 1) -> None:
            for value in range(times):
                if kind == "sync":
                    await asyncio.to_thread(lambda: place.database.session.execute(statement, {"value": 1}).scalar())
                else:
                    await place.database.async_session.execute(statement, {"value": value})

        async def nothing() -> None:
            return None

        works: list[tuple[Callable[[], Any], dict[str, Any]]] = [
            (nothing, {}),
            (select, {}),
            (lambda: select(5), {}),
            (lambda: insert(place.database, kind, name=f"item {next(NUMBERS)}"), {}),
            (select, {"read_only": {"GET"}}),
            (lambda: place.run("SELECT 1"), {"read_only": {"GET"}}),
        ]
        for number, (work, options) in enumerate(works):
            found[number] = [await counted(place, counting, work, deadline=one, **options) for one in (None, FOREVER)]
        await place.database.async_dispose()

    assert list(found.values()) == [[0, 0], [2, 2], [6, 6], [2, 2], [1, 1], [1, 1]]


@on_drivers(*(POSTGRESQL if PLAIN else ["psycopg2"]))
async def test_elsewhere_it_takes_two_round_trips(backend: Backend, kind: str) -> None:
    """One tells the limit, and one takes it back before COMMIT; statements in between need none."""
    with wire(backend.url) as (counting, url):
        place = Place(backend, kind, url)

        async def select() -> None:
            for _ in range(3):
                await place.run("SELECT 1")

        without, within = [await counted(place, counting, select, deadline=one) for one in (None, FOREVER)]
        await place.database.async_dispose()

    assert within - without == 2


def show(session: Session) -> Any:
    """Return the limit."""
    return session.execute(text("SHOW statement_timeout")).scalar()


def many(session: Session) -> None:
    """Write several rows at once."""
    names = [{"name": f"item {next(NUMBERS)}"} for _ in range(2)]
    session.execute(text("INSERT INTO item (name) VALUES (:name)"), names)


def stream(session: Session) -> None:
    """Read with a cursor on the server."""
    found = session.execute(text("SELECT generate_series(1, 5)").execution_options(yield_per=2))
    assert len(found.all()) == 5


def savepoint(session: Session) -> None:
    """Read in a savepoint, with a parameter."""
    with session.begin_nested():
        session.execute(text("SELECT CAST(:value AS integer)"), {"value": 1})


def without_parameters(session: Session) -> None:
    """Write without a parameter."""
    session.execute(text("DELETE FROM item"))


WAYS = [many, stream, savepoint, without_parameters, show]
NUMBERS = count(1)


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "plain"])
@on_drivers(*POSTGRESQL)
async def test_every_way_to_execute_is_limited(
    backend: Backend, kind: str, pipelining: bool, always_told: None
) -> None:
    """Many rows at once, a stream, a savepoint and a statement without parameters, first or later in a transaction."""
    place = Place(backend, kind, pipelining=pipelining)
    shown: list[Any] = []

    async def run(way: Callable[[Session], Any]) -> Any:
        if kind == "sync":
            return await asyncio.to_thread(way, place.database.session)
        return await place.database.async_session.run_sync(way)

    for first in WAYS:

        async def work(first: Callable[[Session], Any] = first) -> None:
            shown.extend([await run(way) for way in (first, show, *WAYS)])

        assert (await place.serve(work, FOREVER)).starts == [200]
    outside = await place.limit_outside()
    await place.database.async_dispose()

    found = [seconds(each, backend) for each in shown if each is not None]
    assert len(found) == 2 * len(WAYS) + 1
    assert all(FOREVER - 10 < each <= FOREVER for each in found)
    assert (outside, backend.names()) == (0, [])


@on_drivers("asyncpg", "psycopg", "psycopg async", "psycopg2")
async def test_a_rollback_to_a_savepoint_brings_no_time_back(place: Place) -> None:
    """PostgreSQL forgets what it was told since the savepoint, so it is told again."""

    async def work() -> None:
        await execute_nothing(place, "SAVEPOINT one")
        await asyncio.sleep(0.2)
        await place.run("SELECT 1")
        await execute_nothing(place, "ROLLBACK TO SAVEPOINT one")
        assert seconds(await place.run("SHOW statement_timeout"), place.backend) <= FOREVER - 0.2

    assert (await place.serve(work, FOREVER)).raised is None


@on_drivers("asyncpg", "psycopg", "psycopg2", "sqlite3", "pymysql", "asyncmy")
async def test_a_shorter_limit_of_ones_own_stays(backend: Backend, kind: str) -> None:
    """That of the connection, and one that the application sets in the transaction."""
    place = Place(backend, kind)
    own = {"sqlite": "PRAGMA busy_timeout = 100"}.get(backend.name) or (
        "SET SESSION max_statement_time = 0.1" if backend.is_mariadb else "SET statement_timeout = 100"
    )

    def on_connect(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(own)
        cursor.close()
        connection.commit()

    place.database.listen("connect", on_connect)

    async def work() -> None:
        if backend.is_postgresql:
            await place.run("SELECT 1")
            await asyncio.to_thread(current_unit)  # a moment passes
            await execute_nothing(place, "SET LOCAL statement_timeout = 70")
            await asyncio.sleep(0.1)
            assert await place.run("SHOW statement_timeout") == "70ms"

    within = await place.limit(FOREVER)
    call = await place.serve(work, 1.0)
    after = await place.limit(), await place.limit_outside()
    await place.database.async_dispose()

    assert call.raised is None
    assert (within, *after) == (0.1, 0.1, 0.1)


async def execute_nothing(place: Place, sql: str) -> None:
    """Execute a statement that returns nothing."""
    if place.kind == "sync":
        await asyncio.to_thread(lambda: place.database.session.execute(text(sql)))
    else:
        await place.database.async_session.execute(text(sql))


@pytest.mark.parametrize("kind", KINDS)
async def test_waiting_for_a_connection_counts(sqlite: Backend, kind: str) -> None:
    """A request that gets none until its deadline is a 504, and a note says who holds the connection."""
    place = Place(sqlite, kind)
    holding, enough = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        await place.run("SELECT 1")
        holding.set()
        await enough.wait()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await place.run("SELECT 1")

    holder = asyncio.create_task(place.serve(hold, path="/holds"))
    await holding.wait()
    began = monotonic()
    call = await place.serve(lambda: place.run("SELECT 1"), SOON)
    raised = (await Call(SQLAlchemyMiddleware(app, place.database, deadline=SOON))()).raised
    took = monotonic() - began
    enough.set()
    served = await holder
    await place.database.async_dispose()

    assert (call.starts, served.starts) == ([504], [200])
    assert 2 * SOON <= took < 5
    assert isinstance(raised, DeadlineExceededError)
    assert "GET /holds" in "".join(raised.__notes__)


@pytest.mark.parametrize("mode", ["deferred", "immediate"])
@pytest.mark.parametrize("kind", KINDS)
async def test_waiting_for_a_lock_of_sqlite_counts(sqlite: Backend, kind: str, mode: Any) -> None:
    """The busy timeout is cut to what is left, and the error is not "database is locked", which is retried."""
    place = Place(sqlite, kind, transaction_mode=mode)
    with create_engine(sqlite.url, poolclass=NullPool).connect() as other:
        other.exec_driver_sql("INSERT INTO owner VALUES (1)")
        began = monotonic()
        call = await place.serve(lambda: insert(place.database, kind, name="a"), SOON, retries=3)
        took = monotonic() - began
        other.rollback()
    after = await place.serve(lambda: insert(place.database, kind, name="b")), await place.limit_outside()
    await place.database.async_dispose()

    assert (call.raised, call.starts) == (None, [504])
    assert took < 4
    assert (after[0].starts, after[1]) == ([200], 5.0)
    assert sqlite.names() == ["b"]


async def lose(place: Place) -> None:
    """Lose the connection, which is a transient error."""
    await asyncio.sleep(0.1)
    await place.run("SELECT pg_terminate_backend(pg_backend_pid())")


@on_drivers("asyncpg", "psycopg", "psycopg async")
async def test_all_attempts_share_one_deadline(place: Place) -> None:
    """There is no attempt after it, nor one whose pause would last until then; the pool is whole afterwards."""
    attempts: list[int] = []
    asked: list[Any] = []

    async def work() -> None:
        attempts.append(current_unit().attempt)
        await lose(place)

    def deadline(scope: Any) -> float:
        asked.append(scope["path"])
        return 0.5

    calls = [await place.serve(work, deadline, retries=50)]
    of_request, attempts[:] = list(attempts), []

    @session_scope(place.database, deadline=0.5, retries=50)
    async def job() -> None:
        await work()

    @session_scope(place.database, deadline=0.5, retries=50)
    def sync_job() -> None:
        attempts.append(current_unit().attempt)
        place.database.session.execute(text("SELECT pg_sleep(0.1)"))
        place.database.session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises((DBAPIError, DeadlineExceededError)):
        await (job() if place.kind == "async" else asyncio.to_thread(sync_job))

    assert calls[0].starts in ([503], [504])
    assert asked == ["/"]
    for made in (of_request, attempts):
        assert made == list(range(1, len(made) + 1))
        assert 2 <= len(made) <= 5
    assert await place.limit() == 0


@pytest.fixture
def own_scope(kind: str) -> Callable[..., Any]:
    """Return what runs a statement in a scope of its own."""

    async def run(database: Database, sql: str, **options: Any) -> Any:
        if kind == "async":
            async with session_scope(database, **options) as session:
                return (await session.execute(text(sql))).scalar()

        def in_thread() -> Any:
            with session_scope(database, **options) as session:
                return session.execute(text(sql)).scalar()

        return await asyncio.to_thread(in_thread)

    return run


@on_drivers("aiosqlite", "sqlite3", "asyncpg", "psycopg", "psycopg2", "asyncmy", "pymysql")
async def test_a_scope_has_a_deadline(place: Place, own_scope: Callable[..., Any]) -> None:
    """Alone, and inside a request, whichever of the two is over first."""
    backend, seen = place.backend, {}
    other = Place(backend, place.kind)  # the request holds the only connection of the first
    await other.limit()

    async def work() -> None:
        seen["own"] = seconds(await own_scope(other.database, setting(backend), deadline=1.0), backend)
        seen["inherited"] = seconds(await own_scope(other.database, setting(backend)), backend)
        seen["longer"] = seconds(await own_scope(other.database, setting(backend), deadline=FOREVER), backend)
        seen["outer"] = seconds(await place.run(setting(backend)), backend)

    assert (await place.serve(work, 3.0)).raised is None
    with pytest.raises(DBAPIError) as caught:
        await own_scope(other.database, slow(backend), deadline=SOON)
    after = await other.limit(), await other.limit_outside()
    await other.database.async_dispose()

    assert classify(caught.value) is ErrorKind.STATEMENT_TIMEOUT
    assert "the deadline of 0.5 s is over" in caught.value.__notes__
    assert seen["own"] <= 1 < seen["inherited"]
    assert seen["longer"] <= 3
    assert 1 < seen["outer"] <= 3
    assert len(set(after)) == 1


def test_a_joined_scope_has_no_deadline_of_its_own(sqlite: Backend) -> None:
    """It uses the unit that it joins."""
    with pytest.raises(ConfigurationError, match=r"deadline=2\.0 needs a new unit"):
        session_scope(Database(sqlite.url), propagation="join", deadline=2.0)


async def test_callbacks_are_not_bound(sqlite: Backend) -> None:
    """They belong to work that is committed."""
    place = Place(sqlite, "async")
    ran: list[Any] = []

    async def later() -> None:
        await asyncio.sleep(SOON)
        ran.append(await place.run("PRAGMA busy_timeout"))
        async with session_scope(place.database) as session:
            ran.append((await session.execute(text("PRAGMA busy_timeout"))).scalar())

    async def work() -> None:
        await insert(place.database, "async", name="a")
        current_unit().on_commit(later)

    pooled = Place(sqlite, "async", engine_options={"pool_size": 2})
    place.database = pooled.database
    call = await place.serve(work, SOON)
    await place.database.async_dispose()

    assert (call.starts, ran) == ([200], [5000, 5000])


async def test_what_follows_the_response_is_not_bound(sqlite: Backend) -> None:
    """Its client has an answer already; a later failure could not become a 504."""
    place = Place(sqlite, "async")
    ran: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await place.run("SELECT 1")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(SOON)
        ran.append(await place.run("PRAGMA busy_timeout"))
        await send({"type": "http.response.body", "body": b"x"})
        ran.append(await place.run("PRAGMA busy_timeout"))

    call = await Call(SQLAlchemyMiddleware(app, place.database, deadline=SOON))()
    await place.database.async_dispose()

    assert (call.raised, call.starts, ran) == (None, [200], [5000, 5000])


@pytest.mark.parametrize("kind", KINDS)
async def test_each_websocket_message_has_its_own(sqlite: Backend, kind: str) -> None:
    """Its time begins when it arrives, not while the socket is idle."""
    place = Place(sqlite, kind)
    sent: list[Any] = []
    incoming = iter(["websocket.connect", "websocket.receive", "websocket.receive", "websocket.disconnect"])

    async def receive() -> Any:
        await asyncio.sleep(SOON)
        return {"type": next(incoming), "text": "a"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            sent.append(await place.run("PRAGMA busy_timeout"))
        await send({"type": "websocket.close"})
        await asyncio.sleep(SOON)
        with pytest.raises(DeadlineExceededError):
            await place.run("SELECT 1")

    middleware = SQLAlchemyMiddleware(app, place.database, deadline=SOON)
    await middleware({**http_scope(), "type": "websocket"}, receive, send)
    await place.database.async_dispose()

    assert [sent[0], sent[-1], len(sent)] == ["websocket.accept", "websocket.close", 4]
    assert all(0 < each / 1000 <= SOON for each in sent[1:3])


async def test_a_function_gives_each_request_its_own(sqlite: Backend) -> None:
    """None is no deadline, and one that is over already sends nothing; anything else but a number is refused."""
    place = Place(sqlite, "async")

    async def late() -> float:
        raise AssertionError

    answers: dict[str, Any] = {"/none": None, "/over": -1, "/short": 0.5, "/wrong": "5", "/async": late()}

    def deadline(scope: Any) -> Any:
        return answers[scope["path"]]

    none = await place.limit(deadline, path="/none")
    short = await place.limit(deadline, path="/short")
    over = await place.serve(lambda: place.run("SELECT 1"), deadline, "/over")
    refused = [
        (await place.serve(lambda: place.run("SELECT 1"), deadline, path)).raised for path in ("/wrong", "/async")
    ]
    await place.database.async_dispose()

    assert (none, over.starts) == (5.0, [504])
    assert 0 < short <= 0.5
    assert [isinstance(each, ConfigurationError) and "deadline=" in str(each) for each in refused] == [True, True]


@on_drivers("asyncpg", "psycopg")
async def test_no_deadline_comes_between_two_commits(place: Place, tmp_path: Any) -> None:
    """Once the first of several databases commits, the others do too."""
    folder = tmp_path / "second"
    folder.mkdir()
    second = Place(sqlite_backend(folder), place.kind)

    async def work() -> None:
        await insert(place.database, place.kind, name="first")
        await insert(second.database, place.kind, name="second")
        event.listen(engine_of(place.database, place.kind), "commit", wait)

    def wait(_connection: Any) -> None:
        while deadline.left > -0.05:
            pass

    deadline = Deadline(0.5)
    call = await place.serve(work, 0.5)
    await second.database.async_dispose()

    assert (call.raised, call.starts) == (None, [200])
    assert (place.backend.names(), second.backend.names()) == (["first"], ["second"])


@on_drivers("aiosqlite", "asyncpg", "psycopg async", "asyncmy", "aiomysql")
async def test_a_cancelled_request_leaves_no_limit(place: Place) -> None:
    """Whenever it is cancelled, once or twice, the next user of the connection has what it had before."""
    usual = await place.limit()

    async def work() -> None:
        for _ in range(3):
            await place.run(setting(place.backend))
        await insert(place.database, "async", name=f"item {next(NUMBERS)}")

    for number in range(14):
        task = asyncio.create_task(place.serve(work, FOREVER))
        for _ in range(number * 4):
            await asyncio.sleep(0)
        await asyncio.sleep(number % 3 * 0.001)
        task.cancel()
        await asyncio.sleep(0)
        if number % 2:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await place.limit_outside() == usual


USERS = ("asyncpg", "psycopg", "psycopg async", "psycopg2")


@on_drivers(*USERS)
async def test_behind_a_pooler_nothing_is_left_for_strangers(backend: Backend, kind: str) -> None:
    """The one session of the server has its own limit again after each transaction."""
    pooler = start(postgresql_url(), servers=1)
    place = Place(backend, kind, pooler.through(backend.name), transaction_pooler=True)
    stranger = create_engine(pooler.through("psycopg2"), poolclass=NullPool)
    seen: list[Any] = []

    def look() -> Any:
        with stranger.connect() as connection:
            return connection.execute(text("SHOW statement_timeout")).scalar()

    for read_only in ({"GET"}, ()):
        within = await place.limit(5.0, read_only=read_only)
        seen.append(await asyncio.to_thread(look))
        call = await place.serve(lambda: place.run(slow(backend)), SOON, read_only=read_only)
        seen.append(await asyncio.to_thread(look))
        assert 0 < within <= 5
        assert call.starts == [504]
    await place.database.async_dispose()

    assert seen == ["0"] * 4


@pytest.mark.parametrize("kind", KINDS)
async def test_inside_rolled_back_only_the_next_statement_is_refused(sqlite: Backend, kind: str) -> None:
    """All units of a test share one transaction, which would keep the limit of the first."""
    place = Place(sqlite, kind)

    async def work() -> None:
        await place.run("SELECT 1")
        await asyncio.sleep(SOON)
        await place.run("SELECT 1")

    async with rolled_back(place.database):
        await place.limit()
        late = await place.serve(work, SOON)
        within, after = await place.limit(SOON), await place.limit()
    await place.database.async_dispose()

    assert (late.starts, within, after) == ([504], 5.0, 5.0)
