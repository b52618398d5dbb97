"""A lone INSERT travels with its COMMIT: an application observes the same with it and without it.

Each case runs on a plain engine and on one of ours, with the same assertions; only the round trips differ. A case is a
function of a sync session, which an AsyncSession runs in its greenlet.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Dialect, ForeignKey, Integer, String, TypeDecorator, event, func, make_url, select, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.orm.exc import FlushError, StaleDataError
from support.asgi import Call, respond
from support.databases import NO_OWNER, Backend, Item, check_owners, make_backend
from support.drivers import PSYCOPG_TELLS
from support.marks import WAYS, pipelined
from support.scopes import in_scope
from support.tls import tls
from support.wire import Connection, Wire, wire

from asgi_sqla import Database, SQLAlchemyMiddleware, current_unit, session_scope
from asgi_sqla.unit import cancellation

DRIVERS = [("asyncpg", "async"), ("psycopg", "async"), ("psycopg", "sync")]
IN_DOUBT = "the connection was lost during COMMIT: nobody can tell whether it was applied"


class Others(DeclarativeBase):
    """The tables of this file only."""


class Refusing(TypeDecorator[int]):
    """Refuses a number that the database returns."""

    impl = Integer
    cache_ok = True

    def process_result_value(self, value: int | None, _dialect: Dialect) -> int | None:
        raise ValueError(f"{value} cannot be read")


class Unreadable(Others):
    """A row whose default, which the INSERT returns, cannot be read."""

    __tablename__ = "unreadable"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(Refusing, server_default="7")


class Stamped(Others):
    """A row with a time that the server sets, and one that it may set too."""

    __tablename__ = "stamped"
    id: Mapped[int] = mapped_column(primary_key=True)
    made: Mapped[datetime] = mapped_column(server_default=func.now())


class Animal(Others):
    """The first of two tables."""

    __tablename__ = "animal"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012  # as SQLAlchemy asks
    toys: Mapped[list[Toy]] = relationship()


class Dog(Animal):
    """A row in both tables."""

    __tablename__ = "dog"
    id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012  # as above


class Toy(Others):
    """A row that belongs to an animal."""

    __tablename__ = "toy"
    id: Mapped[int] = mapped_column(primary_key=True)
    animal_id: Mapped[int | None] = mapped_column(ForeignKey("animal.id"))


class Place:
    """A database with one connection behind a wire, and how to run a unit on it."""

    def __init__(self, backend: Backend, kind: str, pipelining: bool, counting: Wire, url: str) -> None:
        self.backend = backend
        self.kind = kind
        self.pipelining = pipelining
        self.wire = counting
        self.database = self.other(url)

    def other(self, url: str, session_options: Any = None, **options: Any) -> Database:
        """Return another database with the same settings."""
        sizes = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5, **options}
        sessions = session_options or {}
        return Database(url, pipelining=self.pipelining, engine_options=sizes, session_options=sessions)

    async def unit(self, case: Callable[[Session], Any], database: Database | None = None, **options: Any) -> Any:
        """Return what ``case`` returns in a unit of work."""
        return await in_scope(database or self.database, self.kind, case, **options)

    async def trips(self, case: Callable[[Session], Any], database: Database | None = None, **options: Any) -> int:
        """Return how many round trips a unit takes: the least of several, as the wire may see two packets apart."""
        taken: list[int] = []
        self.wire.patience = 0.002
        for _ in range(25):
            before = self.wire.round_trips
            await self.unit(case, database, **options)
            taken.append(self.wire.round_trips - before)
        self.wire.patience = 0.0
        return min(taken[7:])  # psycopg prepares a statement that it has seen five times

    @property
    def engine(self) -> Any:
        """The sync core of the engine in use."""
        return self.database.engine if self.kind == "sync" else self.database.async_engine.sync_engine

    async def is_usable(self) -> None:
        """Assert that its only connection is idle in the pool, and works for the next unit."""
        assert self.engine.pool.checkedout() == 0
        assert self.backend.backends("idle in transaction%") == 0
        await self.unit(lambda session: session.add(Item(name="the next")))
        assert "the next" in self.backend.names()


@pytest.fixture(autouse=True)
def _nobody_listens() -> Iterator[None]:
    """Remove what the tests of MariaDB have every engine do at COMMIT: nothing travels with one that is listened to."""
    heard = event.contains(Engine, "commit", check_owners)
    if heard:
        event.remove(Engine, "commit", check_owners)
    yield
    if heard:
        event.listen(Engine, "commit", check_owners)


@pytest.fixture(params=WAYS, ids=["fast", "plain"])
def pipelining(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=DRIVERS, ids=["-".join(one) for one in DRIVERS])
async def place(request: pytest.FixtureRequest, pipelining: bool, tmp_path: Path) -> AsyncIterator[Place]:
    name, kind = request.param
    backend = make_backend(name, tmp_path)
    with wire(backend.url) as (counting, url):
        place = Place(backend, kind, pipelining, counting, url)
        yield place
        await place.database.async_dispose()
    backend.witness.dispose()


@pytest.fixture
def _others(place: Place) -> Iterator[None]:
    Others.metadata.create_all(place.backend.witness)
    yield
    Others.metadata.drop_all(place.backend.witness)


_numbers = iter(range(1_000_000))


def add_one(session: Session) -> Item:
    """Add an item of its own name."""
    item = Item(name=f"item {next(_numbers)}")
    session.add(item)
    return item


@contextmanager
def trigger(place: Place, body: str, when: str = "BEFORE INSERT ON item") -> Iterator[None]:
    """Install a trigger on items; a deferred one runs in COMMIT."""
    kind = "CONSTRAINT TRIGGER" if "DEFERRED" in when else "TRIGGER"
    with place.backend.witness.begin() as connection:
        connection.exec_driver_sql("CREATE SEQUENCE calls")  # it is not rolled back
        connection.exec_driver_sql(f"CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$")
        connection.exec_driver_sql(f"CREATE {kind} telling {when} FOR EACH ROW EXECUTE FUNCTION tell()")
    try:
        yield
    finally:
        with place.backend.witness.begin() as connection:
            connection.exec_driver_sql("DROP FUNCTION tell() CASCADE")
            connection.exec_driver_sql("DROP SEQUENCE calls")


AT_COMMIT = "AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED"
WHERE = {"in the INSERT": ("BEFORE INSERT ON item", "NEW"), "in COMMIT": (AT_COMMIT, "NULL")}


async def test_it_takes_one_round_trip(place: Place) -> None:
    """BEGIN, INSERT and COMMIT are answered together; the object has its key."""
    added: list[Item] = []

    taken = await place.trips(lambda session: added.append(add_one(session)))

    assert taken == (1 if place.pipelining else 3)
    assert sorted(place.backend.names()) == sorted(one.name for one in added)
    assert all(one.id > 0 for one in added)
    await place.is_usable()


async def test_after_a_read_it_takes_one_more(place: Place) -> None:
    """BEGIN has travelled with the SELECT."""

    def case(session: Session) -> None:
        session.execute(select(Item.id).where(Item.id == -1)).all()
        add_one(session)

    assert await place.trips(case) == (2 if place.pipelining else 4)
    assert len(place.backend.names()) == 25


async def test_a_hook_of_the_transaction_runs_before_it(place: Place) -> None:
    """What an ``on_begin`` hook sends is in the same transaction."""

    def hook(connection: Any) -> None:
        connection.execute(text("SELECT set_config('my.tenant', :value, true)"), {"value": "seven"})

    def case(session: Session) -> None:
        current_unit().on_begin(hook)
        add_one(session)

    with trigger(place, "NEW.name := current_setting('my.tenant') || NEW.name; RETURN NEW;"):
        taken = await place.trips(case)

    assert taken == (2 if place.pipelining else 4)
    assert all(name.startswith("seven") for name in place.backend.names())


@pytest.mark.usefixtures("_others")
async def test_a_time_of_the_server(place: Place) -> None:
    """It is returned by the INSERT, and can always be read."""
    made: list[Stamped] = []

    def case(session: Session) -> None:
        made.append(Stamped())
        session.add(made[-1])

    assert await place.trips(case) == (1 if place.pipelining else 3)
    assert all(one.made is not None for one in made)


@pytest.mark.usefixtures("_others")
async def test_an_object_of_a_parent(place: Place) -> None:
    """A reference to a row that is there writes no other row."""

    def case(session: Session) -> None:
        session.add(Toy(animal_id=None))

    assert await place.trips(case) == (1 if place.pipelining else 3)


async def test_behind_tls(place: Place, tmp_path: Path) -> None:
    """All three are encrypted."""
    with tls(place.backend.url, tmp_path) as (url, certificate, _):
        checked: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": str(certificate)}
        if place.backend.name == "asyncpg":
            checked = {"ssl": ssl.create_default_context(cafile=certificate)}
        database = place.other(url, connect_args=checked)
        for _ in range(8):
            await place.unit(add_one, database)
        with pytest.raises(IntegrityError):
            await place.unit(lambda session: session.add(Item(name="x", owner_id=NO_OWNER)), database)
        await place.unit(add_one, database)
        await database.async_dispose()

    assert len(place.backend.names()) == 9


@pipelined
def test_under_uvloop(tmp_path: Path) -> None:
    """Its transports hand over what they read as asyncio's do."""
    uvloop = pytest.importorskip("uvloop")
    backend = make_backend("asyncpg", tmp_path)

    async def main() -> int:
        with wire(backend.url) as (counting, url):
            place = Place(backend, "async", True, counting, url)
            taken = await place.trips(add_one)
            with pytest.raises(IntegrityError):
                await place.unit(lambda session: session.add(Item(name="x", owner_id=NO_OWNER)))
            await place.database.async_dispose()
        return taken

    taken = uvloop.run(main())
    names = backend.names()
    backend.witness.dispose()

    assert (taken, len(names)) == (1, 25)


# What fails.


async def fates(place: Place, case: Callable[[Session], Any], **options: Any) -> tuple[BaseException, list[str]]:
    """Return what a unit raises, and which of its callbacks were called."""
    called: list[str] = []

    def work(session: Session) -> Any:
        unit = current_unit()
        unit.on_commit(called.append, "committed")
        unit.on_rollback(called.append, "rolled back")
        return case(session)

    with pytest.raises(Exception) as caught:  # noqa: PT011  # the cases look at it
        await place.unit(work, **options)
    return caught.value, called


@pytest.mark.parametrize("times", [1, 8])
async def test_a_statement_that_fails(place: Place, times: int) -> None:
    """Its error is its own, and nothing is kept or in doubt."""
    await place.unit(lambda session: session.add(Item(name="taken")))

    for _ in range(times):
        failure, called = await fates(place, lambda session: session.add(Item(name="taken")))

        assert isinstance(failure, IntegrityError)
        assert (failure.statement or "").startswith("INSERT INTO item")
        assert called == ["rolled back"]
        assert not hasattr(failure, "__notes__")
        assert place.backend.backends("idle in transaction%") == 0

    assert place.backend.names() == ["taken"]
    await place.is_usable()


async def test_a_commit_that_fails(place: Place) -> None:
    """A deferred constraint is checked by COMMIT, and its error names no statement."""
    for _ in range(8):
        failure, called = await fates(place, lambda session: session.add(Item(name="lost", owner_id=NO_OWNER)))

        assert isinstance(failure, IntegrityError)
        assert failure.statement is None
        assert "23503" in (getattr(failure.orig, "sqlstate", ""), getattr(failure.orig, "pgcode", ""))
        assert called == ["rolled back"]
        assert not hasattr(failure, "__notes__")

    assert place.backend.names() == []
    await place.is_usable()


@pytest.mark.parametrize("where", WHERE)
async def test_a_serialization_failure_is_retried(place: Place, where: str) -> None:
    """It rolled everything back, wherever it was met."""
    when, row = WHERE[where]
    calls = 0

    async def job() -> None:
        nonlocal calls
        calls += 1
        if place.kind == "async":
            place.database.async_session.add(Item(name="kept"))
        else:
            place.database.session.add(Item(name="kept"))

    fail = f"IF nextval('calls') <= 2 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END IF; RETURN {row};"
    with trigger(place, fail, when):
        await session_scope(place.database, retries=3)(job)()

    assert (calls, place.backend.names()) == (3, ["kept"])
    await place.is_usable()


@pytest.mark.parametrize("where", WHERE)
async def test_a_server_session_that_is_ended_is_retried(place: Place, where: str) -> None:
    """The error that ends it says that nothing was committed, so nothing is in doubt."""
    when, row = WHERE[where]
    kill = "PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(5);"
    with trigger(place, f"IF nextval('calls') = 1 THEN {kill} END IF; RETURN {row};", when):
        failure, called = await fates(place, lambda session: session.add(Item(name="lost")))
        await place.unit(lambda session: session.add(Item(name="kept")))

    assert isinstance(failure, DBAPIError)
    assert failure.connection_invalidated
    told = PSYCOPG_TELLS or place.pipelining or place.backend.name == "asyncpg" or where != "in COMMIT"
    if place.pipelining and where == "in the INSERT":
        # COMMIT was still on its way, so the server may reset the connection, and its last word is lost now and then.
        told = "terminating connection" in str(failure)
    assert called == (["rolled back"] if told else [])
    assert (IN_DOUBT in getattr(failure, "__notes__", [])) is not told
    assert place.backend.names() == ["kept"]
    await place.is_usable()


class Armed(Wire):
    """Forwards what a driver says by ``pass_on`` instead, as soon as it is ``armed``."""

    armed = False

    def _forward(self, end: Any, connection: Connection) -> None:
        if self.armed and end is connection.ends[0]:
            self.pass_on(end.recv(65_536), connection)
        else:
            super()._forward(end, connection)

    def pass_on(self, data: bytes, connection: Connection) -> None:
        """Forward ``data``, or lose something."""
        raise NotImplementedError


class Losing(Armed):
    """Closes a connection as soon as a driver sends COMMIT, which the server still gets if it is to ``arrive``."""

    arrives = True

    def pass_on(self, data: bytes, connection: Connection) -> None:
        _, server = connection.ends
        if self.arrives or b"COMMIT" not in data:
            server.sendall(data)
        if b"COMMIT" in data:
            if self.arrives:
                server.recv(65_536)  # the server has carried it out, or is about to
            for one in connection.ends:
                self._selector.unregister(one)
                one.close()
            self.armed = False


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_connection_that_is_lost_after_commit_was_sent(place: Place, arrives: bool) -> None:
    """Nobody can tell whether it was applied, so nothing is retried."""
    url = make_url(place.backend.url)
    losing = Losing(url)
    losing.arrives = arrives
    losing.start()
    database = place.other(place.engine.url.set(port=losing.port).render_as_string(hide_password=False))
    called: list[str] = []

    async def job() -> None:
        current_unit().on_commit(called.append, "committed")
        current_unit().on_rollback(called.append, "rolled back")
        called.append("called")
        (database.async_session if place.kind == "async" else database.session).add(Item(name="doubtful"))

    await place.unit(add_one, database)
    losing.armed = True
    with pytest.raises(DBAPIError) as caught:
        await session_scope(database, retries=3)(job)()

    assert called == ["called"]
    assert caught.value.__notes__ == [IN_DOUBT]
    await place.unit(lambda session: session.add(Item(name="the next")), database)
    assert ("doubtful" in place.backend.names()) is arrives
    await database.async_dispose()
    losing.stop()


@pytest.mark.parametrize("where", WHERE)
async def test_cancelled_while_it_travels(place: Place, where: str) -> None:
    """The end is waited for, so what was committed is known; then the cancellation goes on."""
    if place.kind == "sync":
        pytest.skip("a thread cannot be cancelled")
    when, row = WHERE[where]
    called: list[str] = []

    def case(session: Session) -> None:
        current_unit().on_commit(called.append, "committed")
        session.add(Item(name="kept"))

    with trigger(place, f"PERFORM pg_sleep(0.4); RETURN {row};", when):
        task = asyncio.create_task(place.unit(case))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert (called, place.backend.names()) == (["committed"], ["kept"])
    await place.is_usable()


class Silent(Armed):
    """Lets nothing through any more once a driver has sent COMMIT."""

    left: Any = None

    def stop(self) -> None:
        super().stop()
        self.left.close()

    def pass_on(self, data: bytes, connection: Connection) -> None:
        driver, server = connection.ends
        server.sendall(data)
        if b"COMMIT" in data or not data:
            for one in connection.ends:
                self._selector.unregister(one)
            self.left = driver
            server.close()


async def test_cancelled_while_nobody_answers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for COMMIT is bounded; then the connection is cut, and what it did is in doubt."""
    if place.kind == "sync":
        pytest.skip("a thread cannot be cancelled")
    monkeypatch.setattr(cancellation, "CANCELLED_LIMIT", 0.3)
    silent = Silent(make_url(place.backend.url))
    silent.start()
    database = place.other(place.engine.url.set(port=silent.port).render_as_string(hide_password=False))
    called: list[str] = []

    def case(session: Session) -> None:
        current_unit().on_commit(called.append, "committed")
        current_unit().on_rollback(called.append, "rolled back")
        session.add(Item(name="doubtful"))
        units.append(session)

    units: list[Any] = []
    await place.unit(add_one, database)
    silent.armed = True
    task = asyncio.create_task(place.unit(case, database))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    silent.armed = False

    assert units[0].guard_outcome.in_doubt
    assert called == []
    await place.unit(lambda session: session.add(Item(name="the next")), database)
    assert "the next" in place.backend.names()
    await database.async_dispose()
    silent.stop()


# What could see a difference, and so travels as before.


LISTENED: dict[str, Callable[[Session], Any]] = {
    "before_commit": lambda session: session,
    "after_flush": lambda session: session,
    "after_flush_postexec": lambda session: session,
    "pending_to_persistent": lambda session: session,
    "after_transaction_end": lambda session: session,
    "after_insert": lambda _: Item,
    "after_cursor_execute": lambda session: session.get_bind(),
    "after_execute": lambda session: session.get_bind(),
    "commit": lambda session: session.get_bind(),
}


@pytest.mark.parametrize("name", LISTENED)
async def test_a_listener_that_raises(place: Place, name: str) -> None:
    """Whoever listens between the statement and COMMIT may still forbid that."""
    heard: list[str] = []
    undo: list[tuple[Any, ...]] = []

    def listener(*_: Any) -> None:
        heard.append(name)
        if len(heard) == 1:
            raise RuntimeError(name)

    def case(session: Session) -> None:
        target = LISTENED[name](session)
        event.listen(target, name, listener)
        undo.append((target, name, listener))
        session.add(Item(name="lost"))

    try:
        failure, called = await fates(place, case)
    finally:
        for one in undo:
            event.remove(*one)

    # SQLAlchemy itself stumbles over an error of that event.
    told = "This transaction is closed" if name == "after_transaction_end" else name
    assert (str(failure), called) == (told, ["rolled back"])
    assert heard
    assert place.backend.names() == []
    await place.is_usable()


async def test_a_listener_that_writes(place: Place) -> None:
    """What it sends after the flush is in the same transaction."""

    def audit(session: Session, _context: object) -> None:
        session.connection().execute(text("INSERT INTO item (name) VALUES (:name)"), {"name": "audit"})

    def case(session: Session) -> None:
        event.listen(session, "after_flush", audit)
        session.add(Item(name="lost", owner_id=NO_OWNER))

    failure, called = await fates(place, case)

    assert (type(failure), called) == (IntegrityError, ["rolled back"])
    assert place.backend.names() == []


async def test_a_flush_in_before_commit(place: Place) -> None:
    """What a listener flushes by itself is not the last statement."""

    def flush_and_fail(session: Session) -> None:
        session.flush()
        raise RuntimeError("after the flush")

    def case(session: Session) -> None:
        event.listen(session, "before_commit", flush_and_fail)
        session.add(Item(name="lost"))

    failure, called = await fates(place, case)

    assert (str(failure), called) == ("after the flush", ["rolled back"])
    assert place.backend.names() == []


@pytest.mark.parametrize("method", ["flush", "commit"])
async def test_a_session_class_of_the_users(place: Place, method: str) -> None:
    """What its methods do after the flush may still forbid COMMIT."""

    class Own(Session):
        def flush(self, objects: Any = None) -> None:
            super().flush(objects)
            if method == "flush" and self.in_transaction():
                raise RuntimeError("after the flush")

        def commit(self) -> None:
            if method == "commit":
                self.flush()
                raise RuntimeError("after the flush")
            super().commit()

    key = "sync_session_class" if place.kind == "async" else "class_"
    url = place.engine.url.render_as_string(hide_password=False)
    database = place.other(url, session_options={key: Own})

    with pytest.raises(RuntimeError, match="after the flush"):
        await place.unit(lambda session: session.add(Item(name="lost")), database)
    await database.async_dispose()

    assert place.backend.names() == []


async def test_an_update_that_finds_no_row(place: Place) -> None:
    """SQLAlchemy counts the rows, and what the unit had read and locked until then is rolled back."""
    await place.unit(lambda session: session.add(Item(id=7, name="old")))

    def case(session: Session) -> None:
        session.get_one(Item, 7).name = "new"
        with place.backend.witness.begin() as witness:
            witness.execute(text("DELETE FROM item"))

    failure, called = await fates(place, case)

    assert (type(failure), called) == (StaleDataError, ["rolled back"])
    await place.is_usable()


@pytest.mark.parametrize("what", ["update", "delete"])
async def test_an_update_or_delete_travels_alone(place: Place, what: str) -> None:
    """BEGIN with SELECT, the statement, and COMMIT; its rows are counted before COMMIT."""

    def case(session: Session) -> None:
        item = session.scalars(select(Item).limit(1)).one()
        if what == "delete":
            session.delete(item)
        else:
            item.name += "!"

    await place.unit(lambda session: session.add_all([Item(name=f"{number}") for number in range(25)]))

    assert await place.trips(case) == (3 if place.pipelining else 4)


@pytest.mark.usefixtures("_others")
async def test_a_returned_value_that_cannot_be_read(place: Place) -> None:
    """The application's own type raises, which still rolls back."""
    failure, called = await fates(place, lambda session: session.add(Unreadable()))

    assert (str(failure), called) == ("7 cannot be read", ["rolled back"])
    with place.backend.witness.connect() as witness:
        assert witness.scalar(text("SELECT count(*) FROM unreadable")) == 0


@pytest.mark.usefixtures("_others")
@pytest.mark.parametrize("what", ["two objects", "two tables", "a child that is there", "a change beside it"])
async def test_more_than_one_statement(place: Place, what: str) -> None:
    """None of them is committed before the last."""
    with place.backend.witness.begin() as witness:
        witness.execute(text("INSERT INTO toy (id) VALUES (-1), (-2)"))

    def case(session: Session) -> None:
        if what == "two objects":
            session.add_all([Toy(), Animal(kind="animal")])
        elif what == "two tables":
            session.add(Dog())
        elif what == "a child that is there":
            session.add(Animal(toys=[session.get_one(Toy, -1)]))
        else:
            session.get_one(Toy, -1).animal_id = None if session.get_one(Toy, -2).animal_id else 1
            session.add(Animal(id=1))
        session.add(Item(name="lost", owner_id=NO_OWNER))

    failure, called = await fates(place, case)

    assert (type(failure), called) == (IntegrityError, ["rolled back"])
    with place.backend.witness.connect() as witness:
        counts = "SELECT (SELECT count(*) FROM toy), (SELECT count(*) FROM animal), (SELECT count(animal_id) FROM toy)"
        assert tuple(witness.execute(text(counts)).one()) == (2, 0, 0)


@pytest.mark.usefixtures("_others")
async def test_two_statements_for_one_object(place: Place) -> None:
    """A new row whose child has to be changed: if that fails, the row is not kept."""
    with place.backend.witness.begin() as witness:
        witness.execute(text("INSERT INTO toy (id) VALUES (-1)"))
        witness.exec_driver_sql("ALTER TABLE toy ADD CONSTRAINT free CHECK (animal_id IS NULL)")

    failure, called = await fates(place, lambda session: session.add(Animal(toys=[session.get_one(Toy, -1)])))

    assert (type(failure), called) == (IntegrityError, ["rolled back"])
    with place.backend.witness.connect() as witness:
        assert witness.scalar(text("SELECT count(*) FROM animal")) == 0


async def test_a_savepoint_that_is_left_open(place: Place) -> None:
    """It is released before COMMIT."""

    def case(session: Session) -> None:
        session.begin_nested()
        session.add(Item(name="lost", owner_id=NO_OWNER))

    failure, called = await fates(place, case)
    await place.unit(lambda session: (session.begin_nested(), add_one(session)))

    assert (type(failure), called) == (IntegrityError, ["rolled back"])
    assert len(place.backend.names()) == 1


async def test_a_deadline(place: Place) -> None:
    """The limit of the statement ends before COMMIT, which must not be interrupted."""
    with trigger(place, "PERFORM pg_sleep(1.3); RETURN NULL;", AT_COMMIT):
        await place.unit(lambda session: session.add(Item(name="kept")), deadline=1.0)

    assert place.backend.names() == ["kept"]


async def test_a_commit_of_the_applications_own(place: Place) -> None:
    """Only the unit knows that nothing follows."""

    def case(session: Session) -> None:
        add_one(session)
        session.commit()

    assert await place.trips(case) == (2 if place.pipelining else 3)


async def test_a_row_that_a_trigger_swallows(place: Place) -> None:
    """SQLAlchemy finds no key and raises; nothing was written that could have been kept."""
    with trigger(place, "RETURN NULL;"):
        for _ in range(8):
            failure, _ = await fates(place, lambda session: session.add(Item(name="swallowed")))
            assert isinstance(failure, FlushError)

    assert place.backend.names() == []
    await place.is_usable()


@pipelined
@pytest.mark.parametrize("pipelining", [True])
async def test_what_a_trigger_writes_elsewhere_is_told(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The one case that differs: a trigger swallows the row and writes another. The log says that it was committed."""
    with trigger(
        place,
        "IF pg_trigger_depth() > 1 THEN RETURN NEW; END IF; INSERT INTO item (name) VALUES ('beside'); RETURN NULL;",
    ):

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            session: Any = place.database.async_session if place.kind == "async" else place.database.session
            session.add(Item(name="swallowed"))
            await respond(send, 201)

        call = await Call(SQLAlchemyMiddleware(app, place.database))()

    assert (call.starts, type(call.raised)) == ([500], FlushError)
    assert place.backend.names() == ["beside"]
    assert "had already been committed by the unit of work at its end" in caplog.text
    await place.is_usable()
