"""The threads that end sync sessions: one for each call, none queued, idle ones end, and none is left behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from sqlalchemy import event, text
from support.asgi import Call, http_scope, respond
from support.changed import python_path
from support.databases import Backend, connections_out
from support.failing import BrokenError, engine_of, insert
from support.marks import alone
from support.servers import wait_until

from asgi_sqla import Database, SQLAlchemyMiddleware
from asgi_sqla.unit import threads
from asgi_sqla.unit.threads import Threads

PATIENCE = 30.0
NO_THREAD = "can't start new thread"
"""What Python says where the system gives no thread."""


def alive() -> set[threading.Thread]:
    """Return our running threads."""
    return {one for one in threading.enumerate() if one.name == "asgi_sqla"}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    """Return threads that only this test uses, and that end soon when they are idle."""
    monkeypatch.setattr(threads, "IDLE_LIMIT", 0.2)
    before = alive()
    own = Threads()
    yield own
    assert wait_until(lambda: alive() <= before, PATIENCE)


class Call_:  # noqa: N801  # the name is taken by a request
    """A call in a thread that says where it runs, and ends when it is released."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.go_on = threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self) -> None:
        self.thread = threading.current_thread()
        self.running.set()
        assert self.go_on.wait(PATIENCE)


def test_each_call_has_a_thread(own: Threads) -> None:
    """Calls that wait for each other all run, because none is queued behind another."""
    calls = [Call_() for _ in range(20)]
    futures = [own.submit(call) for call in calls]

    assert all(call.running.wait(PATIENCE) for call in calls)
    for call in calls:
        call.go_on.set()
    for future in futures:
        assert future.exception(PATIENCE) is None
    assert len({call.thread for call in calls}) == 20


def test_a_thread_that_is_free_is_used_again(own: Threads) -> None:
    """A caller that submits again after the end of a call finds its thread free."""
    seen: set[int] = set()
    for _ in range(200):
        own.submit(lambda: seen.add(threading.get_ident())).result(PATIENCE)

    assert len(seen) == 1


def test_the_thread_that_was_used_last_is_used_next(own: Threads) -> None:
    """So the other threads stay idle, and end."""
    calls = [Call_(), Call_()]
    futures = [own.submit(call) for call in calls]
    assert all(call.running.wait(PATIENCE) for call in calls)
    for call, future in zip(calls, futures, strict=True):  # one after the other
        call.go_on.set()
        future.result(PATIENCE)
    seen: list[threading.Thread] = []
    for _ in range(20):
        own.submit(lambda: seen.append(threading.current_thread())).result(PATIENCE)

    assert set(seen) == {calls[1].thread}


def test_a_thread_that_is_idle_ends(own: Threads) -> None:
    """It ends after some seconds, and the next call starts another."""
    first = Call_()
    first.go_on.set()
    own.submit(first).result(PATIENCE)
    thread = first.thread
    assert thread is not None
    thread.join(PATIENCE)
    again = Call_()
    again.go_on.set()
    own.submit(again).result(PATIENCE)

    assert (thread.is_alive(), own._busy) == (False, set())
    assert again.thread is not thread


def test_no_call_is_lost_when_a_thread_is_about_to_end(own: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call runs even if its thread is just about to end."""
    monkeypatch.setattr(threads, "IDLE_LIMIT", 0.001)
    for _ in range(300):
        assert own.submit(lambda: None).exception(PATIENCE) is None
        time.sleep(0.001)


def test_a_thread_that_was_given_a_call_in_its_last_moment_runs_it() -> None:
    """It has waited long enough, but is not idle any more, so the call is on its way to it."""
    call = threads.Call(lambda: None)
    waited: list[bool] = []

    class Inbox(SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            waited.append(True)
            if len(waited) == 2:
                return call
            raise Empty

    Threads()._work(Inbox())

    assert (len(waited), call.exception(0)) == (3, None)


@pytest.mark.parametrize("failure", [BrokenError(), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_failure_belongs_to_the_future(own: Threads, failure: BaseException) -> None:
    """Whatever a call raises, its thread takes the next one."""

    def fail() -> None:
        raise failure

    assert own.submit(fail).exception(PATIENCE) is failure
    assert own.submit(lambda: None).exception(PATIENCE) is None


def test_a_failure_keeps_nothing_in_a_circle(own: Threads) -> None:
    """Who has handled the failure of a call frees what the call was made with, without the collector."""
    import gc
    import weakref

    class Held:
        """An object that a call uses."""

    held = Held()
    gone = weakref.ref(held)

    def fail(held: Held = held) -> None:
        raise BrokenError

    gc.disable()
    try:
        call = own.submit(fail)
        assert isinstance(call.exception(PATIENCE), BrokenError)
        del call, fail, held
        assert wait_until(lambda: gone() is None, PATIENCE)
    finally:
        gc.enable()


def test_who_waits_is_told_once_whenever_they_ask(own: Threads) -> None:
    """A call may end at the very moment at which somebody begins to wait for it."""
    for _ in range(500):
        told: list[object] = []
        call = own.submit(int)
        call.add_done_callback(told.append)
        call.result(PATIENCE)

        assert wait_until(lambda told=told: bool(told), PATIENCE)  # type: ignore[misc]  # it takes nothing
        assert told == [call]


def test_a_call_cannot_be_cancelled(own: Threads) -> None:
    """It is done when it has ended by itself."""
    call = own.submit(int)
    call.result(PATIENCE)

    assert (call.cancel(), call.cancelled(), call.done()) == (False, False, True)


async def test_a_future_of_a_call_may_be_cancelled(own: Threads) -> None:
    """The call ends by itself, and its failure or its end is told to nobody."""
    for failure in (None, BrokenError()):
        blocked = Call_()

        def work(blocked: Call_ = blocked, failure: Exception | None = failure) -> None:
            blocked()
            if failure is not None:
                raise failure

        call = own.submit(work)
        future = threads.future_of(call)
        future.cancel()
        blocked.go_on.set()
        assert call.exception(PATIENCE) is failure
        await asyncio.sleep(0)

        assert future.cancelled()
        again = threads.future_of(call)
        ended: Any = await asyncio.gather(again, return_exceptions=True)
        assert ended == [failure]


def test_a_call_outlives_the_loop_that_waits_for_it(own: Threads) -> None:
    """It ends as always after the loop was closed."""
    blocked = Call_()

    async def leave() -> Any:
        call = own.submit(blocked)
        threads.future_of(call)
        return call

    call = asyncio.run(leave())
    blocked.go_on.set()

    assert call.exception(PATIENCE) is None


def test_an_idle_thread_keeps_nothing_alive(own: Threads) -> None:
    """The sessions and bodies of a call are freed when it ends, not when the thread gets its next call."""
    import gc
    import weakref

    class Held:
        """An object that a call uses."""

    held = Held()
    gone = weakref.ref(held)

    def use(held: Held = held) -> None:
        del held

    own.submit(use).result(PATIENCE)
    del use, held

    def collected() -> bool:
        gc.collect()
        return gone() is None

    assert wait_until(collected, PATIENCE)


def test_nothing_is_queued_where_no_thread_can_be_started(own: Threads) -> None:
    """The caller gets an error at once, and no thread does the work later."""
    busy, ran = Call_(), []
    future = own.submit(busy)
    assert busy.running.wait(PATIENCE)
    with pytest.MonkeyPatch.context() as refusing:
        refuse_threads(refusing)

        with pytest.raises(RuntimeError, match=NO_THREAD):
            own.submit(lambda: ran.append(1))
        busy.go_on.set()
        future.result(PATIENCE)
    own.submit(lambda: None).result(PATIENCE)

    assert (ran, own._busy) == ([], set())


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system refuse our threads from now on, but no others."""
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "asgi_sqla":
            raise RuntimeError(NO_THREAD)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    """The parent's threads do not run there, although the parent's list is inherited."""
    program = (
        "import os, sys\n"
        "from asgi_sqla.unit import threads\n"
        "threads.submit(lambda: None).result(10)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    threads.submit(lambda: print('the child', flush=True)).result(10)\n"
        "    os._exit(0)\n"
        "sys.exit(os.waitpid(child, 0)[1])\n"
    )
    assert run_program(program) == "the child\n"


def test_the_interpreter_waits_at_its_exit_for_running_calls() -> None:
    """A COMMIT that a daemon thread has begun is not interrupted."""
    program = (
        "import threading, time\n"
        "from asgi_sqla.unit import threads\n"
        "running = threading.Event()\n"
        "def commit():\n"
        "    running.set()\n"
        "    time.sleep(0.5)\n"
        "    print('committed', flush=True)\n"
        "threads.submit(commit)\n"
        "running.wait(10)\n"
    )
    assert run_program(program) == "committed\n"


def test_the_interpreter_does_not_wait_forever_at_its_exit() -> None:
    """A call that does not end within the limit is abandoned, and so is an idle thread."""
    program = (
        "import threading\n"
        "from asgi_sqla.unit import threads\n"
        "threads.EXIT_LIMIT = 0.2\n"
        "threads.submit(threading.Event().wait)\n"
        "threads.submit(lambda: None).result(10)\n"
        "print('over', flush=True)\n"
    )
    assert run_program(program) == "over\n"


def run_program(program: str) -> str:
    """Run a program in a new interpreter, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": python_path(Path(threads.__file__).parents[2])},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# Through the door.


def serve(database: Database, kinds: list[str], status: int) -> SQLAlchemyMiddleware:
    """Return an application that writes a row with each kind of session."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for kind in kinds:
            await insert(database, kind, name=f"{scope['path']} {kind}")
        await respond(send, status)

    return SQLAlchemyMiddleware(app, database)


@pytest.fixture
def _no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_threads", Threads())
    refuse_threads(monkeypatch)


def one_writer(backend: Backend, kinds: list[str]) -> bool:
    """Return whether the database allows only one writing transaction, and so not two sessions."""
    return backend.name == "sqlite" and len(kinds) > 1


@alone
@pytest.mark.parametrize("kinds", [["sync"], ["sync", "async"], ["async", "sync"]], ids="-".join)
@pytest.mark.usefixtures("_no_thread")
async def test_a_commit_without_a_thread_fails_cleanly(
    database: Database, backend: Backend, kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets an error, nothing is committed then or later, and no connection is out or in a transaction."""
    if one_writer(backend, kinds):
        return
    call = await Call(serve(database, kinds, 201))()
    monkeypatch.undo()
    # In rows of its own: where MariaDB has just deleted the same, one session locks what the other one inserts.
    path = f"/after {'-'.join(kinds)}"
    after = await Call(serve(database, kinds, 201), http_scope(path))()

    assert (call.starts, after.starts) == ([500], [201])
    assert isinstance(call.raised, RuntimeError)
    assert NO_THREAD in str(call.raised)
    assert backend.names() == sorted(f"{path} {kind}" for kind in kinds)
    assert (connections_out(database), idle_in_transaction(backend)) == (0, 0)


@pytest.mark.parametrize("end", ["status", "exception"])
@pytest.mark.usefixtures("_no_thread")
async def test_a_rollback_without_a_thread_is_done(database: Database, backend: Backend, end: str) -> None:
    """The thread of the event loop does it, because a rollback must not wait."""
    failure = BrokenError()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "sync", name="a")
        if end == "exception":
            raise failure
        await respond(send, 422)

    call = await Call(SQLAlchemyMiddleware(app, database))()

    assert (call.starts, call.raised) == (([422], None) if end == "status" else ([], failure))
    assert (backend.names(), connections_out(database), idle_in_transaction(backend)) == ([], 0, 0)


def idle_in_transaction(backend: Backend) -> int:
    """Return how many backends the server reports as idle in transaction; SQLite has none."""
    return 0 if backend.name == "sqlite" else backend.backends("idle in transaction%")


async def test_commits_that_wait_for_each_other_all_end(database: Database, backend: Backend) -> None:
    """A COMMIT in a thread never waits for the thread of another one, however many there are."""
    count = 4 if backend.name != "sqlite" else 1
    barrier = threading.Barrier(count)
    event.listen(engine_of(database, "sync"), "commit", lambda _connection: barrier.wait(PATIENCE))
    app = serve(database, ["sync"], 201)

    calls = await asyncio.gather(*[Call(app, http_scope(f"/{number}"))() for number in range(count)])

    assert [call.starts for call in calls] == [[201]] * count
    with backend.witness.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM item")) == count
