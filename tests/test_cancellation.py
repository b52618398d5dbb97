"""Work runs to its end: no cancellation is lost, none interrupts it, and no caller waits forever."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from importlib.metadata import version
from itertools import permutations
from typing import Any

import anyio
import pytest
import trio
import uvloop
from sqlalchemy import event
from sqlalchemy.util import await_only
from support.asgi import Call, respond
from support.databases import Backend, connections_out
from support.failing import BrokenError, engine_of, insert, ticks, until
from support.marks import KINDS

from asgi_sqla import Database, SQLAlchemyMiddleware, session_scope
from asgi_sqla.unit import cancellation, threads
from asgi_sqla.unit.cancellation import Finished, to_completion

Run = Callable[[Coroutine[Any, Any, None]], None]
PATIENCE = 30.0
"""Seconds to wait for an event that should happen at once."""


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Return what runs a coroutine on each event loop in turn."""

    def on_new_loop(scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(scenario)

    return on_new_loop


class Work:
    """Awaitable work: a coroutine, or a call in a thread, that ends when it is released."""

    def __init__(self, place: str, failure: BaseException | None = None) -> None:
        self.place = place
        self.failure = failure
        self.ended = False
        self._go_on = threading.Event()
        self._on_loop = asyncio.Event()

    def begin(self) -> Any:
        """Return it as ``to_completion`` takes it."""
        return self._wait() if self.place == "task" else threads.submit(self._block)

    def release(self) -> None:
        """Let it end."""
        self._go_on.set()
        self._on_loop.set()

    async def _wait(self) -> None:
        await self._on_loop.wait()
        self._end()

    def _block(self) -> None:
        assert self._go_on.wait(PATIENCE)
        self._end()

    def _end(self) -> None:
        self.ended = True
        if self.failure is not None:
            raise self.failure


PLACES = ["task", "thread"]
on_every_place = pytest.mark.parametrize("place", PLACES)


class Caller:
    """A task that awaits work inside a cancel scope and a time limit, and can be cancelled in three ways."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.scope = anyio.CancelScope()
        self.limit = asyncio.timeout(None)
        self.finished: Finished | None = None
        self.ended_first = False
        self.task = asyncio.create_task(self._call())

    async def _call(self) -> None:
        async with self.limit:
            with self.scope:
                self.finished = await to_completion(self.work.begin())
                self.ended_first = self.work.ended
                self.finished.check()
                await asyncio.sleep(0)  # where anyio tells of its own cancellation, which it repeats

    def cancel(self, how: str) -> None:
        """Cancel the task, its scope, or the time that it has left."""
        if how == "task":
            self.task.cancel()
        elif how == "scope":
            self.scope.cancel()
        else:
            self.limit.reschedule(asyncio.get_running_loop().time())


ANYIO = tuple(map(int, version("anyio").split(".")[:2]))
WAYS = ["task", "scope", "limit"]
ORDERS = [order for size in (1, 2, 3) for order in permutations(WAYS, size)]
TWICE = [("task", "task"), ("scope", "scope"), ("task", "scope", "task"), ("scope", "task", "scope")]


@pytest.mark.parametrize("turns", [0, 4], ids=["same turn", "apart"])
@pytest.mark.parametrize("order", [*ORDERS, *TWICE], ids="-".join)
@on_every_place
def test_no_cancellation_is_lost(run: Run, place: str, order: tuple[str, ...], turns: int) -> None:
    """A cancelled task ends cancelled, a time limit raises TimeoutError, and a scope suppresses only its own."""
    if turns == 0 and "scope" in order and len(set(order)) > 1 and ANYIO < (4, 16):
        pytest.skip("anyio before 4.16 itself loses one of two cancellations that come in the same turn")

    async def scenario() -> None:
        caller = Caller(Work(place))
        await ticks(3)
        for how in order:
            caller.cancel(how)
            await ticks(turns)
        await asyncio.sleep(0.01)  # a time limit fires in its own time
        await ticks(5)
        waited = not caller.task.done()
        caller.work.release()
        await asyncio.wait([caller.task])

        assert (waited, caller.ended_first) == (True, True)
        assert caller.task.cancelled() is ("task" in order)
        if "task" not in order:
            assert isinstance(caller.task.exception(), TimeoutError if "limit" in order else type(None))

    run(scenario())


@on_every_place
def test_an_undisturbed_end_is_returned(run: Run, place: str) -> None:
    """Without a failure and a cancellation the result is empty."""

    async def scenario() -> None:
        work = Work(place)
        work.release()
        assert await to_completion(work.begin()) == Finished(None, None)

    run(scenario())


@pytest.mark.parametrize("failure", [BrokenError(), KeyboardInterrupt()], ids=repr)
@on_every_place
def test_a_failure_is_a_value(run: Run, place: str, failure: BaseException) -> None:
    """The failure is returned, not raised, beside a cancellation that came before it."""
    if place == "task" and not isinstance(failure, Exception):
        return  # asyncio lets it end the event loop itself

    async def scenario() -> None:
        caller = Caller(Work(place, failure))
        await ticks(3)
        caller.cancel("task")
        await ticks(3)
        caller.work.release()
        await asyncio.wait([caller.task])

        assert caller.finished is not None
        assert caller.finished.failure is failure
        assert isinstance(caller.finished.cancelled, asyncio.CancelledError)
        assert caller.task.cancelled()

    run(scenario())


def test_the_cancellation_is_raised_before_the_failure() -> None:
    """A cancelled task must stop, and the failure is for the log."""
    cancelled, failure = asyncio.CancelledError(), BrokenError()

    with pytest.raises(asyncio.CancelledError) as raised:
        Finished(failure, cancelled).check()
    assert raised.value is cancelled
    with pytest.raises(BrokenError):
        Finished(failure).check()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "CANCELLED_LIMIT", 0.2)
    monkeypatch.setattr(cancellation, "CUT_LIMIT", 0.2)


async def cancelled_call(work: Work, cut: Callable[[], bool]) -> Finished:
    """Cancel a caller that waits for ``work``, and return its result."""
    told: list[Finished] = []

    async def call() -> None:
        told.append(await to_completion(work.begin(), cut))

    task = asyncio.create_task(call())
    await ticks(3)
    task.cancel()
    await asyncio.wait([task], timeout=PATIENCE)
    (finished,) = told
    assert isinstance(finished.cancelled, asyncio.CancelledError)
    return finished


@on_every_place
@pytest.mark.usefixtures("_impatient")
def test_work_that_does_not_answer_is_cut(run: Run, place: str) -> None:
    """Work is cut after the limit, not before, and ends with the error that the cut causes."""

    async def scenario() -> None:
        work, loop = Work(place, BrokenError()), asyncio.get_running_loop()
        cuts: list[float] = []

        def cut() -> bool:
            cuts.append(loop.time())
            work.release()
            return True

        begun = loop.time()
        finished = await cancelled_call(work, cut)

        assert isinstance(finished.failure, BrokenError)
        assert len(cuts) == 1
        assert cuts[0] - begun > cancellation.CANCELLED_LIMIT / 2  # uvloop's clock counts whole milliseconds

    run(scenario())


@pytest.mark.usefixtures("_impatient")
def test_a_task_that_a_cut_does_not_wake_is_cancelled(run: Run) -> None:
    """Such a task waits for something else, and its caller does not wait for it."""

    async def scenario() -> None:
        work = Work("task")
        cuts: list[None] = []

        def cut() -> bool:
            cuts.append(None)
            return True

        finished = await cancelled_call(work, cut)

        assert isinstance(finished.failure, asyncio.CancelledError)
        assert (len(cuts), work.ended) == (2, False)

    run(scenario())


@pytest.mark.usefixtures("_impatient")
def test_a_thread_that_a_cut_does_not_wake_goes_on(run: Run) -> None:
    """The caller does not wait for it, and the thread takes the next call when this one returns."""

    async def scenario() -> None:
        work = Work("thread")
        finished = await cancelled_call(work, lambda: True)

        assert isinstance(finished.failure, TimeoutError)
        assert len(cancellation._left) == 1
        work.release()
        await until(lambda: work.ended and not cancellation._left)
        for _ in range(3):
            assert await asyncio.wait_for(to_completion(threads.submit(lambda: None)), PATIENCE) == Finished()

    run(scenario())


@on_every_place
@pytest.mark.usefixtures("_impatient")
def test_work_with_nothing_to_cut_goes_on_by_itself(run: Run, place: str) -> None:
    """Callbacks after a COMMIT, for example, go on after the caller stops waiting."""

    async def scenario() -> None:
        work = Work(place)
        finished = await cancelled_call(work, lambda: False)

        assert (type(finished.failure), work.ended) == (TimeoutError, False)
        work.release()
        await until(lambda: work.ended and not cancellation._left)

    run(scenario())


def test_only_a_cancelled_caller_stops_waiting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that is not cancelled waits as long as the database takes."""
    monkeypatch.setattr(cancellation, "CANCELLED_LIMIT", 0.0)

    async def scenario() -> None:
        caller = Caller(Work("task"))
        await asyncio.sleep(0.1)
        waiting = not caller.task.done()
        caller.work.release()
        await caller.task
        assert (waiting, caller.finished) == (True, Finished())

    run(scenario())


def test_waiting_under_a_cancelled_scope_sleeps(run: Run) -> None:
    """The cancellation that anyio repeats at each await must not keep the event loop busy."""

    async def scenario() -> None:
        caller = Caller(Work("task"))
        await ticks(3)
        caller.cancel("scope")
        begun, used = time.monotonic(), time.thread_time()
        await asyncio.sleep(0.3)
        waited, used = time.monotonic() - begun, time.thread_time() - used
        caller.work.release()
        await asyncio.wait([caller.task])
        assert used < waited / 4  # a task that is shielded from asyncio alone takes all of it

    run(scenario())


def test_under_trio_a_shield_is_enough() -> None:
    """The work ends although its scope is cancelled, and then the scope suppresses the cancellation."""
    ended: list[bool] = []

    async def work() -> None:
        await trio.sleep(0.05)
        ended.append(True)

    async def scenario() -> bool:
        with trio.CancelScope() as scope:
            scope.cancel()
            finished = await to_completion(work())
            assert finished == Finished()
            await trio.lowlevel.checkpoint()
        return scope.cancelled_caught

    assert trio.run(scenario)
    assert ended == [True]


def test_under_trio_a_failure_is_a_value() -> None:
    """The failure is returned, not raised, as under asyncio."""
    failure = BrokenError()

    async def work() -> None:
        raise failure

    assert trio.run(to_completion, work()) == Finished(failure)


# Through the door.


class SlowCommit:
    """A COMMIT that starts, and continues when it is released."""

    def __init__(self, database: Database, kind: str) -> None:
        self._loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        event.listen(engine_of(database, kind), "commit", self._stop)

    def _stop(self, connection: Any) -> None:
        if connection.dialect.is_async:
            await_only(self._wait())
        else:
            asyncio.run_coroutine_threadsafe(self._wait(), self._loop).result(PATIENCE)

    async def _wait(self) -> None:
        self.reached.set()
        await self.go_on.wait()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_time_limit_inside_that_fires_during_commit(
    database: Database, backend: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """COMMIT was done and the client gets a 504, so the log says that the work is committed."""
    limit = asyncio.timeout(None)
    slow = SlowCommit(database, kind)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            async with limit:
                await insert(database, kind, name="a")
                await respond(send, 201)
        except TimeoutError:
            await respond(send, 504)

    call = Call(SQLAlchemyMiddleware(app, database))
    task = asyncio.create_task(call())
    await asyncio.wait_for(slow.reached.wait(), PATIENCE)
    limit.reschedule(asyncio.get_running_loop().time())
    await asyncio.sleep(0.05)
    slow.go_on.set()
    await task

    assert (call.raised, call.starts, backend.names()) == (None, [504], ["a"])
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "answered 504, but some of its work had already been committed" in said


@pytest.mark.parametrize("answer", [None, "raises"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_request_whose_commit_was_done(
    database: Database, backend: Backend, kind: str, answer: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the application returns or raises, the log says that the work is committed."""
    slow = SlowCommit(database, kind)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, kind, name="a")
        try:
            await respond(send, 201)
        except asyncio.CancelledError:
            if answer is None:
                return
            raise BrokenError from None

    call = Call(SQLAlchemyMiddleware(app, database))
    task = asyncio.create_task(call())
    await asyncio.wait_for(slow.reached.wait(), PATIENCE)
    task.cancel()
    await ticks(5)
    slow.go_on.set()
    await task

    assert (call.starts, backend.names()) == ([], ["a"])
    assert isinstance(call.raised, BrokenError if answer else type(None))
    assert [one for one in caplog.messages if "some of its work had already been committed" in one] != []


@pytest.mark.parametrize("way", ["task", "scope"])
async def test_a_cancelled_scope_waits_for_its_commit(database: Database, backend: Backend, way: str) -> None:
    """The row is committed and the connection is back when the cancellation is raised."""
    slow = SlowCommit(database, "async")
    around = anyio.CancelScope()

    async def job() -> None:
        with around:
            async with session_scope(database):
                await insert(database, "async", name="a")
            await asyncio.sleep(0)  # where anyio tells of its own cancellation, which it repeats

    task = asyncio.create_task(job())
    await asyncio.wait_for(slow.reached.wait(), PATIENCE)
    if way == "task":
        task.cancel()
    else:
        around.cancel()
    await ticks(5)
    assert not task.done()
    slow.go_on.set()
    await asyncio.wait([task])

    assert (task.cancelled(), around.cancelled_caught) == (way == "task", way == "scope")
    assert (backend.names(), connections_out(database)) == (["a"], 0)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert cancellation._left == set()
