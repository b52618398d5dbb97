"""Sessions that the application closes, empties or leaves itself: work lost so is never reported as done."""

# The block that raises is the scope under test, so it holds more than one statement.
# ruff: noqa: PT012

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal

import httpx
import pytest
from anyio import to_thread
from fastapi import Depends, FastAPI
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, close_all_sessions
from support.asgi import Call, respond
from support.databases import Backend, Item
from support.failing import BrokenError
from support.marks import KINDS, on_one
from support.rivals import perform

from asgi_sqla import (
    Database,
    DiscardedWorkError,
    SQLAlchemyMiddleware,
    UnitOfWorkEndedError,
    on_commit,
    session_scope,
)
from asgi_sqla.session.classes import CALLS, LOCAL

Work = Callable[[Session], object]


def add(session: Session) -> None:
    session.add(Item(name="new"))


def change(session: Session) -> None:
    session.scalars(select(Item)).one().name = "changed"


def delete(session: Session) -> None:
    session.delete(session.scalars(select(Item)).one())


def flush(session: Session) -> None:
    session.add(Item(name="new"))
    session.flush()


def execute(session: Session) -> None:
    session.execute(insert(Item).values(name="new"))


def read(session: Session) -> None:
    session.scalars(select(Item)).one()


def nothing(_session: Session) -> None:
    """Leave the session as it is."""


LOST: dict[Work, str] = {
    add: "1 new objects",
    change: "1 changed objects",
    delete: "1 deleted objects",
    flush: "statements sent",
    execute: "statements sent",
}
"""The work of a handler, and what the error reports as lost."""
CLOSING = ["close", "reset", "invalidate"]
EVERY_WAY = [(work, call) for call in [*CLOSING, "expunge_all"] for work in [*LOST, read, nothing]]


@pytest.fixture
def old(backend: Backend) -> Backend:
    """Return the backend with one row."""
    with backend.witness.begin() as connection:
        connection.execute(insert(Item).values(name="old"))
    return backend


async def discard(database: Database, kind: str, call: str) -> None:
    """Call a method of the session of ``kind``, as an application would."""
    if kind == "sync":
        await to_thread.run_sync(getattr(database.session, call))
    else:
        result = getattr(database.async_session, call)()
        if result is not None:
            await result


async def ask(app: Any, database: Database) -> Call:
    """Return the request of ``app``."""
    return await Call(SQLAlchemyMiddleware(app, database))()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("work", "call"), EVERY_WAY)
async def test_work_that_a_handler_discards_is_an_error(
    database: Database, old: Backend, kind: str, work: Work, call: str
) -> None:
    """The answer is 500, and the error names the call, the loss and what to write. After reads only, it is a 201."""
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        on_commit(called.append, "committed")
        await discard(database, kind, call)
        await respond(send, 201)

    answer = await ask(app, database)

    kept = work in (read, nothing)
    flushed = call == "expunge_all" and work in (flush, execute)  # what was sent is still in the transaction
    if kept or flushed:
        assert (answer.starts, answer.raised, called) == ([201], None, ["committed"])
        assert old.names() == (["new", "old"] if flushed else ["old"])
        return
    assert (answer.starts, old.names(), called) == ([500], ["old"], [])
    assert isinstance(answer.raised, DiscardedWorkError)
    assert str(answer.raised) == (
        f"session.{call}() discarded work that was neither committed nor rolled back ({LOST[work]}); leave the session "
        "open, as its unit of work ends it, or write session.rollback() first if you meant to discard the work"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CLOSING)
async def test_a_scope_whose_work_is_discarded_raises(database: Database, old: Backend, kind: str, call: str) -> None:
    """The caller never continues as if the scope had committed."""
    with pytest.raises(DiscardedWorkError, match=rf"session\.{call}\(\) discarded"):
        if kind == "sync":
            with session_scope(database) as session:
                flush(session)
                getattr(session, call)()
        else:
            async with session_scope(database) as async_session:
                await async_session.run_sync(flush)
                await getattr(async_session, call)()

    assert old.names() == ["old"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CLOSING)
async def test_later_work_does_not_replace_discarded_work(
    database: Database, old: Backend, kind: str, call: str
) -> None:
    """A closed session can be used again, but its first half is lost, so the second is not committed either."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, flush)
        await discard(database, kind, call)
        await perform(database, kind, lambda session: session.execute(insert(Item).values(name="after")))
        await respond(send, 201)

    answer = await ask(app, database)

    assert (answer.starts, old.names(), type(answer.raised)) == ([500], ["old"], DiscardedWorkError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", [*CLOSING, "expunge_all"])
@pytest.mark.parametrize("end", ["rollback", "commit"])
async def test_closing_after_an_own_commit_or_rollback_is_no_error(
    database: Database, old: Backend, kind: str, call: str, end: str
) -> None:
    """After its own commit or rollback the application may close the session without an error."""

    def work(session: Session) -> None:
        flush(session)
        getattr(session, end)()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        await discard(database, kind, call)
        await respond(send, 201)

    answer = await ask(app, database)

    assert (answer.starts, answer.raised) == ([201], None)
    assert old.names() == (["new", "old"] if end == "commit" else ["old"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CLOSING)
async def test_an_error_is_answered_as_the_application_answers_it(
    database: Database, old: Backend, kind: str, call: str
) -> None:
    """With a verdict to roll back nothing is lost."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, flush)
        await discard(database, kind, call)
        await respond(send, 422)

    answer = await ask(app, database)

    assert (answer.starts, answer.raised, old.names()) == ([422], None, ["old"])


# Leaving a with block.


async def leave(database: Database, kind: str, work: Work, raises: bool) -> None:
    """Do ``work`` in a with block of the session, and leave it, with an exception if it ``raises``."""

    def in_thread() -> None:
        with database.session as session:
            work(session)
            if raises:
                raise BrokenError

    if kind == "sync":
        await to_thread.run_sync(in_thread)
        return
    async with database.async_session as session:
        await session.run_sync(work)
        if raises:
            raise BrokenError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("work", [add, flush, execute])
async def test_leaving_a_with_block_leaves_the_session_to_its_unit(
    database: Database, old: Backend, kind: str, work: Work
) -> None:
    """The work inside is committed with the request, and the session stays usable."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await leave(database, kind, work, raises=False)
        await perform(database, kind, lambda session: session.execute(insert(Item).values(name="after")))
        await respond(send, 201)

    answer = await ask(app, database)

    assert (answer.starts, answer.raised, old.names()) == ([201], None, ["after", "new", "old"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("work", [add, flush, execute])
async def test_leaving_a_with_block_by_an_exception_rolls_back(
    database: Database, old: Backend, kind: str, work: Work
) -> None:
    """The application has asked for this rollback, so its later work is committed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with suppress(BrokenError):
            await leave(database, kind, work, raises=True)
        await perform(database, kind, lambda session: session.execute(insert(Item).values(name="after")))
        await respond(send, 201)

    answer = await ask(app, database)

    assert (answer.starts, answer.raised, old.names()) == ([201], None, ["after", "old"])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_with_block_that_is_left_after_the_units_end_does_nothing(database: Database, kind: str) -> None:
    """It does nothing both normally and with an exception."""
    for raises in (False, True):
        with suppress(BrokenError):
            if kind == "sync":
                with session_scope(database) as session:
                    inner = session
                with inner:
                    if raises:
                        raise BrokenError
            else:
                async with session_scope(database) as async_session:
                    async_inner = async_session
                async with async_inner:
                    if raises:
                        raise BrokenError


# As a dependency of FastAPI.


def api_of(database: Database, kind: str, scope: Literal["function", "request"], *, rolls_back: bool) -> FastAPI:
    """Return an application whose dependency closes the session that it gives."""

    def give() -> Iterator[Session]:
        session = database.session
        try:
            yield session
        finally:
            if rolls_back:
                session.rollback()
            session.close()

    async def give_async() -> AsyncIterator[AsyncSession]:
        session = database.async_session
        try:
            yield session
        finally:
            if rolls_back:
                await session.rollback()
            await session.close()

    api = FastAPI()
    if kind == "sync":

        @api.post("/", status_code=201)
        def write(session: Annotated[Session, Depends(give, scope=scope)]) -> None:
            flush(session)
    else:

        @api.post("/", status_code=201)
        async def write_async(session: Annotated[AsyncSession, Depends(give_async, scope=scope)]) -> None:
            await session.run_sync(flush)

    return api


@on_one
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ["function", "request"])
@pytest.mark.parametrize("rolls_back", [False, True])
async def test_a_dependency_that_closes_its_session(
    database: Database, old: Backend, kind: str, scope: Literal["function", "request"], rolls_back: bool
) -> None:
    """Closing before the response is an error, unless it rolled back; closing after it keeps everything committed."""
    app = SQLAlchemyMiddleware(api_of(database, kind, scope, rolls_back=rolls_back), database)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        status = (await client.post("/")).status_code

    if scope == "request":
        assert (status, old.names()) == (201, ["new", "old"])
    else:
        assert (status, old.names()) == (201 if rolls_back else 500, ["old"])


# After the end of the unit.

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "add": (Item(name="late"),),
    "add_all": ([Item(name="late")],),
    "bulk_insert_mappings": (Item, [{"name": "late"}]),
    "bulk_save_objects": ([Item(name="late")],),
    "bulk_update_mappings": (Item, [{"id": 1, "name": "late"}]),
    "delete": (Item(name="late"),),
    "delete_all": ([Item(name="late")],),
    "enable_relationship_loading": (Item(name="late"),),
    "execute": (select(Item),),
    "expire": (Item(name="late"),),
    "expunge": (Item(name="late"),),
    "get": (Item, 1),
    "get_one": (Item, 1),
    "merge": (Item(name="late"),),
    "merge_all": ([Item(name="late")],),
    "query": (Item,),
    "refresh": (Item(name="late"),),
    "scalar": (select(Item),),
    "scalars": (select(Item),),
    "stream": (select(Item),),
    "stream_scalars": (select(Item),),
    "run_sync": (flush,),
}
FREE = {
    *("bind_mapper", "bind_table", "get_bind", "get_nested_transaction", "get_transaction", "identity_key"),
    *("in_nested_transaction", "in_transaction", "is_modified", "object_session"),
}
"""Public methods that neither change the session nor talk to the database."""
OWN = {"expunge_all"}
"""Those that the guard writes out itself."""


def test_every_method_of_a_session_is_guarded_or_free() -> None:
    """A method that a later SQLAlchemy adds fails this test until somebody has classified it."""
    methods = {name for name in dir(Session) if name[0] != "_" and callable(getattr(Session, name))}

    methods -= {"close_all"}  # of no session, and of SQLAlchemy 2.0 alone
    assert methods - {*CALLS, *LOCAL} == FREE | OWN
    assert {*CALLS} & {*LOCAL} == set()


REFUSED = [name for name in [*CALLS, *LOCAL, *OWN] if name != "close" and hasattr(Session, name)]
ASYNC_REFUSED = [name for name in [*REFUSED, "stream", "stream_scalars", "run_sync"] if hasattr(AsyncSession, name)]


@on_one
async def test_after_its_end_a_session_refuses_every_call(database: Database, backend: Backend) -> None:
    """The error says that the unit has ended, and nothing is sent."""
    async with session_scope(database):
        session, async_session = database.session, database.async_session
        session.execute(text("SELECT 1"))
        await async_session.execute(text("SELECT 1"))

    for name in REFUSED:
        with pytest.raises(UnitOfWorkEndedError, match="has ended, and its sessions with it"):
            getattr(session, name)(*ARGUMENTS.get(name, ()))
    for name in ASYNC_REFUSED:
        with pytest.raises(UnitOfWorkEndedError, match="has ended, and its sessions with it"):
            await called(getattr(async_session, name), *ARGUMENTS.get(name, ()))
    assert backend.names() == []


async def called(method: Callable[..., Any], *args: Any) -> None:
    """Call a method of an ``AsyncSession``, and await what it returns if that is awaitable."""
    result = method(*args)
    if hasattr(result, "__await__"):
        await result


@on_one
@pytest.mark.parametrize("where", ["here", "a thread", "another loop"])
async def test_after_its_end_a_session_may_be_closed_from_anywhere(database: Database, where: str) -> None:
    """Closing it again does nothing, and neither does SQLAlchemy's close_all_sessions()."""
    async with session_scope(database):
        session, async_session = database.session, database.async_session
        session.execute(text("SELECT 1"))
        await async_session.execute(text("SELECT 1"))
    raised: list[BaseException] = []

    async def close() -> None:
        session.close()
        await async_session.close()
        close_all_sessions()

    def in_thread() -> None:
        try:
            session.close()
            close_all_sessions()
            if where == "another loop":
                asyncio.run(close())
        except BaseException as exc:  # a thread would only print it
            raised.append(exc)

    if where == "here":
        await close()
    else:
        thread = threading.Thread(target=in_thread)
        thread.start()
        await to_thread.run_sync(thread.join)

    assert raised == []
