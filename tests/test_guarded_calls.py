"""Sessions in unusual use: inside a flush, at their own end, and in a call that has not finished."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import traceback
import warnings
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import greenlet  # type: ignore[import-untyped]
import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, SessionTransaction, mapped_column
from sqlalchemy.util import await_only
from support.asgi import Call, http_scope, respond
from support.databases import Backend, Item
from support.drivers import on_drivers
from support.failing import BrokenError, until
from support.marks import KINDS
from support.rivals import perform

from asgi_sqla import Database, SQLAlchemyMiddleware, UnitOfWorkEndedError, current_unit, session_scope
from asgi_sqla.unit.commit import End


def logged(caplog: pytest.LogCaptureFixture) -> list[type[BaseException] | None]:
    """Return the class of what each line of ours in the log has failed with."""
    return [one.exc_info[0] if one.exc_info else None for one in caplog.records if one.name == "asgi_sqla"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_statement_may_be_sent_without_parameters(database: Database, backend: Backend, kind: str) -> None:
    """The driver gets no parameters, so a percent sign stays one."""

    def work(session: Session) -> None:
        as_it_is = session.connection(execution_options={"no_parameters": True})
        name = as_it_is.exec_driver_sql("SELECT '100%'").scalar_one()
        session.add(Item(name=name))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert (call.raised, call.status, backend.names()) == (None, 201, ["100%"])


async def test_a_flush_may_await_its_own_session(database: Database, backend: Backend) -> None:
    """A listener that awaits in the greenlet of an AsyncSession is the current user of the session."""
    counted: list[Any] = []

    async with session_scope(database) as session:

        def before_flush(*_arguments: Any) -> None:
            with session.no_autoflush:
                counted.append(await_only(session.scalar(text("SELECT count(*) FROM item"))))

        event.listen(session.sync_session, "before_flush", before_flush)
        session.add(Item(name="a"))
    assert (counted, backend.names()) == ([0], ["a"])


class Straggler:
    """A thread that is in a call on its session when its unit ends."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.going, self.go_on = threading.Event(), threading.Event()
        self.session: Session | None = None
        self.raised: BaseException | None = None

    def work(self) -> None:
        """Write, and stay in a statement."""
        session = self.session = self.database.session
        session.add(Item(name="a"))
        session.flush()
        event.listen(self.database.engine, "before_execute", self._pause)
        try:
            session.execute(text("SELECT 1"))
            session.execute(text("SELECT 1"))
        except UnitOfWorkEndedError as exc:
            self.raised = exc

    def _pause(self, *_arguments: Any) -> None:
        self.going.set()
        self.go_on.wait(10)

    async def outlive_a_request(self) -> Call:
        """Run a request that fails in the middle of the statement, and then let that return."""
        threads: list[asyncio.Future[None]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            threads.append(asyncio.get_running_loop().run_in_executor(None, copy_context().run, self.work))
            await until(self.going.is_set)
            raise BrokenError

        call = await Call(SQLAlchemyMiddleware(app, self.database))()
        self.go_on.set()
        await threads[0]
        return call


async def test_a_listener_may_use_a_session_at_its_end(sqlite: Backend) -> None:
    """The end calls listeners, and they may change the session without the database."""
    straggler = Straggler(Database(sqlite.url))
    held: list[bool] = []

    @event.listens_for(Session, "after_soft_rollback")
    def look(session: Session, _transaction: SessionTransaction) -> None:
        if session is straggler.session:
            held.append(Item(name="b") in session)
            session.add(Item(name="b"))

    try:
        call = await straggler.outlive_a_request()
    finally:
        event.remove(Session, "after_soft_rollback", look)
    straggler.database.dispose()

    assert (type(call.raised), type(straggler.raised), held) == (BrokenError, UnitOfWorkEndedError, [False])
    assert sqlite.names() == []


async def test_a_rollback_that_fails_when_the_last_call_returns_is_logged(
    sqlite: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """No caller is left to get the error, and the connection leaves the pool."""
    straggler = Straggler(Database(sqlite.url))
    caplog.set_level(logging.ERROR, "asgi_sqla")

    def fail(_connection: Any) -> None:
        raise KeyError("rollback")

    event.listen(straggler.database.engine, "rollback", fail)
    await straggler.outlive_a_request()
    event.remove(straggler.database.engine, "rollback", fail)

    assert KeyError in logged(caplog)
    assert straggler.database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # it is a queue
    straggler.database.dispose()
    assert sqlite.names() == []


class SlowSession(Session):
    """A session class of the user's own, one of whose methods takes its time and no transaction."""

    going, go_on = threading.Event(), threading.Event()

    def think(self) -> None:
        """Take it."""
        SlowSession.going.set()
        SlowSession.go_on.wait(10)


async def test_a_call_without_a_transaction_counts_as_use(sqlite: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """A unit that ends another session reports that this one is still in use."""
    database = Database(sqlite.url, session_options={"class_": SlowSession})
    SlowSession.going.clear()
    SlowSession.go_on.clear()
    threads: list[asyncio.Future[Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="a"))
        await database.async_session.flush()
        session: Any = database.session
        threads.append(asyncio.ensure_future(asyncio.to_thread(session.think)))
        await until(SlowSession.going.is_set)
        raise BrokenError

    call = await Call(SQLAlchemyMiddleware(app, database))()
    SlowSession.go_on.set()
    await threads[0]
    await database.async_dispose()

    assert isinstance(call.raised, BrokenError)
    assert any("still using" in note for note in call.raised.__notes__)
    assert sqlite.names() == []


def test_a_lost_connection_is_not_cut(sqlite: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """An end that takes too long finds no connection to cut, and logs nothing."""
    database = Database(sqlite.url)
    with session_scope(database) as session:
        session.connection().invalidate()
        unit = current_unit()
        assert End(unit, unit._sessions.all, commit=False, doom=None).cut() is False
        session.rollback()
    database.dispose()
    assert logged(caplog) == []


@on_drivers("asyncpg", "psycopg", "pymysql")
async def test_a_connection_that_was_lost_after_a_caught_error_is_no_success(
    database: Database, backend: Backend, kind: str
) -> None:
    """Its driver does not know the fate of the transaction, and no server is left to ask."""

    def work(session: Session) -> None:
        session.add(Item(name="a"))
        session.flush()
        with pytest.raises(DBAPIError):
            session.execute(text("SELECT nonsense"))
        session.connection().invalidate()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert (call.starts, backend.names()) == ([500], [])


class Other(DeclarativeBase):
    """Tables of a second engine."""


class Entry(Other):
    """A row of it."""

    __tablename__ = "entry"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def second(tmp_path: Path) -> Engine:
    """Return the engine of a second file."""
    engine = create_engine(f"sqlite:///{tmp_path / 'second.db'}")
    Other.metadata.create_all(engine)
    return engine


@pytest.mark.filterwarnings("ignore:transaction already deassociated from connection")
async def test_a_session_whose_second_commit_fails_says_what_the_first_has_kept(
    sqlite: Backend, second: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session with two engines commits one after the other, so the client's error is not the whole truth."""
    database = Database(sqlite.url, session_options={"binds": {Other: second}})
    commits: list[str] = []

    def fail_second(commit: Callable[[Any], None], name: str) -> Callable[[Any], None]:
        def do_commit(connection: Any) -> None:
            commits.append(name)
            if len(commits) == 2:
                raise sqlite3.IntegrityError("refused")
            commit(connection)

        return do_commit

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = database.session
        session.add_all([Item(name="first"), Entry(id=1)])
        session.flush()
        for engine, name in ((database.engine, "first"), (second, "second")):
            monkeypatch.setattr(engine.dialect, "do_commit", fail_second(engine.dialect.do_commit, name))
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    monkeypatch.undo()
    with second.connect() as connection:
        kept = sqlite.names() + ["second"] * len(connection.exec_driver_sql("SELECT id FROM entry").all())
    database.dispose()
    second.dispose()

    assert (type(call.raised), call.starts, len(commits)) == (IntegrityError, [500], 2)
    assert kept == commits[:1]
    assert any("committed" in one.getMessage() for one in caplog.records if one.levelno == logging.WARNING)


@on_drivers("pymysql", "asyncmy")
async def test_a_statement_that_commits_first_may_come_first(database: Database, backend: Backend, kind: str) -> None:
    """There is nothing to commit before it, and the unit commits the work after it."""

    def work(session: Session) -> None:
        session.execute(text("ANALYZE TABLE item"))
        session.add(Item(name="a"))
        session.flush()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        await respond(send, int(scope["path"][1:]))

    for status in (422, 201):
        call = await Call(SQLAlchemyMiddleware(app, database), http_scope(f"/{status}"))()
        assert (call.raised, call.starts, backend.names()) == (None, [status], ["a"] if status == 201 else [])


async def test_a_websocket_whose_listener_begins_again_holds_nothing(sqlite: Backend) -> None:
    """A transaction that begins at the end of another ends with it, so none is open between messages."""
    database = Database(sqlite.url)
    again: list[bool] = []
    out: list[int] = []

    @event.listens_for(Session, "after_transaction_end")
    def begin_again(session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None and transaction.nested is False and not again:
            again.append(True)
            session.execute(text("SELECT 1"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        database.async_session.add(Item(name="a"))
        await database.async_session.flush()
        await receive()
        out.append(database.async_engine.pool.checkedout())  # type: ignore[attr-defined]  # a queue pool

    try:
        call = await Call(SQLAlchemyMiddleware(app, database), {**http_scope(), "type": "websocket"})()
    finally:
        event.remove(Session, "after_transaction_end", begin_again)
    await database.async_dispose()

    assert (call.raised, again, out, sqlite.names()) == (None, [True], [0], ["a"])


@pytest.mark.parametrize("call", ["execute", "commit", "begin"])
def test_a_traceback_keeps_no_greenlet(sqlite: Backend, call: str) -> None:
    """The greenlet of a thread that has ended, in a frame that the collector looks at, crashes the process."""
    database = Database(sqlite.url)

    def fail() -> None:
        with session_scope(database) as session:
            if call == "execute":
                session.execute(text("SELECT nothing"))
            elif call == "commit":
                session.add_all([Item(id=1, name="a"), Item(id=1, name="a")])
                session.commit()
            else:
                with session.begin():
                    session.add_all([Item(id=1, name="a"), Item(id=1, name="a")])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SQLAlchemy's, about the second object
        with pytest.raises(Exception, match=r"nothing|UNIQUE|conflicts") as raised:
            fail()

    frames = [frame for frame, _line in traceback.walk_tb(raised.value.__traceback__)]
    kept = [value for frame in frames for value in frame.f_locals.values() if isinstance(value, greenlet.greenlet)]
    assert len(frames) > 4
    assert kept == []
    database.dispose()


@on_drivers("pymysql", "asyncmy")
@pytest.mark.parametrize("status", [201, 422])
async def test_a_statement_that_would_commit_what_was_written_is_refused(
    database: Database, backend: Backend, kind: str, status: int
) -> None:
    """It is not sent, so the verdict still decides about the work before it."""

    def work(session: Session) -> None:
        session.add(Item(name="a"))
        session.flush()
        with pytest.raises(InvalidRequestError, match="would first commit what this session has written"):
            session.execute(text("ANALYZE TABLE item"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        assert backend.names() == []
        await respond(send, status)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert (call.raised, call.starts, backend.names()) == (None, [status], ["a"] if status == 201 else [])
