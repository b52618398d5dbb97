"""Which error is what: each fault of a database, caused for real, is judged and answered alike for every driver."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection, insert, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only
from support.asgi import Call, respond
from support.dark import Dark, dark
from support.databases import ASKED_FOR, Backend, Item, backend_names
from support.drivers import EACH, MARIADB, POSTGRESQL, SQLITE, case, on_drivers
from support.marks import KINDS, on_postgresql
from support.rivals import ONE, busy, deadlock, join_rivals, lost, perform, rows, stale, stale_on_mariadb

from asgi_sqla import (
    ERROR_RESPONSES,
    Database,
    ErrorKind,
    SQLAlchemyMiddleware,
    UnitOfWork,
    classify,
    current_unit,
    session_scope,
)
from asgi_sqla.asgi.answers import Answers
from asgi_sqla.engine.classification import kind_of
from asgi_sqla.session.transient import is_transient

KIND = ErrorKind
STATUS = {KIND.CONFLICT: 409, KIND.STATEMENT_TIMEOUT: 504}
"""Of every other kind it is 503, with Retry-After."""
ASYNCPG, PSYCOPG = ([name for name in backend_names() if name == driver] for driver in ("asyncpg", "psycopg"))
LIMITED = f"limited_{os.getpid()}"
"""A user who may have one connection."""

Cause = Callable[[Backend, Session], object]


@pytest.fixture(autouse=True)
def _rivals() -> Iterator[None]:
    yield
    join_rivals()


def ordinary(backend: Backend) -> Database:
    return Database(backend.url)


def refusing(backend: Backend) -> Database:
    """Return a database whose port is closed."""
    return Database(make_url(backend.url).set(host="127.0.0.1", port=1, query={}))


def unknown(backend: Backend) -> Database:
    """Return a database that the server does not have."""
    return Database(make_url(backend.url).set(database="nosuch"))


def small(backend: Backend) -> Database:
    """Return a database with one connection in its pool."""
    return Database(backend.url, engine_options={"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01})


def limited(backend: Backend) -> Database:
    """Return a database whose user may have one connection."""
    with backend.witness.connect().execution_options(isolation_level="AUTOCOMMIT") as witness:
        if backend.is_mariadb:
            witness.execute(text(f"CREATE OR REPLACE USER {LIMITED}@'%' WITH MAX_USER_CONNECTIONS 1"))
            witness.execute(text(f"GRANT ALL ON {make_url(backend.url).database}.* TO {LIMITED}@'%'"))
        else:
            witness.execute(text(f"DROP ROLE IF EXISTS {LIMITED}"))
            witness.execute(text(f"CREATE ROLE {LIMITED} LOGIN CONNECTION LIMIT 1"))
    return Database(make_url(backend.url).set(username=LIMITED))


def drop_limited(backend: Backend) -> None:
    """Remove that user, as the server may be shared."""
    with backend.witness.begin() as witness:
        witness.execute(text(f"DROP {'USER' if backend.is_mariadb else 'ROLE'} {LIMITED}"))


def standby(backend: Backend, demoted: Callable[[], bool] = lambda: True) -> Database:
    """Return a database whose server refuses writes on a connection made while it is ``demoted`` to a standby."""

    def refuse_writes(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET default_transaction_read_only = {demoted()}")
        cursor.close()
        connection.commit()

    database = Database(backend.url)
    database.listen("connect", refuse_writes)
    return database


def ask(_backend: Backend, session: Session) -> None:
    session.execute(text("SELECT 1"))


def ask_second(_backend: Backend, session: Session) -> None:
    """Want a connection beside another one."""
    engine: Any = session.get_bind()
    with engine.connect():
        session.execute(text("SELECT 1"))


def write(_backend: Backend, session: Session) -> None:
    session.execute(insert(Item).values(name="refused"))


def duplicate(_backend: Backend, session: Session) -> None:
    session.add(Item(name="row 1"))
    session.flush()


def orphan(backend: Backend, session: Session) -> None:
    """Refer to a row that is not there, where the constraint is checked at once."""
    sql = "CREATE TABLE IF NOT EXISTS child (id INTEGER PRIMARY KEY, owner_id INTEGER"
    sql += ", FOREIGN KEY (owner_id) REFERENCES owner (id))"
    with backend.witness.begin() as connection:
        connection.execute(text(sql))
    session.execute(text("INSERT INTO child VALUES (1, 404)"))


def lock_timeout(backend: Backend, session: Session) -> None:
    session.execute(text("SET LOCAL lock_timeout = '20ms'"))
    with backend.witness.begin() as rival:
        lock(rival)
        session.execute(text(f"SELECT name FROM item WHERE id = {ONE} FOR UPDATE"))


def lock_nowait(backend: Backend, session: Session) -> None:
    with backend.witness.begin() as rival:
        lock(rival)
        session.execute(text(f"SELECT name FROM item WHERE id = {ONE} FOR UPDATE NOWAIT"))


def lock(rival: Connection) -> None:
    rival.execute(text(f"SELECT name FROM item WHERE id = {ONE} FOR UPDATE"))


def too_slow(backend: Backend, session: Session) -> None:
    limit = "SET max_statement_time = 0.02" if backend.is_mariadb else "SET LOCAL statement_timeout = '20ms'"
    session.execute(text(limit))
    session.execute(text(f"SELECT {'sleep' if backend.is_mariadb else 'pg_sleep'}(30)"))


def interrupted(_backend: Backend, session: Session) -> None:
    """Let SQLite stop a statement, as a time limit does."""
    driver: Any = session.connection().connection.driver_connection
    setting = driver.set_progress_handler(lambda: 1, 1)
    if setting is not None:
        await_only(setting)
    session.execute(text("SELECT name FROM item")).all()


def misspelt(_backend: Backend, session: Session) -> None:
    session.execute(text("SELECT 1 FROM nosuch"))


def without_a_name(_backend: Backend, session: Session) -> None:
    session.execute(text("INSERT INTO item (id, name) VALUES (1, NULL)"))


@dataclass(frozen=True)
class Fault:
    """A fault, how it is caused, and where."""

    kind: ErrorKind | None
    cause: Cause
    where: Callable[[Backend], Database] = ordinary

    @property
    def __name__(self) -> str:
        return self.cause.__name__ if self.where is ordinary else self.where.__name__


EVERYWHERE = (
    Fault(KIND.CONFLICT, duplicate),
    Fault(KIND.CONFLICT, orphan),
    Fault(KIND.CONTENTION, stale),
    Fault(KIND.POOL_EXHAUSTED, ask_second, small),
    Fault(None, misspelt),
    Fault(None, without_a_name),
)
ON_SERVERS = (
    *EVERYWHERE,
    Fault(KIND.CONTENTION, deadlock),
    Fault(KIND.CONTENTION, lock_nowait),
    Fault(KIND.CONNECTION_LOST, lost),
    Fault(KIND.UNAVAILABLE, ask, refusing),
    Fault(KIND.UNAVAILABLE, ask_second, limited),
    Fault(KIND.STATEMENT_TIMEOUT, too_slow),
    Fault(None, ask, unknown),
)
FAULTS: dict[str, tuple[Fault, ...]] = {
    **dict.fromkeys(SQLITE, (*EVERYWHERE, Fault(KIND.CONTENTION, busy), Fault(KIND.STATEMENT_TIMEOUT, interrupted))),
    **dict.fromkeys(
        POSTGRESQL, (*ON_SERVERS, Fault(KIND.CONTENTION, lock_timeout), Fault(KIND.STANDBY, write, standby))
    ),
    **dict.fromkeys(
        MARIADB, (*(one for one in ON_SERVERS if one.cause is not stale), Fault(KIND.CONTENTION, stale_on_mariadb))
    ),
}


DRIVERS = [name for name in EACH if ASKED_FOR is None or EACH[name][0] in ASKED_FOR.split(",")]


@pytest.mark.parametrize(
    ("backend", "form", "fault"), [case(name, one) for name in DRIVERS for one in FAULTS[name]], indirect=["backend"]
)
async def test_each_driver_names_a_fault_alike(backend: Backend, form: str, fault: Fault) -> None:
    """The kind and the answer depend on what happened, and not on how the driver words it."""
    rows(backend)
    database = fault.where(backend)
    raised: list[Exception] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await perform(database, form, lambda session: fault.cause(backend, session))
        except Exception as exc:
            raised.append(exc)
            raise

    call = await Call(SQLAlchemyMiddleware(app, database, error_responses=ERROR_RESPONSES))()
    await database.async_dispose()
    if fault.where is limited:
        drop_limited(backend)

    (failure,) = raised
    assert (classify(failure), kind_of(failure)) == (fault.kind, fault.kind)
    assert is_transient(failure) is (fault.kind is not None and fault.kind.transient)
    assert call.starts == ([] if fault.kind is None else [STATUS.get(fault.kind, 503)])
    assert call.raised is (failure if fault.kind is None else None)
    assert [message for message in call.messages if (b"retry-after", b"1") in message.get("headers", ())] == [
        message for message in call.messages if message.get("status") == 503
    ]


# A connection that is of no more use is discarded, and a retry gets a fresh one.


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("backend", [*ASYNCPG, *PSYCOPG], indirect=True)
async def test_a_cached_plan_is_retried_on_a_fresh_connection(backend: Backend, read_only: bool) -> None:
    """After ALTER TABLE one retry is enough, although every connection of the pool has the old plan."""
    rows(backend)
    with backend.witness.begin() as witness:
        witness.execute(text("CREATE TABLE planned AS SELECT id, name FROM item"))
    database = Database(backend.url, engine_options={"pool_size": 3})
    statement = text("SELECT id, name FROM planned")
    attempts: list[int] = []

    failures: list[ErrorKind | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempts.append(current_unit().attempt)
        try:
            (await database.async_session.execute(statement)).all()
        except DBAPIError as exc:
            failures.append(kind_of(exc))
            raise
        await meeting.wait()
        await respond(send)

    middleware = SQLAlchemyMiddleware(app, database, retries=1, read_only=lambda scope: read_only)
    for _ in range(7):  # psycopg prepares what it has sent five times
        meeting = asyncio.Barrier(3)
        assert [one.starts for one in await asyncio.gather(*(Call(middleware)() for _ in range(3)))] == [[200]] * 3
    with backend.witness.begin() as witness:
        witness.execute(text("ALTER TABLE planned ALTER name TYPE varchar(300)"))
    meeting = asyncio.Barrier(1)
    attempts.clear()
    calls = [await Call(middleware)() for _ in range(4)]
    await database.async_dispose()
    with backend.witness.begin() as witness:
        witness.execute(text("DROP TABLE planned"))

    assert [call.starts for call in calls] == [[200]] * 4
    assert attempts == [1, 2, 1, 1, 1]
    assert failures == [KIND.CACHED_PLAN]


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_write_that_a_standby_refused_is_retried_elsewhere(backend: Backend, kind: str) -> None:
    """The connections to it are discarded, so the next attempt reaches the new primary."""
    demoted = [True]
    database = standby(backend, lambda: demoted[0])
    attempts: list[int] = []

    def work(session: Session) -> None:
        attempts.append(current_unit().attempt)
        if attempts == [1]:
            demoted[0] = False
        write(backend, session)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, lambda session: session.execute(text("SELECT 1")))
        await perform(database, kind, work)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database, retries=1))()
    await database.async_dispose()

    assert (call.starts, attempts, backend.names()) == ([201], [1, 2], ["refused"])


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_write_in_a_read_only_unit_is_the_users_fault(backend: Backend, kind: str) -> None:
    """It is not retried, not answered 503, and its connection stays in the pool."""
    database = Database(backend.url)
    attempts: list[object] = []

    def work(session: Session) -> None:
        attempts.append(session.scalar(text("SELECT pg_backend_pid()")))
        session.execute(text("INSERT INTO item (id, name) VALUES (1, 'refused')"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)

    middleware = SQLAlchemyMiddleware(
        app, database, retries=3, error_responses=ERROR_RESPONSES, read_only=lambda scope: True
    )
    calls = [await Call(middleware)() for _ in range(2)]
    await database.async_dispose()

    assert [(call.starts, classify(call.raised)) for call in calls if call.raised] == [([], None)] * 2
    assert len(attempts) == 2
    assert len(set(attempts)) == 1


@pytest.mark.parametrize("form", ["request", "function"])
@on_drivers("asyncpg", "psycopg async", "psycopg2", "asyncmy", "pymysql")
async def test_a_restart_of_the_server_is_outlived(
    backend: Backend, kind: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost, the next one is refused until the server is back, and the retries that are left go on."""
    kinds: list[ErrorKind] = []

    def pause(_attempt: int, kind: ErrorKind) -> float:
        kinds.append(kind)
        return 0.0

    monkeypatch.setattr("asgi_sqla.asgi.retry.pause", pause)
    monkeypatch.setattr("asgi_sqla.unit.scope.pause", pause)
    with dark(backend) as (proxy, url), ExitStack() as after:
        database = Database(url)

        def work(session: Session) -> None:
            attempt = current_unit().attempt
            if attempt == 3:
                again = Dark(make_url(backend.url), proxy.port)
                again.start()
                after.callback(again.stop)
            session.execute(insert(Item).values(name=f"attempt {attempt}"))
            if attempt == 1:
                proxy.stop()
                session.execute(text("SELECT 1"))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await perform(database, kind, work)
            await respond(send, 201)

        if form == "request":
            call = await Call(SQLAlchemyMiddleware(app, database, retries=2))()
            assert (call.raised, call.starts) == (None, [201])
        else:
            await session_scope(database, retries=2)(perform)(database, kind, work)
        await database.async_dispose()

    assert kinds == [KIND.CONNECTION_LOST, KIND.UNAVAILABLE]
    assert backend.names() == ["attempt 3"]


# What is nobody's fault but the user's, or not of the database.


async def connects_elsewhere(_database: Database) -> None:
    """Fail to reach another service."""
    await asyncio.open_connection("127.0.0.1", 1)


async def opens_no_file(_database: Database) -> None:
    open("/nosuch")  # noqa: ASYNC230, PTH123, SIM115  # it fails


async def has_a_time_limit_of_its_own(database: Database) -> None:
    """Give a statement less time than it needs."""
    async with asyncio.timeout(0.01):
        await database.async_session.execute(text("SELECT pg_sleep(30)"))


@pytest.mark.parametrize("work", [connects_elsewhere, opens_no_file, has_a_time_limit_of_its_own])
@pytest.mark.parametrize("backend", ASYNCPG, indirect=True)
async def test_an_error_of_the_system_is_the_databases_only_if_it_came_from_there(
    backend: Backend, work: Callable[[Database], Any]
) -> None:
    """A handler's own OSError or TimeoutError is not retried, and not answered for the database."""
    database = Database(backend.url)
    attempts: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempts.append(current_unit().attempt)
        await work(database)

    call = await Call(SQLAlchemyMiddleware(app, database, retries=2, error_responses=ERROR_RESPONSES))()
    await database.async_dispose()

    assert call.raised is not None
    assert (classify(call.raised), call.starts, attempts) == (None, [], [1])


@pytest.mark.parametrize("backend", ASYNCPG, indirect=True)
@pytest.mark.parametrize(("setting", "status"), [("timeout", 503), ("command_timeout", 504)])
async def test_time_limits_of_asyncpg(backend: Backend, setting: str, status: int) -> None:
    """A server that does not answer a connect is away; a statement that takes too long has met its limit."""
    with dark(backend) as (proxy, url):
        if setting == "timeout":
            proxy.go_dark()
        database = Database(make_url(url).update_query_dict({setting: "0.2"}))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await database.async_session.execute(text("SELECT pg_sleep(30)"))

        call = await Call(SQLAlchemyMiddleware(app, database, error_responses=ERROR_RESPONSES))()
        await database.async_dispose()

    assert (call.raised, call.starts) == (None, [status])


# Drivers that no test runs: their errors as their documentation describes them.


class _Details:
    """What oracledb keeps as the argument of its errors."""

    def __init__(self, full_code: str) -> None:
        self.full_code = full_code


def of(module: str, *args: object, **fields: object) -> Exception:
    """Return an error of a driver."""
    error: Exception = type("Error", (Exception,), {"__module__": module})(*args)
    vars(error).update(fields)
    return error


def odbc(sqlstate: str, number: int) -> Exception:
    said = f"[{sqlstate}] [Microsoft][ODBC Driver 18 for SQL Server][SQL Server]Said (it). ({number}) (SQLExecDirectW)"
    return of("pyodbc", sqlstate, said)


DOCUMENTED = {
    "ORA-00001": (of("oracledb.exceptions", _Details("ORA-00001")), KIND.CONFLICT),
    "ORA-02291": (of("oracledb.exceptions", _Details("ORA-02291")), KIND.CONFLICT),
    "ORA-00060": (of("oracledb.exceptions", _Details("ORA-00060")), KIND.CONTENTION),
    "ORA-08177": (of("oracledb.exceptions", _Details("ORA-08177")), KIND.CONTENTION),
    "ORA-01033": (of("oracledb.exceptions", _Details("ORA-01033")), KIND.UNAVAILABLE),
    "DPY-6005": (of("oracledb.exceptions", _Details("DPY-6005")), KIND.UNAVAILABLE),
    "DPY-4011": (of("oracledb.exceptions", _Details("DPY-4011")), KIND.CONNECTION_LOST),
    "DPY-4024": (of("oracledb.exceptions", _Details("DPY-4024")), KIND.STATEMENT_TIMEOUT),
    "ORA-00942": (of("oracledb.exceptions", _Details("ORA-00942")), None),
    "ODBC unique": (odbc("23000", 2627), KIND.CONFLICT),
    "ODBC foreign key": (odbc("23000", 547), KIND.CONFLICT),
    "ODBC not null": (odbc("23000", 515), None),
    "ODBC deadlock": (odbc("40001", 1205), KIND.CONTENTION),
    "ODBC lock timeout": (odbc("42000", 1222), KIND.CONTENTION),
    "ODBC snapshot": (odbc("42000", 3960), KIND.CONTENTION),
    "ODBC link": (odbc("08S01", 10054), KIND.CONNECTION_LOST),
    "ODBC connect": (odbc("08001", 17), KIND.UNAVAILABLE),
    "ODBC time limit": (of("pyodbc", "HYT00", "[HYT00] Timed out (0) (SQLExecDirectW)"), KIND.STATEMENT_TIMEOUT),
    "MySQLdb duplicate": (of("MySQLdb", 1062, "Duplicate entry"), KIND.CONFLICT),
    "MySQLdb deadlock": (of("MySQLdb", 1213, "Deadlock found"), KIND.CONTENTION),
    "MySQLdb refused": (of("MySQLdb", 2002, "Can't connect"), KIND.UNAVAILABLE),
    "MySQLdb too many": (of("MySQLdb", 1040, "Too many connections"), KIND.UNAVAILABLE),
    "MySQLdb shutdown": (of("MySQLdb", 1053, "Server shutdown in progress"), KIND.UNAVAILABLE),
    "MySQL's limit": (of("MySQLdb", 3024, "maximum statement execution time exceeded"), KIND.STATEMENT_TIMEOUT),
    "PostgreSQL starts": (of("asyncpg", sqlstate="57P03"), KIND.UNAVAILABLE),
    "PostgreSQL is full": (of("asyncpg", sqlstate="53300"), KIND.UNAVAILABLE),
    "PostgreSQL stops": (of("psycopg2", pgcode="57P01"), KIND.CONNECTION_LOST),
}


@pytest.mark.parametrize(("error", "kind"), DOCUMENTED.values(), ids=DOCUMENTED)
def test_codes_by_their_documentation(error: Exception, kind: ErrorKind | None) -> None:
    """The code counts, on the driver's error and in SQLAlchemy's of any class."""
    assert [classify(error), classify(DBAPIError("SELECT 1", {}, error))] == [kind] * 2


LOST = InterfaceError("SELECT 1", {}, of("asyncpg"), connection_invalidated=True)
DEADLOCK = DBAPIError("SELECT 1", {}, of("asyncpg", sqlstate="40P01"))
PRECEDENCE = {
    "kind": (DEADLOCK, {KIND.CONTENTION: 503}, True),
    "class of most drivers": (DEADLOCK, {OperationalError: 503}, True),
    "class before kind": (DEADLOCK, {KIND.CONTENTION: 500, OperationalError: 503}, True),
    "kind before base": (DEADLOCK, {KIND.CONTENTION: 503, DBAPIError: 500}, True),
    "base": (DEADLOCK, {DBAPIError: 503}, True),
    "own class": (LOST, {InterfaceError: 503, OperationalError: 500, KIND.CONNECTION_LOST: 500}, True),
    "no code, violated": (IntegrityError("COMMIT", None, Exception()), {KIND.CONFLICT: 503}, True),
    "no code, failed": (OperationalError("COMMIT", None, Exception()), ERROR_RESPONSES, True),
    "no code, another class": (ProgrammingError("COMMIT", None, Exception()), ERROR_RESPONSES, False),
    "another kind": (DEADLOCK, {KIND.CONFLICT: 409}, False),
    "another class": (DEADLOCK, {IntegrityError: 409}, False),
}


@pytest.mark.parametrize(("error", "mapping", "known"), PRECEDENCE.values(), ids=PRECEDENCE)
async def test_the_most_specific_key_of_a_mapping_counts(error: Exception, mapping: Any, known: bool) -> None:
    """An error has the class that most drivers give it, then its kind, then the bases of that class."""
    starts: list[Any] = []

    async def send(message: Any) -> None:
        starts.append(message.get("status"))

    answers = Answers(mapping)
    await answers.give(error, {"type": "http"}, None, send, UnitOfWork())
    assert (answers.knows(error), starts[0]) == (known, 503 if known else 500)
