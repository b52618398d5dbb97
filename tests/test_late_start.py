"""A response start after the end of its unit is never a success, and neither is a session made after it."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only
from support.asgi import Call, Message, http_scope, respond
from support.databases import Backend, Item, connections_out
from support.failing import BrokenError, engine_of, insert, ticks, until
from support.marks import KINDS, on_postgresql

from asgi_sqla import Database, SQLAlchemyMiddleware, UnitOfWorkEndedError, current_unit, session_scope

PATIENCE = 30.0


class LateCall(Call):
    """A request whose client distinguishes messages before and after the middleware has returned."""

    def __init__(self, app: Any, scope: Message | None = None) -> None:
        super().__init__(app, scope)
        self.late: list[Message] = []
        self._over = False

    async def send(self, message: Message) -> None:
        """Keep the message, by when it came."""
        if self._over:
            self.late.append(message)
        else:
            await super().send(message)

    async def __call__(self) -> LateCall:
        """Run the application to its end."""
        await super().__call__()
        self._over = True
        return self


async def outcome_of(task: asyncio.Task[None]) -> BaseException | None:
    """Wait for a task that was left behind, and return what it raised."""
    await asyncio.wait([task], timeout=PATIENCE)
    assert task.done()
    return task.exception()


@pytest.mark.parametrize("turns", [0, 4, 8])
@pytest.mark.parametrize("end", ["returns", "raises"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_start_beside_the_end(database: Database, backend: Backend, kind: str, end: str, turns: int) -> None:
    """A task starts the response while the application ends: if the client sees 201, the row exists."""
    left: list[asyncio.Task[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def start() -> None:
            await ticks(turns)
            await respond(send, 201)

        await insert(database, kind, name="a")
        left.append(asyncio.create_task(start()))
        await ticks(4)
        if end == "raises":
            raise BrokenError

    call = await LateCall(SQLAlchemyMiddleware(app, database))()
    raised = await outcome_of(left[0])

    assert call.starts in ([], [201])
    assert backend.names() == (["a"] if call.starts == [201] else [])
    assert call.late == []
    # When the end came while the start was under way, the rest of the response has no one to go to.
    assert raised is None or isinstance(raised, UnitOfWorkEndedError) or not isinstance(raised, Exception)
    assert connections_out(database) == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_start_during_the_rollback(database: Database, backend: Backend, kind: str) -> None:
    """A sibling of a ``gather`` that has raised starts the response while the unit is rolled back."""
    rolling_back = asyncio.Event()
    started = asyncio.Event()
    left: list[asyncio.Task[None]] = []

    async def hold() -> None:
        rolling_back.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(started.wait(), 1)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def start() -> None:
            await rolling_back.wait()
            try:
                await respond(send, 201)
            finally:
                started.set()

        async def fail() -> None:
            await ticks(2)
            raise BrokenError

        await insert(database, kind, name="a")
        current_unit().on_rollback(hold)
        left.append(asyncio.create_task(start()))
        await asyncio.gather(left[0], fail())

    call = await LateCall(SQLAlchemyMiddleware(app, database))()
    raised = await outcome_of(left[0])

    assert (call.starts, call.late, backend.names()) == ([], [], [])
    assert isinstance(call.raised, BrokenError)
    assert isinstance(raised, UnitOfWorkEndedError)


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("end", ["returns", "raises"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_start_after_the_end(database: Database, backend: Backend, kind: str, end: str, used: bool) -> None:
    """A request that has ended sends nothing more, whether it used its unit or not."""
    over = asyncio.Event()
    left: list[asyncio.Task[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def start() -> None:
            await over.wait()
            await respond(send, 201)

        if used:
            await insert(database, kind, name="a")
        left.append(asyncio.create_task(start()))
        if end == "raises":
            raise BrokenError

    call = await LateCall(SQLAlchemyMiddleware(app, database))()
    over.set()
    await outcome_of(left[0])

    assert (call.starts, call.late, backend.names()) == ([], [], [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_start_that_is_settled_while_the_application_raises(
    database: Database, backend: Backend, kind: str
) -> None:
    """Its COMMIT has begun, so it is waited for: the client sees 201, and the row exists."""
    committing, go_on = threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    left: list[asyncio.Task[None]] = []

    def stop(connection: Any) -> None:
        committing.set()
        if connection.dialect.is_async:
            await_only(loop.run_in_executor(None, go_on.wait, PATIENCE))
        else:
            go_on.wait(PATIENCE)

    event.listen(engine_of(database, kind), "commit", stop)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, kind, name="a")
        left.append(asyncio.create_task(respond(send, 201)))
        await until(committing.is_set)
        loop.call_soon(go_on.set)
        raise BrokenError

    call = await LateCall(SQLAlchemyMiddleware(app, database))()
    await outcome_of(left[0])

    assert (call.starts, backend.names()) == ([201], ["a"])
    assert isinstance(call.raised, BrokenError)


@pytest.mark.parametrize("turns", [0, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_start_of_an_earlier_attempt(database: Database, backend: Backend, kind: str, turns: int) -> None:
    """A task of the first attempt starts nothing: the client sees the second attempt's answer, once."""
    left: list[asyncio.Task[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempt = current_unit().attempt

        async def start() -> None:
            await ticks(turns)
            await asyncio.sleep(0.02)
            await respond(send, 200)

        await insert(database, kind, name=f"attempt {attempt}")
        if attempt == 1:
            left.append(asyncio.create_task(start()))
            statement = text("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
            if kind == "sync":
                await asyncio.to_thread(lambda: database.session.execute(statement))
            else:
                await database.async_session.execute(statement)
        await asyncio.sleep(0.1)
        await respond(send, 201)

    call = await LateCall(SQLAlchemyMiddleware(app, database, retries=1))()
    raised = await outcome_of(left[0])

    assert (call.starts, call.late, backend.names()) == ([201], [], ["attempt 2"])
    assert raised is not None or call.late == []


async def test_a_second_start_is_for_the_server_to_judge(database: Database, backend: Backend) -> None:
    """After a response has started, later messages are forwarded unchanged."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "async", name="a")
        await respond(send, 201)
        await send({"type": "http.response.start", "status": 500, "headers": []})

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.starts, backend.names()) == ([201, 500], ["a"])


# A session that comes late.


class SlowSession(Session):
    """A user's session class that takes time to be made."""

    making = threading.Event()
    go_on = threading.Event()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        SlowSession.making.set()
        SlowSession.go_on.wait(PATIENCE)


@pytest.mark.parametrize("end", ["raises", "answers"])
async def test_a_thread_s_first_session_while_its_unit_ends(database: Database, backend: Backend, end: str) -> None:
    """The thread gets an error, and no open session that nothing would end."""
    SlowSession.go_on.set()
    database.configure(backend.url, session_options={"class_": SlowSession})  # which makes one, to check its options
    SlowSession.making.clear()
    SlowSession.go_on.clear()
    left: list[asyncio.Task[str]] = []

    def work() -> str:
        try:
            session = database.session
            session.connection()
        except UnitOfWorkEndedError:
            return "refused"
        return "a session"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        left.append(asyncio.create_task(asyncio.to_thread(work)))
        await until(SlowSession.making.is_set)
        if end == "raises":
            raise BrokenError
        await respond(send, 200)

    call = await Call(SQLAlchemyMiddleware(app, database))()
    SlowSession.go_on.set()
    got = await asyncio.wait_for(left[0], PATIENCE)

    assert call.starts == ([] if end == "raises" else [200])
    assert (got, connections_out(database)) == ("refused", 0)


ROUNDS = 60


class Latecomer:
    """A thread that asks for its unit's first session some time after it was started."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.left: list[asyncio.Task[None]] = []
        self.odd: list[BaseException] = []

    async def fail(self, pause: float) -> None:
        """Start the thread, and fail a moment later."""
        self.left.append(asyncio.create_task(asyncio.to_thread(self._work, pause)))
        await asyncio.sleep(0.001)
        raise BrokenError

    def _work(self, pause: float) -> None:
        time.sleep(pause)
        try:
            self.database.session.connection()
        except UnitOfWorkEndedError:
            return
        except BaseException as exc:  # the test looks at it
            self.odd.append(exc)


async def in_request(latecomer: Latecomer, pause: float) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await latecomer.fail(pause)

    await Call(SQLAlchemyMiddleware(app, latecomer.database))()


async def in_sync_scope(latecomer: Latecomer, pause: float) -> None:
    with suppress(BrokenError), session_scope(latecomer.database):
        await latecomer.fail(pause)


async def in_async_scope(latecomer: Latecomer, pause: float) -> None:
    with suppress(BrokenError):
        async with session_scope(latecomer.database):
            await latecomer.fail(pause)


@pytest.mark.parametrize("run", [in_request, in_sync_scope, in_async_scope])
async def test_first_sessions_in_many_rounds(database: Database, backend: Backend, run: Any) -> None:
    """Whenever a thread comes, its session works until its unit ends, or it is refused: no connection stays out."""
    latecomer = Latecomer(database)
    for number in range(ROUNDS):
        await run(latecomer, number % 6 * 0.0004)
    await asyncio.wait(latecomer.left, timeout=PATIENCE)
    await until(lambda: connections_out(database) == 0)

    assert [one for one in latecomer.odd if not refers_to_the_end(one)] == []


def refers_to_the_end(error: BaseException) -> bool:
    """Return whether an error says that the session was in use when its unit ended."""
    return "ended" in str(error) or "in use" in str(error)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_session_that_was_kept_past_its_unit(database: Database, backend: Backend, kind: str) -> None:
    """It is closed for good: no call on it opens a transaction that nothing would end."""
    kept: list[Session | AsyncSession] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, kind, name="a")
        kept.append(database.session if kind == "sync" else database.async_session)
        await respond(send, 201)

    await Call(SQLAlchemyMiddleware(app, database), http_scope())()

    with pytest.raises(UnitOfWorkEndedError):
        kept[0].add(Item(name="late"))
    assert connections_out(database) == 0


async def test_a_first_session_is_refused_while_callbacks_run(sqlite: Backend) -> None:
    """A task that outlives its application finds no unit that could end a session, although one is still ending."""
    database = Database(sqlite.url)
    called, go_on = asyncio.Event(), asyncio.Event()
    refused: list[bool] = []

    async def callback() -> None:
        called.set()
        await go_on.wait()

    async def late() -> None:
        await called.wait()
        with pytest.raises(UnitOfWorkEndedError):
            _ = database.session
        refused.append(True)
        go_on.set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_unit().on_rollback(callback)
        tasks.append(asyncio.create_task(late()))

    tasks: list[asyncio.Task[None]] = []
    await asyncio.wait_for(Call(SQLAlchemyMiddleware(app, database))(), PATIENCE)
    await tasks[0]
    assert refused == [True]
