"""``transaction_pooler``: through a real PgBouncer nothing is left on a session of the server, nor expected of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, delete, insert, make_url, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from support.databases import PLAIN, Backend, Item, make_backend, postgresql_url
from support.marks import POSTGRESQL
from support.poolers import Losing, Pooler, start
from support.scopes import in_scope
from support.wire import wire

from asgi_sqla import ConfigurationError, Database, ReadOnlyError, session_scope
from asgi_sqla.engine.poolers import NOTE
from asgi_sqla.migrations import Migrations

USERS = [("asyncpg", "async"), ("psycopg", "async"), ("psycopg", "sync"), ("psycopg2", "sync")]
ANSWER = text("SELECT CAST(:value AS integer)")
SETTING = text("SELECT current_setting(:name)")
SESSIONS = 3
"""How many sessions of the server the pooler has: not two, as asyncpg uses two by turns for each statement."""
CLEAN: list[Any] = [(0, [])] * SESSIONS
LEVELS = [None, "REPEATABLE READ"]

pytestmark = pytest.mark.skipif(not POSTGRESQL, reason="no PostgreSQL is tested")


class Place:
    """A pooler with few sessions of the server, and one kind of session of one driver behind it."""

    def __init__(self, backend: Backend, kind: str, pooler: Pooler) -> None:
        self.backend = backend
        self.kind = kind
        self.pooler = pooler
        self.url = pooler.through(backend.name)
        self.database = Database(self.url, transaction_pooler=True, engine_options={"pool_size": 20})
        self.stranger = create_engine(pooler.through("psycopg2"), poolclass=NullPool)
        """Another application on the same pooler, which knows nothing of us."""

    async def run(self, work: Callable[[Session], Any], database: Database | None = None, **options: Any) -> Any:
        """Return what ``work`` returns in a scope."""
        return await in_scope(database or self.database, self.kind, work, **options)

    async def retried(self, work: Callable[[Session], None], database: Database | None = None, **options: Any) -> None:
        """Call ``work`` in a scope with two retries."""
        database = database or self.database

        @session_scope(database, retries=2, **options)
        async def later() -> None:
            await database.async_session.run_sync(work)

        @session_scope(database, retries=2, **options)
        def now() -> None:
            work(database.session)

        await (later() if self.kind == "async" else asyncio.to_thread(now))

    def strangers(self, ask: Callable[[Connection], Any]) -> list[Any]:
        """Return what ``ask`` returns on each session of the server; it is rolled back."""
        with ExitStack() as stack:
            connections = [stack.enter_context(self.stranger.connect()) for _ in range(SESSIONS)]
            answers = [ask(connection) for connection in connections]
            assert len({one.scalar(text("SELECT pg_backend_pid()")) for one in connections}) == SESSIONS
        return answers


@pytest.fixture(params=USERS, ids=["-".join(one) for one in USERS])
async def place(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[Place]:
    name, kind = request.param
    pooler = start(postgresql_url(), servers=SESSIONS)
    backend = make_backend(name, tmp_path)
    backend.terminate()  # the sessions of the server that an earlier test has used
    place = Place(backend, kind, pooler)
    assert place.strangers(left) == CLEAN  # PgBouncer opens another one only when all are in use
    yield place
    engine = place.database.engine if kind == "sync" else place.database.async_engine.sync_engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # it is a queue pool
    await place.database.async_dispose()
    place.stranger.dispose()
    backend.witness.dispose()


def left(connection: Connection) -> tuple[int, list[str]]:
    """Return what a session of the server has kept: prepared statements, and settings that are not as at its start."""
    prepared = connection.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
    changed = text(  # PgBouncer itself sets the encoding for each client
        "SELECT name || '=' || setting FROM pg_settings WHERE source = 'session' AND setting <> reset_val "
        "AND name <> 'client_encoding' ORDER BY name"
    )
    return int(prepared or 0), list(connection.scalars(changed))


def writes(connection: Connection) -> str:
    """Write as another application does."""
    connection.execute(insert(Item).values(name=f"a stranger's {id(connection)}"))
    return "written"


async def test_twenty_units_at_once_on_few_sessions_of_the_server(place: Place) -> None:
    """Each gets its own answers, survives the errors that it expects, and commits all or nothing."""

    def work(number: int, session: Session) -> None:
        for each in range(3):
            assert session.execute(ANSWER, {"value": number * 10 + each}).scalar_one() == number * 10 + each
        with pytest.raises(DBAPIError), session.begin_nested():
            session.execute(text("SELECT 1 / CAST(:zero AS integer)"), {"zero": 0})
        session.add(Item(name=f"item {number:02}"))
        session.flush()
        if number % 4 == 1:
            session.execute(text("SELECT 1 / CAST(:zero AS integer)"), {"zero": 0})

    for _ in range(2):
        runs = [place.run(partial(work, number)) for number in range(20)]
        outcomes = await asyncio.gather(*runs, return_exceptions=True)
        assert [isinstance(one, DBAPIError) for one in outcomes] == [number % 4 == 1 for number in range(20)]
        assert place.backend.names() == [f"item {number:02}" for number in range(20) if number % 4 != 1]
        with place.backend.witness.begin() as witness:
            witness.execute(delete(Item))
    assert place.strangers(left) == CLEAN


async def test_cancelled_units(place: Place) -> None:
    """Whatever they were doing, the others get their own answers, and no session of the server is lost."""
    if place.kind == "sync":
        pytest.skip("a thread cannot be cancelled")

    async def cancelled(number: int) -> None:
        task = asyncio.create_task(place.run(lambda session: session.execute(text("SELECT pg_sleep(0.02)"))))
        for _ in range(number * 3):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def answer(number: int, session: Session) -> Any:
        return session.execute(ANSWER, {"value": number}).scalar_one()

    await place.run(partial(answer, 0))
    runs = [place.run(partial(answer, number)) for number in range(20)]
    _, *answers = await asyncio.gather(asyncio.gather(*map(cancelled, range(20))), *runs)

    assert answers == list(range(20))
    assert place.strangers(left) == CLEAN


TRACES: tuple[dict[str, Any], ...] = ({"postgresql_readonly": True}, {"isolation_level": "AUTOCOMMIT"}, {})
"""Execution options that SQLAlchemy resets when a connection returns to its pool."""


@pytest.mark.parametrize("level", LEVELS)
async def test_a_read_only_unit_does_no_harm_to_another_application(place: Place, level: str | None) -> None:
    """Whatever it does, that application may write on each session of the server."""

    def read(session: Session) -> None:
        with session.begin_nested():
            assert session.execute(SETTING, {"name": "transaction_read_only"}).scalar_one() == "on"
        streamed = session.execute(text("SELECT generate_series(1, 5)").execution_options(yield_per=2))
        assert list(streamed.scalars()) == [1, 2, 3, 4, 5]

    for options in TRACES:

        def leave(session: Session, options: dict[str, Any] = options) -> None:
            session.connection(execution_options=options)
            assert session.execute(ANSWER, {"value": 1}).scalar_one() == 1

        for work in (leave, read, leave):
            await place.run(work, read_only=True, isolation_level=level)

    assert place.strangers(writes) == ["written"] * SESSIONS
    assert place.strangers(left) == CLEAN


@pytest.mark.parametrize("level", LEVELS)
async def test_a_read_only_unit_is_refused_its_writes(place: Place, level: str | None) -> None:
    """Its session refuses a statement of SQLAlchemy's, and the server textual SQL."""
    sqls = ("INSERT INTO item (name) VALUES ('b')", "WITH a AS (DELETE FROM item RETURNING id) SELECT * FROM a")
    options: dict[str, Any] = {"read_only": True, "isolation_level": level}

    for _ in range(SESSIONS):
        with pytest.raises(ReadOnlyError, match="INSERT"):
            await place.run(lambda session: session.execute(insert(Item).values(name="a")), **options)
        for sql in sqls:
            with pytest.raises(DBAPIError, match="read-only transaction"):
                await place.run(partial(Session.execute, statement=text(sql)), **options)

    assert place.backend.names() == []


async def test_types_that_the_driver_looks_up(place: Place) -> None:
    """Asyncpg asks for a type that it does not know in between, with a setting that it changes meanwhile."""
    with place.backend.witness.begin() as witness:
        witness.execute(text("DROP TYPE IF EXISTS mood"))
        witness.execute(text("CREATE TYPE mood AS ENUM ('glad', 'sad')"))
    mood = text("SELECT CAST(CAST(:value AS text) AS mood), CAST(ARRAY['sad'] AS mood[])")

    scopes: tuple[dict[str, Any], ...] = ({}, {"read_only": True}, {"isolation_level": "AUTOCOMMIT"})
    for options in scopes:
        database = Database(place.url, transaction_pooler=True)
        for _ in range(2):
            found = await place.run(lambda session: session.execute(mood, {"value": "glad"}).one(), database, **options)
            assert found[0] == "glad"
        await database.async_dispose()

    assert place.strangers(left) == CLEAN


TRIPS = {"asyncpg": (2, 3), "psycopg": (1, 2), "psycopg2": (1, 3)}
"""How many round trips a SELECT takes in a read-only unit, and in one that may write."""


async def test_round_trips(place: Place) -> None:
    """Asyncpg has to ask for the types each time; psycopg takes as many as without a pooler."""

    def read(session: Session) -> None:
        session.execute(ANSWER, {"value": 1}).scalar_one()

    taken: list[int] = []
    with wire(place.url) as (counting, url):
        database = Database(url, transaction_pooler=True)
        for read_only in (True, False):
            for _ in range(2):
                await place.run(read, database, read_only=read_only)
            before = counting.round_trips
            await place.run(read, database, read_only=read_only)
            taken.append(counting.round_trips - before)
        await database.async_dispose()

    reads, writes = TRIPS[place.backend.name]
    assert taken == [reads, writes + (PLAIN and place.backend.name != "psycopg2")]


async def test_a_retry(place: Place) -> None:
    """A serialization failure behind the pooler is retried in a new transaction."""
    attempts: list[int] = []
    with place.backend.witness.begin() as witness:
        witness.execute(insert(Item).values(id=1, name="first"))

    def work(session: Session) -> None:
        item = session.get_one(Item, 1)
        attempts.append(len(attempts))
        if len(attempts) == 1:
            with place.backend.witness.begin() as witness:
                witness.execute(update(Item).values(name="second"))
        item.name += f", then attempt {len(attempts)}"

    await place.retried(work, isolation_level="REPEATABLE READ")

    assert place.backend.names() == ["second, then attempt 2"]


@pytest.mark.parametrize("sent", ["INSERT INTO item", "COMMIT"])
async def test_a_session_of_the_server_that_is_lost(place: Place, sent: str) -> None:
    """PgBouncer reports it in words of its own: it is retried, but not if the COMMIT may have been applied."""
    losing = Losing(make_url(postgresql_url()))
    losing.start()
    pooler = start(f"postgresql://postgres@127.0.0.1:{losing.port}/postgres", servers=SESSIONS)
    database = Database(pooler.through(place.backend.name), transaction_pooler=True)
    attempts: list[int] = []

    def work(session: Session) -> None:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            losing.answer_to = sent.encode()
        session.add(Item(name=f"attempt {len(attempts)}"))

    if sent == "COMMIT":
        with pytest.raises(DBAPIError) as caught:
            await place.retried(work, database)
        assert "nobody can tell whether it was applied" in caught.value.__notes__[0]
    else:
        await place.retried(work, database)

    assert place.backend.names() == [f"attempt {len(attempts)}"]
    assert len(attempts) == (1 if sent == "COMMIT" else 2)
    await database.async_dispose()
    pooler.process.terminate()
    losing.stop()


async def test_a_url_of_the_pooler_without_the_switch(place: Place) -> None:
    """Reading fails at the first connection, with an error that names the switch, and nobody else is harmed."""
    database = Database(place.url)

    for level in LEVELS:
        with pytest.raises(Exception, match="unsupported startup parameter") as caught:
            await place.run(
                lambda session: session.scalar(ANSWER, {"value": 1}), database, read_only=True, isolation_level=level
            )
        assert [one for one in caught.value.__notes__ if "transaction_pooler=True" in one] == [NOTE]

    await database.async_dispose()
    assert place.strangers(writes) == ["written"] * SESSIONS


async def test_prepared_statements_without_the_switch(place: Place) -> None:
    """One that another session of the server does not know fails with an error that names the switch."""
    if place.backend.name == "psycopg2":
        pytest.skip("psycopg2 prepares nothing")
    database = Database(place.url)

    async def many() -> None:
        for _ in range(20):  # psycopg prepares what was sent five times
            await place.run(lambda session: session.scalar(ANSWER, {"value": 1}), database)

    with pytest.raises(DBAPIError, match="prepared statement") as caught:
        await many()

    await database.async_dispose()
    assert [one for one in caught.value.__notes__ if "transaction_pooler=True" in one] == [NOTE]


async def test_both_kinds_of_session_from_one_url(place: Place) -> None:
    """Options of one driver are not needed, and those that would prepare statements do not count."""
    options = {"asyncpg": {"statement_cache_size": 50}, "psycopg": {"prepare_threshold": 0}}.get(place.backend.name, {})
    own = {"async_engine_options" if place.kind == "async" else "engine_options": {"connect_args": options}}
    database = Database(place.url, transaction_pooler=True, **own)  # type: ignore[arg-type]  # either mapping

    def in_thread() -> Any:
        with session_scope(database) as session:
            return session.scalar(ANSWER, {"value": 1})

    for _ in range(8):
        async with session_scope(database) as session:
            assert await session.scalar(ANSWER, {"value": 2}) == 2
        assert await asyncio.to_thread(in_thread) == 1

    await database.async_dispose()
    assert place.strangers(left) == CLEAN


PG = "postgresql://h/d"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"url": "sqlite://"}, "is for PostgreSQL, but url=sqlite://; leave it out"),
    ({"url": "mysql://u:secret@h/d"}, r"is for PostgreSQL, but url=mysql://u:\*\*\*@h/d; leave it out"),
    ({"url": "postgresql+pg8000://h/d"}, "is for psycopg, psycopg2 and asyncpg, but .*; write postgresql"),
    ({"url": PG, "read_only_url": "postgresql+pg8000://r/d"}, "but a URL is postgresql.pg8000://r/d; write postgresql"),
    ({"url": PG, "engine": create_engine("sqlite://")}, "but engine=... brings its own; leave one of them out"),
    ({"engine": create_engine("sqlite://")}, "but engine=... brings its own"),
    ({"url": PG, "engine_options": {"creator": print}}, "but engine_options={'creator': ...} brings its own"),
    ({"url": PG, "async_engine_options": {"async_creator": print}}, "'async_creator': ...} brings its own"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_be_set_up_is_refused(arguments: dict[str, Any], message: str) -> None:
    """The error says what to write instead."""
    with pytest.raises(ConfigurationError, match=f"^transaction_pooler=True .*{message}"):
        Database(**arguments, transaction_pooler=True)


def test_migrations_need_a_session_of_the_server() -> None:
    """They refuse such a database at once, also one that is configured later."""
    write = r"write Migrations\(Database\(the URL of the server itself\), location\)"

    with pytest.raises(ConfigurationError, match=write):
        Migrations(Database(PG, transaction_pooler=True), "migrations")
    database = Database("sqlite://")
    migrations = Migrations(database, "migrations")
    database.configure(PG, transaction_pooler=True)
    with pytest.raises(ConfigurationError, match=write):
        migrations.status()
