"""``python -m benchmarks.chaos``: connections are terminated while rows are written, and between requests.

Every request writes one row. What a client was told succeeded must be there, every row must belong to a write
that was tried, and at the end no connection may be out. Then every pooled connection is terminated between two
requests, as by a restart of the database: with retries none of the next 20 may fail, and no round trip may be
spent on asking whether a connection lives. Exits with 1 where that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError

from benchmarks.bank import CLIENTS, Audit, Client, Settings, open_accounts, served, statuses
from benchmarks.contenders import ROOT
from benchmarks.databases import postgresql
from benchmarks.report import command_line, finish, simple_table
from benchmarks.serializable import POOL, mariadb, with_driver

sys.path.append(str(ROOT / "tests"))
from support.wire import wire

RETRIES = 5
AFTER = 20
"""How many requests follow a restart."""
CREATED = 201
WARM = 40 * CLIENTS
"""How many requests come first, so that every connection has its statements prepared."""

POSTGRESQL = (
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = current_database() "
    "AND pid <> pg_backend_pid()"
)
MARIADB = "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"


class Server(NamedTuple):
    """A database server, and how to terminate a connection of it."""

    title: str
    witness: Engine
    urls: dict[str, str]
    connections: str
    terminate: str
    database: dict[str, Any]
    """Other arguments of the bank's ``Database``."""

    def kill(self, choose: Callable[[list[int]], list[int]]) -> int:
        """Terminate those connections that ``choose`` chooses; return how many."""
        killed = 0
        with self.witness.connect() as connection:
            for identifier in choose(list(connection.execute(text(self.connections)).scalars())):
                try:
                    connection.execute(text(self.terminate.format(identifier)))
                    killed += 1
                except DBAPIError:  # it has ended by itself
                    connection.rollback()
        return killed

    def rows(self) -> list[int]:
        """Return the identifier of every committed row."""
        with self.witness.connect() as connection:
            return list(connection.scalars(select(Audit.id)))


class Writing(NamedTuple):
    """What came of writing while connections are terminated."""

    title: str
    kind: str
    retries: int
    writes: int
    terminated: int
    told: int
    """How many writes were answered 201."""
    missing: int
    """How many of these have no row."""
    doubtful: int
    """How many rows there are of writes that were answered otherwise."""
    unknown: int
    """How many rows belong to no write."""
    out: int

    @property
    def kept(self) -> bool:
        """Whether everything is as promised."""
        return self.terminated > 0 and (self.missing, self.unknown, self.out) == (0, 0, 0)


class Restart(NamedTuple):
    """What came of a restart between requests."""

    title: str
    how: str
    terminated: int
    failed: int
    round_trips: str

    @property
    def kept(self) -> bool:
        """Whether everything is as promised."""
        return not self.how.startswith("retries") or self.failed == 0


def _orders(numbers: range) -> list[dict[str, int]]:
    return [{"id": number, "source": 0, "target": 0, "amount": 0} for number in numbers]


async def write_under_fire(server: Server, kind: str, retries: int, writes: int) -> Writing:
    """Write rows while connections are terminated at random, and compare what was told with what is there."""
    open_accounts(server.witness)
    with served(Settings(server.urls[kind], kind, retries, POOL, server.database)) as client:
        firing = asyncio.create_task(_fire(server))
        answers = await client.order("/note", _orders(range(writes)))
        firing.cancel()
        (killed,) = await asyncio.gather(firing)
        out = await client.out()
    rows = server.rows()
    told = {number for number, answer in answers.items() if answer.status == CREATED}
    return Writing(
        *(server.title, kind, retries, writes, killed, len(told)),
        missing=len(told - set(rows)),
        doubtful=len(set(rows).intersection(answers) - told),
        unknown=len(rows) - len(set(rows).intersection(answers)),
        out=out,
    )


async def _fire(server: Server) -> int:
    """Terminate connections until cancelled; return how many."""
    killed = 0
    lot = random.Random(5)  # noqa: S311  # chance, no secret
    try:
        while True:
            await asyncio.sleep(lot.uniform(0, 0.02))
            killed += await asyncio.to_thread(server.kill, lambda all_: lot.sample(all_, min(len(all_), 1)))
    except asyncio.CancelledError:
        return killed


async def restart(server: Server, kind: str, how: str, retries: int, **options: Any) -> Restart:
    """Terminate every pooled connection, and count how many of the next requests fail."""
    open_accounts(server.witness)
    with _counted(server.urls[kind]) as (counting, url):
        settings = Settings(url, kind, retries, {**POOL, **options}, server.database)
        return await _restarted(server, settings, how, counting)


async def _restarted(server: Server, settings: Settings, how: str, counting: Any) -> Restart:
    with served(settings) as c:
        await c.order("/note", _orders(range(WARM)))
        round_trips = await _round_trips(counting, c)
        terminated = server.kill(list)
        failed = 0
        for order in _orders(range(10_000, 10_000 + AFTER)):
            answers = await c.order("/note", [order])
            failed += statuses(answers)[CREATED] == 0
    return Restart(f"{server.title}, {settings.kind}", how, terminated, failed, round_trips)


async def _round_trips(counting: Any, client: Client) -> str:
    """Return the round trips of one request, where they can be counted."""
    if counting is None:
        return "not counted"
    before = counting.round_trips
    for order in _orders(range(1_000, 1_000 + AFTER)):
        await client.order("/note", [order])
    return f"{(counting.round_trips - before) / AFTER:g}"


@contextmanager
def _counted(url: str) -> Iterator[tuple[Any, str]]:
    if url.startswith("postgresql"):
        with wire(url) as counted:
            yield counted
    else:
        yield None, url


@contextmanager
def servers(database: dict[str, Any]) -> Iterator[list[Server]]:
    """Start the servers; ``database`` is other arguments of the bank's ``Database``."""
    with postgresql() as place, mariadb() as maria:
        urls = {"async": place.url, "sync": place.sync_url}
        terminate = "SELECT pg_terminate_backend({})"
        found = [Server("PostgreSQL", place.witness, urls, POSTGRESQL, terminate, database)]
        if maria is not None:
            urls = {kind: with_driver(maria, driver) for kind, driver in (("async", "asyncmy"), ("sync", "pymysql"))}
            found.append(Server("MariaDB", maria, urls, MARIADB, "KILL {}", database))
        yield found


def rst(writings: list[Writing], restarts: list[Restart]) -> str:
    """Return the tables of the runs."""
    head = ("database", "sessions", "retries", "writes", "terminated", "201", "missing")
    head += ("in doubt, applied", "unknown", "out")
    rows: list[tuple[Any, ...]] = [
        (*one[:2], one.retries or "none", one.writes, one.terminated, one.told, one.missing, one.doubtful)
        + (one.unknown, one.out)
        for one in writings
    ]
    after = ("database", "connections", "terminated", f"of {AFTER} failed", "round trips per write")
    return simple_table([head, *rows]) + "\n" + simple_table([after, *restarts])


async def main(arguments: argparse.Namespace) -> int:
    """Run everything; return 1 if a promise was broken."""
    writes = 200 if arguments.short else 2_000
    writings, restarts = [], []
    with servers(arguments.database) as all_servers:
        for server in all_servers:
            for kind in ("async", "sync"):
                for retries in (RETRIES, 0):
                    writings.append(await write_under_fire(server, kind, retries, writes))
                    print(writings[-1], file=sys.stderr, flush=True)
                restarts.append(await restart(server, kind, f"retries={RETRIES}", RETRIES))
                restarts.append(await restart(server, kind, "as they are", 0))
                restarts.append(await restart(server, kind, "pool_pre_ping", 0, pool_pre_ping=True))
                print(*restarts[-3:], sep="\n", file=sys.stderr, flush=True)
    return finish(rst(writings, restarts), (*writings, *restarts), arguments)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(command_line(__doc__, bank=True))))
