"""Workers: real processes, real brokers, and jobs that write through ``session_scope()``."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.pool import NullPool
from support.changed import python_path
from support.databases import postgresql_url
from support.services import missing, redis_url

from matrix.report import not_applicable

TESTS = Path(__file__).parents[1]
KINDS = ("async", "sync")
FORMS = ("with", "decorator")
PATIENCE = 30
"""Seconds to wait for an event that should happen at once; only a failing test waits that long."""

NOTICE = "-c client_connection_check_interval=100"
"""Lets the server notice within 100 ms that a client has gone; otherwise its statement would run to its end."""

COMPLAINTS = ("different loop", "Event loop is closed", "never awaited", "never retrieved", "was destroyed")

THREAD = "Python has no means to stop a thread, so {} has none for a job in one."
DRAMATIQ_WAITS = "dramatiq raises in a thread, which notices as soon as it runs Python again: not while it waits in {}."
NO_RETRIES = "{} has no retries of its own; the decorator's retries= serves any worker."


@dataclass(frozen=True)
class Kind:
    """A worker, and a way to run it."""

    package: str
    module: str
    resting: int
    """How many connections may stay in its pools between jobs: of its processes, threads and loops together."""
    way: str = ""
    command: tuple[str, ...] = ()
    """Its own command, after ``python -m``; without one the process that takes the orders does the work."""
    broker: bool = True
    no_retries: str | None = None
    no_cancel: dict[str, str] = field(default_factory=dict)
    """Why a job of this kind, async or sync, cannot be ended by the worker."""
    no_cancel_in_query: dict[str, str] = field(default_factory=dict)
    """Why a statement of such a job goes on."""
    cancel: Callable[[Running], None] | None = None
    """Ends the running job; without one the worker's time limit does."""


def interrupt(running: Running) -> None:
    """Do what Ctrl-C does."""
    running.orders.send_signal(signal.SIGINT)


def shut_down(running: Running) -> None:
    """Shut the scheduler down, which cancels its jobs."""
    running.order("cancel", "")


TASKIQ = ("taskiq", "worker", "matrix.jobs.on_taskiq:broker", "--workers", "2", "--no-configure-logging")
CELERY = ("celery", "-A", "matrix.jobs.on_celery", "worker", "-l", "ERROR", "--without-gossip", "--without-mingle")
DRAMATIQ = ("dramatiq", "matrix.jobs.on_dramatiq", "--processes", "1", "--threads", "4")
RQ = ("matrix.jobs.on_rq", "worker")
RUN_RETRIES = NO_RETRIES.format("asyncio.run")
WORKERS = {
    "asyncio.run": Kind("asyncio", "on_asyncio", 1, broker=False, no_retries=RUN_RETRIES, cancel=interrupt),
    "asyncio.run in threads": Kind(
        "asyncio",
        "on_asyncio",
        6,
        way="threads",
        broker=False,
        no_retries=RUN_RETRIES,
        no_cancel=dict.fromkeys(KINDS, THREAD.format("asyncio.run")),
    ),
    "taskiq in memory": Kind(
        "taskiq",
        "on_taskiq",
        10,
        way="memory",
        broker=False,
        no_cancel={"sync": THREAD.format("taskiq")},
    ),
    "taskiq": Kind(
        "taskiq",
        "on_taskiq",
        20,
        command=TASKIQ,
        no_cancel={"sync": THREAD.format("taskiq")},
    ),
    "arq": Kind(
        "arq",
        "on_arq",
        10,
        command=("arq", "matrix.jobs.on_arq.WorkerSettings"),
        no_cancel={"sync": THREAD.format("arq")},
    ),
    "Celery prefork": Kind("celery", "on_celery", 3, command=(*CELERY, "-P", "prefork", "-c", "2")),
    "Celery threads": Kind(
        "celery",
        "on_celery",
        4,
        command=(*CELERY, "-P", "threads", "-c", "4"),
        no_cancel=dict.fromkeys(KINDS, THREAD.format("Celery")),
    ),
    "dramatiq": Kind(
        "dramatiq",
        "on_dramatiq",
        5,
        command=DRAMATIQ,
        no_cancel={"async": DRAMATIQ_WAITS.format("asyncio.run")},
        no_cancel_in_query={"sync": DRAMATIQ_WAITS.format("a driver")},
    ),
    "dramatiq AsyncIO": Kind(
        "dramatiq",
        "on_dramatiq",
        10,
        way="loop",
        command=DRAMATIQ,
        no_cancel_in_query={"sync": DRAMATIQ_WAITS.format("a driver")},
    ),
    "APScheduler background": Kind(
        "apscheduler",
        "on_apscheduler",
        10,
        broker=False,
        no_retries=NO_RETRIES.format("APScheduler"),
        no_cancel=dict.fromkeys(KINDS, THREAD.format("APScheduler")),
    ),
    "APScheduler asyncio": Kind(
        "apscheduler",
        "on_apscheduler",
        10,
        way="loop",
        broker=False,
        no_retries=NO_RETRIES.format("APScheduler"),
        no_cancel={"sync": THREAD.format("APScheduler")},
        cancel=shut_down,
    ),
    "rq": Kind("rq", "on_rq", 1, command=RQ),
    "rq simple": Kind("rq", "on_rq", 1, way="simple", command=RQ),
}


class Running:
    """A running worker, and what is known of it from outside."""

    def __init__(self, kind: Kind, folder: Path, witness: Engine) -> None:
        self.kind = kind
        self.folder = folder
        self.witness = witness
        self.id = f"asgi_sqla_test_{os.getpid()}_{next(numbers)}"
        self._log = folder / "log.txt"
        self._numbers = count(1)
        self.worker = self._start(self.id, *kind.command) if kind.command else None
        taker = f"{self.id}_orders" if kind.command else self.id
        self.orders = self._start(taker, f"matrix.jobs.{kind.module}")
        self._processes = [process for process in (self.orders, self.worker) if process is not None]
        self._stopping = False

    def _start(self, application: str, *command: str) -> subprocess.Popen[str]:
        url = make_url(postgresql_url()).update_query_dict({"application_name": application, "options": NOTICE})
        environment = {
            **os.environ,
            "ASGI_SQLA_TEST_URL": url.render_as_string(hide_password=False),
            "ASGI_SQLA_TEST_FOLDER": str(self.folder / "notes"),
            "ASGI_SQLA_TEST_WAY": self.kind.way,
            "ASGI_SQLA_TEST_QUEUE": self.id,
            "ASGI_SQLA_TEST_REDIS_URL": redis_url() or "redis://nowhere",
            "PYTHONPATH": python_path(TESTS),
            "PYTHONWARNINGS": "ignore",
        }
        with self._log.open("a") as log:
            return subprocess.Popen(
                [python_of(self.kind), "-m", *command],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """Everything that the worker printed."""
        return self._log.read_text()

    @property
    def died(self) -> bool:
        """Whether a process has ended that was not stopped."""
        return not self._stopping and any(process.poll() is not None for process in self._processes)

    def order(self, function: str, fate: str) -> str:
        """Request a job; return its name."""
        name = f"{function}-{next(self._numbers)}"
        stdin: IO[str] = self.orders.stdin  # type: ignore[assignment]  # a pipe
        try:
            stdin.write(f"{function}\t{name}\t{fate}\n")
            stdin.flush()
        except BrokenPipeError:
            pytest.fail(f"the worker takes no orders; it printed:\n{self.log[-6000:]}", pytrace=False)
        return name

    def notes(self, name: str) -> list[str]:
        """Return what a job wrote down."""
        path = self.folder / "notes" / name
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, what: Callable[[], bool], meaning: str) -> None:
        """Wait until ``what`` is true."""
        end = time.monotonic() + PATIENCE
        while not what():
            if time.monotonic() > end or self.died:
                pytest.fail(f"waited in vain: {meaning}; the worker printed:\n{self.log[-6000:]}", pytrace=False)
            time.sleep(0.02)

    def ended(self, name: str, attempts: int = 1) -> list[str]:
        """Wait until the job has ended that many times; return its notes."""
        self.wait_for(lambda: len(self.notes(name)) >= attempts, f"{name} has {self.notes(name)}")
        return self.notes(name)

    def rows(self, *names: str) -> list[str]:
        """Return which of ``names`` are in the database."""
        query = text("SELECT name FROM done WHERE name = ANY(:names) ORDER BY name")
        with self.witness.connect() as connection:
            return list(connection.execute(query, {"names": list(names)}).scalars())

    def connections(self, *states: str) -> int:
        """Return how many connections of the worker the server knows, in one of ``states`` or in any."""
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = :id "
            "AND (cardinality(CAST(:states AS text[])) = 0 OR state = ANY(:states))"
        )
        with self.witness.connect() as connection:
            return int(connection.execute(query, {"id": self.id, "states": list(states)}).scalar_one())

    def at_work(self) -> int:
        """Return how many connections run a statement, or are in a transaction."""
        return self.connections("active", "idle in transaction", "idle in transaction (aborted)")

    def stop(self) -> int:
        """Stop it as its operator would; return its exit code."""
        stdin: IO[str] = self.orders.stdin  # type: ignore[assignment]  # a pipe
        self._stopping = True
        stdin.close()
        code = self.orders.wait(PATIENCE)
        if self.worker is not None:
            self.worker.terminate()
            code = self.worker.wait(PATIENCE)
        return code

    def kill(self) -> None:
        """Kill what has not stopped by itself."""
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()


numbers = count(1)


def python_of(kind: Kind) -> str:
    """Return the interpreter of a worker: arq's requirements conflict with the others'."""
    return os.environ.get("ASGI_SQLA_TEST_ARQ_PYTHON", sys.executable) if kind.package == "arq" else sys.executable


def check_parts(kind: Kind) -> None:
    """Skip missing parts; in CI, fail."""
    if python_of(kind) == sys.executable and importlib.util.find_spec(kind.package) is None:
        missing(f"{kind.package} is not installed; the nox session matrix has it")
    if kind.broker and redis_url() is None:
        missing("no Redis: set ASGI_SQLA_TEST_REDIS_URL, or start one on 127.0.0.1:6379")


@pytest.fixture(scope="module")
def witness() -> Iterator[Engine]:
    """Return an engine of the jobs' database, with its one table."""
    engine = create_engine(make_url(postgresql_url()).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE done (name VARCHAR PRIMARY KEY)"))
    yield engine
    with engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'asgi_sqla_test_%'"
            )
        )
        connection.execute(text("DROP TABLE done"))


@pytest.fixture(scope="module")
def worker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, witness: Engine
) -> Iterator[Running]:
    """Run each worker in turn, for all the tests."""
    kind = WORKERS[request.param]
    check_parts(kind)
    folder = tmp_path_factory.mktemp("worker")
    (folder / "notes").mkdir()
    running = Running(kind, folder, witness)
    try:
        yield running
    finally:
        running.kill()
        if kind.broker:
            forget(running.id)
        with witness.begin() as connection:
            connection.execute(text("DELETE FROM done"))


def forget(queue: str) -> None:
    """Delete what a worker left in Redis."""
    from redis import Redis  # only where a broker is in use

    redis: Any = Redis.from_url(redis_url() or "")
    with redis:
        for key in redis.scan_iter(f"*{queue}*"):
            redis.delete(key)


pytestmark = pytest.mark.parametrize("worker", [pytest.param(name, id=f"<{name}>") for name in WORKERS], indirect=True)
kinds = pytest.mark.parametrize("kind", KINDS)
forms = pytest.mark.parametrize("form", FORMS)


@kinds
@forms
@pytest.mark.cell("Workers, {kind}", "{worker}", "{form}")
def test_a_job_commits(worker: Running, kind: str, form: str) -> None:
    """A job that succeeds has its row."""
    name = worker.order(f"{kind}_{form}", "commits")

    assert worker.ended(name) == ["done"]
    assert worker.rows(name) == [name]


@kinds
@forms
@pytest.mark.cell("Workers, {kind}", "{worker}", "fails")
def test_a_job_that_fails_leaves_nothing(worker: Running, kind: str, form: str) -> None:
    """A job that raises in every attempt leaves no row and no transaction."""
    attempts = 1 if worker.kind.no_retries else 2

    name = worker.order(f"{kind}_{form}", "fails")

    assert worker.ended(name, attempts) == ["Refused"] * attempts
    assert worker.rows(name) == []
    assert worker.at_work() == 0


@kinds
@forms
@pytest.mark.cell("Workers, {kind}", "{worker}", "retried")
def test_a_job_that_is_retried_commits_once(worker: Running, kind: str, form: str) -> None:
    """The row of the second attempt exists, and that of the first does not conflict with it."""
    if worker.kind.no_retries:
        not_applicable(worker.kind.no_retries)

    name = worker.order(f"{kind}_{form}", "fails once")

    assert worker.ended(name, 2) == ["Refused", "done"]
    assert worker.rows(name) == [name]


@kinds
@forms
@pytest.mark.parametrize("fate", ["cancelled", "cancelled in SQL"])
@pytest.mark.cell("Workers, {kind}", "{worker}", "{fate}")
def test_a_job_that_is_cancelled_leaves_nothing(worker: Running, kind: str, form: str, fate: str) -> None:
    """A job that its worker ends, between statements or during one, leaves no row and no transaction."""
    if kind in worker.kind.no_cancel:
        not_applicable(worker.kind.no_cancel[kind])
    if fate == "cancelled in SQL" and kind in worker.kind.no_cancel_in_query:
        not_applicable(worker.kind.no_cancel_in_query[kind])

    name = worker.order(f"{kind}_{form}", fate)
    assert worker.ended(name) == ["hangs"]
    if worker.kind.cancel is not None:
        worker.kind.cancel(worker)

    assert len(worker.ended(name, 2)) == 2
    assert worker.notes(name)[1] != "done"
    assert worker.rows(name) == []
    worker.wait_for(lambda: worker.at_work() == 0, f"{name} still has its connection")


@kinds
@pytest.mark.cell("Workers, {kind}", "{worker}", "at once")
def test_many_jobs_at_once(worker: Running, kind: str) -> None:
    """Each job gets its own answers and keeps its own row, and no connection exceeds the pools."""
    names = [worker.order(f"{kind}_with", "commits") for _ in range(24)]

    assert [worker.ended(name) for name in names] == [["done"]] * len(names)
    assert worker.rows(*names) == sorted(names)
    worker.wait_for(
        lambda: worker.connections() <= worker.kind.resting, f"{worker.connections()} connections are at rest"
    )


@pytest.mark.cell("Workers, stopping", "{worker}", "stops")
def test_a_worker_that_stops_leaves_no_connection(worker: Running) -> None:
    """It stops when it is told to, without an error about loops, and leaves no connection on the server."""
    worker.stop()

    worker.wait_for(lambda: worker.connections() == 0, f"{worker.connections()} connections are left")
    assert [line for line in worker.log.splitlines() if any(each in line for each in COMPLAINTS)] == []
