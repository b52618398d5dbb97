"""``session_scope()``: units of work outside a request, beside one, and inside each other."""

# The blocks that raise are the scopes under test, so they hold more than one statement.
# ruff: noqa: PT012, SIM117

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextvars import copy_context
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from support.asgi import Call, respond
from support.databases import NO_OWNER, Backend, Item, sqlite_backend

from asgi_sqla import (
    ConfigurationError,
    Database,
    NoUnitOfWorkError,
    SessionInUseError,
    SQLAlchemyMiddleware,
    UnitOfWorkDoomedError,
    UnitOfWorkEndedError,
    WrongEventLoopError,
    current_unit,
    session_scope,
)

Job = Callable[[Callable[[], object] | None], Awaitable[object]]


def jobs(database: Database) -> dict[str, Job]:
    """Return every way to run a job that inserts "a" in a scope, and then calls its argument."""

    async def with_(then: Callable[[], object] | None) -> None:
        with session_scope(database) as session:
            session.add(Item(name="a"))
            session.flush()
            _ = then and then()

    async def async_with(then: Callable[[], object] | None) -> None:
        async with session_scope(database) as session:
            session.add(Item(name="a"))
            await session.flush()
            _ = then and then()

    @session_scope(database)
    def def_(then: Callable[[], object] | None) -> None:
        database.session.add(Item(name="a"))
        database.session.flush()
        _ = then and then()

    @session_scope(database)
    async def async_def(then: Callable[[], object] | None) -> None:
        database.async_session.add(Item(name="a"))
        await database.async_session.flush()
        _ = then and then()

    async def call_def(then: Callable[[], object] | None) -> None:
        def_(then)

    return {"with": with_, "async with": async_with, "def": call_def, "async def": async_def}


FORMS = ["with", "async with", "def", "async def"]


class Boom(BaseException):
    """An unexpected failure."""


def boom() -> None:
    """Fail."""
    raise Boom


def cancel() -> None:
    """Fail as a cancelled task does."""
    raise asyncio.CancelledError


# Commit and rollback


@pytest.mark.parametrize("form", FORMS)
async def test_leaving_a_scope_commits(database: Database, backend: Backend, form: str) -> None:
    """Each of its four forms does so."""
    await jobs(database)[form](None)
    assert backend.names() == ["a"]


@pytest.mark.parametrize(
    ("form", "fail", "error"),
    [(form, boom, Boom) for form in FORMS] + [("async with", cancel, asyncio.CancelledError)],
)
async def test_an_exception_rolls_back(
    database: Database, backend: Backend, form: str, fail: Callable[[], object], error: type[BaseException]
) -> None:
    """Any exception does so, and is raised."""
    with pytest.raises(error):
        await jobs(database)[form](fail)
    assert backend.names() == []


async def test_rollback_only_is_a_dry_run(database: Database, backend: Backend) -> None:
    """The scope ends without an error and keeps nothing."""
    for job in jobs(database).values():
        await job(lambda: current_unit().rollback_only())
    assert backend.names() == []


async def test_a_failing_commit_raises(database: Database, backend: Backend) -> None:
    """The driver's own error is raised, and nothing is kept, sync and async."""
    with pytest.raises(backend.commit_error), session_scope(database) as session:
        session.add(Item(name="a", owner_id=NO_OWNER))
    with pytest.raises(backend.commit_error):
        async with session_scope(database) as async_session:
            async_session.add(Item(name="b", owner_id=NO_OWNER))
    assert backend.names() == []


async def test_an_unflushed_duplicate_raises(database: Database, backend: Backend) -> None:
    """An error of the flush before COMMIT is raised too."""
    with pytest.raises(IntegrityError), session_scope(database) as session:
        session.add_all([Item(name="a"), Item(name="a")])
    with pytest.raises(IntegrityError):
        async with session_scope(database) as async_session:
            async_session.add_all([Item(name="b"), Item(name="b")])
    assert backend.names() == []


async def test_a_suppressed_error_is_not_committed_silently(database: Database, backend: Backend) -> None:
    """PostgreSQL has aborted the transaction, and leaving the user's own ``begin()`` raises. Others keep the row."""
    failures = []
    for name in ("sync", "async"):
        try:
            if name == "sync":
                with session_scope(database) as session, session.begin():
                    session.add(Item(name=name))
                    session.flush()
                    with pytest.raises(DBAPIError):
                        session.execute(text("SELECT * FROM nowhere"))
            else:
                async with session_scope(database) as async_session, async_session.begin():
                    async_session.add(Item(name=name))
                    await async_session.flush()
                    with pytest.raises(DBAPIError):
                        await async_session.execute(text("SELECT * FROM nowhere"))
        except DBAPIError as exc:
            failures.append("transaction is aborted" in str(exc))
    assert (failures, backend.names()) == (([True, True], []) if backend.is_postgresql else ([], ["async", "sync"]))


async def test_work_after_a_commit_of_ones_own_is_kept(database: Database, backend: Backend) -> None:
    """A new transaction has begun, and it is committed too."""
    async with session_scope(database) as session:
        session.add(Item(name="a"))
        await session.commit()
        session.add(Item(name="b"))
    assert backend.names() == ["a", "b"]


async def test_a_scope_that_uses_nothing_connects_nowhere(database: Database) -> None:
    """A session alone opens no connection."""
    connected: list[object] = []
    event.listen(database.engine, "connect", lambda *_: connected.append(1))
    event.listen(database.async_engine.sync_engine, "connect", lambda *_: connected.append(1))
    with session_scope(database):
        pass
    async with session_scope(database):
        pass
    assert connected == []


async def test_an_abandoned_generator_rolls_back(database: Database, backend: Backend) -> None:
    """A scope inside an async generator ends when the generator is closed."""

    async def rows() -> AsyncIterator[str]:
        async with session_scope(database) as session:
            session.add(Item(name="a"))
            await session.flush()
            yield "a"
            yield "b"

    generator = rows()
    assert await anext(generator) == "a"
    await generator.aclose()  # type: ignore[attr-defined]  # it is an async generator
    assert backend.names() == []


# Objects and options


async def test_objects_outlive_the_scope(database: Database) -> None:
    """Their columns stay loaded after the commit."""
    with session_scope(database) as session:
        session.add(item := Item(name="a"))
    async with session_scope(database) as async_session:
        async_session.add(other := Item(name="b"))
    assert (item.name, other.name) == ("a", "b")


async def test_session_options_are_for_this_scope_alone(database: Database) -> None:
    """They are added to those of the database."""
    with session_scope(database, session_options={"autoflush": False}) as session:
        assert (session.autoflush, session.expire_on_commit) == (False, False)
    async with session_scope(database, session_options={"info": {"who": "me"}}) as async_session:
        assert async_session.info == {"who": "me"}
    with session_scope(database) as session:
        assert (session.autoflush, session.info) == (True, {})


async def test_the_session_of_a_scope_is_the_databases(database: Database) -> None:
    """Inside, ``database.session`` and ``database.async_session`` are the scope's sessions."""
    with session_scope(database) as session:
        assert database.session is session
    async with session_scope(database) as async_session:
        assert database.async_session is async_session
        assert isinstance(database.session, Session)
        assert database.session is not async_session.sync_session


async def test_a_decorated_function_is_the_function(database: Database) -> None:
    """It keeps name, arguments and result; each call has its own scope, and errors name the function."""

    @session_scope(database)
    async def work(first: int, *, second: int = 2) -> tuple[int, str]:
        """Work."""
        return first + second, repr(current_unit())

    @session_scope(database)
    def sync_work(first: int) -> tuple[int, Session]:
        return first, database.session

    assert (work.__name__, work.__doc__) == ("work", "Work.")
    total, unit = await work(1, second=3)
    assert total == 4
    assert unit.endswith("test_a_decorated_function_is_the_function.<locals>.work open>")
    (one, session), (two, other) = sync_work(1), sync_work(2)
    assert (one, two, session is not other) == (1, 2, True)


class JobObject:
    """A job as an object."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def __call__(self) -> None:
        self.database.async_session.add(Item(name="object"))

    async def method(self) -> None:
        self.database.async_session.add(Item(name="method"))

    async def insert(self, name: str) -> None:
        self.database.async_session.add(Item(name=name))


async def test_anything_that_can_be_called_can_be_decorated(database: Database, backend: Backend) -> None:
    """Methods, partials and callable objects work, and what they return is awaited inside the scope."""
    job = JobObject(database)
    scoped: list[Callable[[], Coroutine[Any, Any, None]]] = [
        session_scope(database)(job),
        session_scope(database)(job.method),
        session_scope(database)(functools.partial(job.insert, "partial")),
    ]
    for each in scoped:
        await each()
    assert backend.names() == ["method", "object", "partial"]


async def test_a_scope_object_is_open_once_at_a_time(database: Database, backend: Backend) -> None:
    """It can be used again, but not inside itself."""
    scope = session_scope(database)
    for name in ("a", "b"):
        with scope as session:
            session.add(Item(name=name))
            with pytest.raises(ConfigurationError, match="this session_scope\\(\\) is open already"):
                scope.__enter__()
    assert backend.names() == ["a", "b"]


# Beside one another


async def test_ten_scopes_in_one_gather_all_commit(database: Database, backend: Backend) -> None:
    """Each has its own connection and transaction, however they interleave."""

    async def job(number: int) -> None:
        async with session_scope(database) as session:
            await session.scalar(select(1))
            await asyncio.sleep(0)
            if backend.name == "sqlite" and number % 2:  # one writes at a time there
                return
            session.add(Item(name=str(number)))

    await asyncio.gather(*map(job, range(10)))
    assert backend.names() == [str(n) for n in range(10) if backend.name != "sqlite" or n % 2 == 0]


async def test_a_new_scope_within_a_scope_is_independent(database: Database, backend: Backend) -> None:
    """The outer one's rollback does not affect it, and afterwards the outer one is current again."""
    with pytest.raises(Boom):
        async with session_scope(database) as outer:
            await outer.scalar(select(1))
            async with session_scope(database) as inner:
                inner.add(Item(name="inner"))
            assert database.async_session is outer
            if backend.name != "sqlite":  # its snapshot is older than the inner commit
                outer.add(Item(name="outer"))
                await outer.flush()
            raise Boom
    assert backend.names() == ["inner"]


async def test_sync_scopes_in_threads_are_independent(database: Database, backend: Backend) -> None:
    """Each thread has one, at the same time."""

    def job(name: str) -> None:
        with session_scope(database) as session:
            session.add(Item(name=name))

    await asyncio.gather(*(asyncio.to_thread(job, str(n)) for n in range(8)))
    assert backend.names() == [str(n) for n in range(8)]


async def test_a_scope_in_a_request_shadows_it(database: Database, backend: Backend) -> None:
    """Its work is kept although the request is rolled back, and the other way round."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = database.async_session
        status = int(scope["path"][1:])
        try:
            async with session_scope(database) as session:
                assert session is not request
                session.add(Item(name=f"scope {status}"))
                await session.flush()
                if status == 201:
                    boom()
        except Boom:
            pass
        assert database.async_session is request
        request.add(Item(name=f"request {status}"))
        await respond(send, status)

    for path in ("/400", "/201"):
        call = Call(SQLAlchemyMiddleware(app, database))
        call.scope["path"] = path
        await call()
        assert call.raised is None
    assert backend.names() == ["request 201", "scope 400"]


async def test_a_task_that_outlives_its_request_gets_an_error(database: Database, backend: Backend) -> None:
    """The request's session stays closed; a new scope works, even a joining one."""
    over = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def late() -> list[str]:
        before = database.async_session
        await over.wait()
        errors = []
        for use in (lambda: database.async_session, lambda: database.session, current_unit):
            with pytest.raises(UnitOfWorkEndedError, match="async with session_scope") as caught:
                use()
            errors.append(str(caught.value))
        with pytest.raises(UnitOfWorkEndedError):
            await before.execute(select(1))
        for number, propagation in enumerate(("new", "join", "nested")):
            async with session_scope(database, propagation=propagation) as session:  # type: ignore[arg-type]
                session.add(Item(name=str(number)))
        return errors

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.create_task(late()))
        await asyncio.sleep(0)
        await respond(send)

    await Call(SQLAlchemyMiddleware(app, database))()
    over.set()
    (errors,) = await asyncio.gather(*tasks)
    assert all(error.startswith("<UnitOfWork GET / ended> has ended, and its sessions with it") for error in errors)
    assert backend.names() == ["0", "1", "2"]


def test_outside_any_unit_there_is_no_session(sqlite: Backend) -> None:
    """The error says what to write, also after a scope."""
    database = Database(sqlite.url)
    with session_scope(database) as session:
        pass
    for use in (lambda: database.session, lambda: database.async_session, current_unit):
        with pytest.raises(NoUnitOfWorkError, match="with session_scope\\(\\) as session") as caught:
            use()
        assert isinstance(caught.value, LookupError)
    with pytest.raises(UnitOfWorkEndedError, match="<UnitOfWork session_scope\\(\\) ended> has ended"):
        session.execute(select(1))
    database.dispose()


# Join and nested


async def test_join_uses_the_current_unit(database: Database, backend: Backend) -> None:
    """Session and transaction are the same, and the outermost scope commits once."""
    async with session_scope(database) as outer:
        outer.add(Item(name="outer"))
        async with session_scope(database, propagation="join") as inner:
            inner.add(Item(name="inner"))
            await inner.flush()
        assert inner is outer
        assert backend.names() == []
    assert backend.names() == ["inner", "outer"]


@pytest.mark.parametrize("propagation", ["join", "nested"])
async def test_without_a_current_unit_every_scope_is_new(
    database: Database, backend: Backend, propagation: Any
) -> None:
    """So a function that joins can be called from anywhere."""
    with session_scope(database, propagation=propagation) as session:
        session.add(Item(name="a"))
    async with session_scope(database, propagation=propagation) as async_session:
        async_session.add(Item(name="b"))
    with pytest.raises(Boom):
        async with session_scope(database, propagation=propagation) as async_session:
            async_session.add(Item(name="c"))
            raise Boom
    assert backend.names() == ["a", "b"]


async def test_a_failed_joined_scope_dooms_the_unit(database: Database, backend: Backend) -> None:
    """Code that suppresses its exception and then commits gets an error, not a silent rollback."""
    with pytest.raises(UnitOfWorkDoomedError, match="a scope that had joined it ended with an exception: Boom") as one:
        with session_scope(database) as outer:
            outer.add(Item(name="a"))
            with pytest.raises(Boom), session_scope(database, propagation="join"):
                raise Boom
    with pytest.raises(UnitOfWorkDoomedError) as two:
        async with session_scope(database) as async_outer:
            async_outer.add(Item(name="b"))
            with pytest.raises(Boom):
                async with session_scope(database, propagation="join"):
                    raise Boom
    assert [type(each.value.__cause__) for each in (one, two)] == [Boom, Boom]
    assert backend.names() == []


async def test_a_doomed_unit_that_fails_raises_its_own_exception(database: Database) -> None:
    """Its own exception is raised, and a unit that rolls back raises nothing."""
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with session_scope(database):
            with pytest.raises(Boom):
                async with session_scope(database, propagation="join"):
                    raise Boom
            raise error
    assert caught.value is error
    async with session_scope(database):
        current_unit().rollback_only()
        with pytest.raises(Boom):
            async with session_scope(database, propagation="join"):
                raise Boom


async def test_a_doomed_request_is_answered_500(database: Database, backend: Backend) -> None:
    """It was about to answer 201."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="a"))
        with pytest.raises(Boom):
            async with session_scope(database, propagation="join"):
                raise Boom
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    assert (call.starts, type(call.raised), backend.names()) == ([500], UnitOfWorkDoomedError, [])


async def test_nested_is_a_savepoint(database: Database, backend: Backend) -> None:
    """A failure inside undoes only the savepoint, at any depth, and the rest commits with the outermost scope."""
    with session_scope(database) as outer:
        outer.add(Item(name="outer"))
        with pytest.raises(Boom), session_scope(database, propagation="nested") as session:
            session.add(Item(name="lost"))
            with session_scope(database, propagation="nested"):
                database.session.add(Item(name="lost too"))
            raise Boom
        with session_scope(database, propagation="nested"):
            outer.add(Item(name="inner"))
            with pytest.raises(Boom), session_scope(database, propagation="nested"):
                outer.add(Item(name="lost as well"))
                outer.flush()
                raise Boom
        assert backend.names() == []
    assert backend.names() == ["inner", "outer"]


async def test_nested_is_a_savepoint_in_async_code(database: Database, backend: Backend) -> None:
    """The async form does the same."""
    async with session_scope(database) as outer:
        outer.add(Item(name="outer"))
        with pytest.raises(Boom):
            async with session_scope(database, propagation="nested") as session:
                session.add(Item(name="lost"))
                async with session_scope(database, propagation="nested"):
                    database.async_session.add(Item(name="lost too"))
                raise Boom
        async with session_scope(database, propagation="nested"):
            outer.add(Item(name="inner"))
        assert backend.names() == []
    assert backend.names() == ["inner", "outer"]


async def test_a_savepoint_undoes_a_failed_insert(database: Database, backend: Backend) -> None:
    """This holds for an insert that only its release flushes, also on PostgreSQL: the unit continues and commits."""
    with session_scope(database) as session:
        session.add(Item(name="a"))
        with pytest.raises(IntegrityError), session_scope(database, propagation="nested"):
            session.add(Item(name="a"))
        session.add(Item(name="b"))
    async with session_scope(database) as async_session:
        async_session.add(Item(name="c"))
        with pytest.raises(IntegrityError):
            async with session_scope(database, propagation="nested"):
                async_session.add(Item(name="c"))
        async_session.add(Item(name="d"))
    assert backend.names() == ["a", "b", "c", "d"]


async def test_a_savepoint_does_not_outlive_its_unit(database: Database, backend: Backend) -> None:
    """If the outer scope fails, the released savepoint is undone with it."""
    with pytest.raises(Boom), session_scope(database):
        with session_scope(database, propagation="nested") as session:
            session.add(Item(name="a"))
        raise Boom
    assert backend.names() == []


# Both kinds, several databases


async def test_both_kinds_in_one_scope_are_one_decision(database: Database, backend: Backend) -> None:
    """The async scope ends the sync session too, in a thread that is not the event loop's."""
    ended_in: list[int] = []
    event.listen(database.engine, "commit", lambda _connection: ended_in.append(threading.get_ident()))
    event.listen(database.engine, "rollback", lambda _connection: ended_in.append(threading.get_ident()))

    for name, fail in (("a", False), ("b", True)):
        try:
            async with session_scope(database) as session:
                database.session.add(Item(name=name))
                database.session.flush()
                await session.scalar(select(1))
                if fail:
                    boom()
        except Boom:
            pass
    assert backend.names() == ["a"]
    assert len(ended_in) == 2
    assert threading.get_ident() not in ended_in


async def test_a_sync_scope_in_a_running_loop_ends_in_its_own_thread(database: Database, backend: Backend) -> None:
    """It blocks, as its user wrote it, and needs no loop."""
    ended_in: list[int] = []
    event.listen(database.engine, "commit", lambda _connection: ended_in.append(threading.get_ident()))
    with session_scope(database) as session:
        session.add(Item(name="a"))
    assert (backend.names(), ended_in) == (["a"], [threading.get_ident()])


async def test_when_the_second_of_two_commits_fails_the_error_says_so(
    database: Database, backend: Backend, tmp_path: Any
) -> None:
    """The error says which had been committed, and which are rolled back."""
    folder = tmp_path / "other"
    folder.mkdir()
    other_backend = sqlite_backend(folder)
    other = Database(other_backend.url)
    with pytest.raises(backend.commit_error) as caught:
        async with session_scope(other) as first:
            first.add(Item(name="kept"))
            await first.flush()
            database.async_session.add(Item(name="lost", owner_id=NO_OWNER))
    notes = "\n".join(caught.value.__notes__)
    assert f"COMMIT failed; these had been committed: {other!r}; these are rolled back: {database!r}" in notes
    assert (other_backend.names(), backend.names()) == (["kept"], [])
    await other.async_dispose()


# Where an AsyncSession may be


async def test_an_async_session_needs_its_units_loop(database: Database) -> None:
    """In a sync scope, in a thread or on another loop it raises an error that says what to do."""
    with session_scope(database):
        with pytest.raises(WrongEventLoopError, match=r"requested in a sync scope; use the sync session there"):
            _ = database.async_session
        with pytest.raises(WrongEventLoopError, match="open a unit of work in async code"):
            await session_scope(database, propagation="join").__aenter__()

    async def ask() -> None:
        _ = database.async_session

    async with session_scope(database):
        with pytest.raises(WrongEventLoopError, match="where no asyncio event loop runs; use the sync session there"):
            await asyncio.to_thread(lambda: database.async_session)
        with pytest.raises(WrongEventLoopError, match=r"requested on another event loop; .* open a unit of work"):
            await asyncio.to_thread(asyncio.run, ask())


async def test_an_async_session_is_not_used_on_another_loop(database: Database, backend: Backend) -> None:
    """It is not used in a thread either, and its own task continues with it."""

    async def use(session: AsyncSession) -> None:
        await session.execute(select(1))

    async with session_scope(database) as session:
        session.add(Item(name="a"))
        await session.flush()
        with pytest.raises(WrongEventLoopError, match="was used outside the event loop it was made on"):
            await asyncio.to_thread(asyncio.run, use(session))
        with pytest.raises(WrongEventLoopError, match="was used outside the event loop it was made on"):
            await asyncio.to_thread(session.sync_session.flush)
        await session.scalar(select(1))
    assert backend.names() == ["a"]


async def test_a_thread_shares_the_sync_session(database: Database, backend: Backend) -> None:
    """A worker thread with the scope's context gets the scope's session, and one without it gets none."""

    def work() -> Session:
        database.session.add(Item(name="a"))
        return database.session

    async with session_scope(database):
        seen = await asyncio.to_thread(work)
        assert database.session is seen
        with pytest.raises(NoUnitOfWorkError):
            await asyncio.get_running_loop().run_in_executor(None, work)
    assert backend.names() == ["a"]


async def test_a_second_task_cannot_reset_a_session_in_use(database: Database) -> None:
    """``reset()`` rolls back, and during a statement that would break the connection for good."""
    slow = text("SELECT count(*) FROM item AS a, item AS b")
    async with session_scope(database) as session:
        await session.scalar(select(1))
        running = asyncio.create_task(session.execute(slow))
        await asyncio.sleep(0)
        with pytest.raises(SessionInUseError, match=r"let each open its own .*: async with session_scope"):
            await session.reset()
        await running
        assert await session.scalar(select(1)) == 1


def test_a_context_that_ends_elsewhere_is_left_alone(sqlite: Backend) -> None:
    """A scope entered in one context and left in another, as fixtures may be, still commits."""
    database = Database(sqlite.url)
    scope = session_scope(database)
    copy_context().run(scope.__enter__).add(Item(name="a"))
    scope.__exit__(None, None, None)
    database.dispose()
    assert sqlite.names() == ["a"]


def test_only_a_function_can_be_decorated(sqlite: Backend) -> None:
    """The error shows the decorated object."""
    not_a_function: Any = 5
    with pytest.raises(ConfigurationError, match="5"):
        session_scope(Database(sqlite.url))(not_a_function)


def test_a_plain_function_that_returns_a_coroutine_is_refused(sqlite: Backend) -> None:
    """The coroutine would run after its scope; nothing is committed."""
    database = Database(sqlite.url)

    async def later() -> None:
        raise AssertionError

    @session_scope(database)
    def job() -> Coroutine[Any, Any, None]:
        database.session.add(Item(name="a"))
        return later()

    with pytest.raises(ConfigurationError, match="async def"):
        _ = job()
    database.dispose()
    assert sqlite.names() == []


def test_a_decorated_function_may_join(sqlite: Backend) -> None:
    """The unit around it continues, and commits both."""
    database = Database(sqlite.url)

    @session_scope(database, propagation="join")
    def inner() -> None:
        database.session.add(Item(name="inner"))

    with session_scope(database) as session:
        inner()
        session.add(Item(name="outer"))
    database.dispose()
    assert sqlite.names() == ["inner", "outer"]


class MeetingSession(Session):
    """A user's session class; two of its sessions are made at the same moment."""

    together: threading.Barrier | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if MeetingSession.together is not None:
            MeetingSession.together.wait(10)


async def test_two_threads_that_come_first_share_one_session(sqlite: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions are made, but only one belongs to the unit, and no thread gets the other."""
    database = Database(sqlite.url, session_options={"class_": MeetingSession})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        monkeypatch.setattr(MeetingSession, "together", threading.Barrier(2))
        one, other = await asyncio.gather(*(asyncio.to_thread(database.get_session) for _ in range(2)))
        assert one is other
        await asyncio.to_thread(one.execute, insert(Item).values(name="a"))
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    database.dispose()
    assert (call.raised, call.status, sqlite.names()) == (None, 201, ["a"])


async def test_a_session_that_was_made_on_another_loop_that_still_runs_is_ended_there(
    backend: Backend, database: Database
) -> None:
    """Some frameworks run a handler on a loop in another thread, which continues after the response."""
    other = asyncio.new_event_loop()
    thread = threading.Thread(target=other.run_forever)
    thread.start()

    async def work() -> None:
        database.async_session.add(Item(name="a"))
        await database.async_session.flush()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), other))
        await respond(send, 201)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(other.shutdown_asyncgens(), other))
    other.call_soon_threadsafe(other.stop)
    thread.join()
    other.close()

    assert (call.raised, call.status, backend.names()) == (None, 201, ["a"])


@pytest.mark.parametrize(
    ("options", "read_only", "level"),
    [
        ({}, False, None),
        ({"read_only": True}, True, None),
        ({"isolation_level": "serializable"}, False, "SERIALIZABLE"),
    ],
)
async def test_what_a_unit_says_of_itself(sqlite: Backend, options: Any, read_only: bool, level: str | None) -> None:
    """Its name is that of the request, the function or the scope, and it knows when it has ended."""
    database = Database(sqlite.url)
    async with session_scope(database, **options):
        unit = current_unit()
        inside = unit.ended

    assert (unit.name, inside, unit.ended) == ("session_scope()", False, True)
    assert (unit.attempt, unit.read_only, unit.isolation_level) == (1, read_only, level)
    await database.async_dispose()


@pytest.mark.parametrize("propagation", ["join", "nested"])
@pytest.mark.parametrize(
    "name", sorted(inspect.signature(session_scope).parameters.keys() - {"database", "propagation"})
)
def test_every_other_argument_needs_a_new_unit(sqlite: Backend, name: str, propagation: Any) -> None:
    """A unit that exists has its own; an argument that is added is in this test too."""
    values: dict[str, Any] = {"session_options": {"autoflush": False}, "read_only": True, "deadline": 2.0, "retries": 2}
    values |= {"isolation_level": "SERIALIZABLE", "after": "mark"}
    options = {name: values[name], **({"read_only": True} if name == "after" else {})}
    with pytest.raises(ConfigurationError, match=r'needs a new unit of work; write propagation="new"'):
        session_scope(Database(sqlite.url), propagation=propagation, **options)
