"""``python -m benchmarks.serializable``: clients move money at once, with retries and without.

Ten accounts, 20 clients, and every transfer is one HTTP request to a real uvicorn: under SERIALIZABLE on
PostgreSQL, with locks taken in any order on MariaDB, with deferred transactions on SQLite. With retries no
client may see anything but 201; with or without, no money may come or go, and each transfer that was
answered 201 must be in the books exactly once. Exits with 1 where that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Engine, create_engine, func, make_url, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from benchmarks.bank import (
    ACCOUNTS,
    BALANCE,
    CLIENTS,
    Account,
    Answer,
    Audit,
    Settings,
    open_accounts,
    served,
    statuses,
)
from benchmarks.databases import postgresql, sqlite
from benchmarks.report import command_line, finish, simple_table

RETRIES = 50
"""Twice what 20 clients who all want the same ten rows were seen to need; the table says what they did."""
POOL = {"pool_size": CLIENTS, "max_overflow": 0}


class Case(NamedTuple):
    """One database, and the trouble it is in."""

    title: str
    path: str
    witness: Engine
    urls: dict[str, str]
    engine_options: dict[str, Any]
    database: dict[str, Any]
    """Other arguments of the bank's ``Database``."""


class Outcome(NamedTuple):
    """What came of one run."""

    title: str
    kind: str
    retries: int
    requests: int
    created: int
    again: int
    """How many attempts there were beyond the first ones."""
    most: int
    """The most attempts of one request."""
    sum_kept: bool
    once: bool
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether everything is as promised."""
        return self.sum_kept and self.once and (self.retries == 0 or self.created == self.requests)


def orders(count: int) -> list[dict[str, int]]:
    """Return ``count`` transfers between any two accounts, the same ones each time."""
    lot = random.Random(5)  # noqa: S311  # money of ours
    made = []
    for number in range(count):
        source, target = lot.sample(range(ACCOUNTS), 2)
        made.append({"id": number, "source": source, "target": target, "amount": lot.randint(1, 9)})
    return made


async def run(case: Case, kind: str, retries: int, requests: int) -> Outcome:
    """Have every transfer done, and look at the books."""
    open_accounts(case.witness)
    options = {**POOL, **case.engine_options}
    with served(Settings(case.urls[kind], kind, retries, options, case.database)) as client:
        start = time.monotonic()
        answers = await client.order(case.path, orders(requests))
        seconds = time.monotonic() - start
    created = statuses(answers)[201]
    attempts = [answer.number for answer in answers.values() if answer.status == 201]
    sum_kept, once = _books(case.witness, answers)
    most, again = max(attempts, default=0), sum(attempts) - created
    return Outcome(case.title, kind, retries, requests, created, again, most, sum_kept, once, seconds)


def _books(witness: Engine, answers: dict[int, Answer]) -> tuple[bool, bool]:
    """Return whether the sum is what it was, and whether exactly the transfers answered 201 were done, once each."""
    with witness.connect() as connection:
        total = connection.scalar(select(func.sum(Account.balance)))
        balances = dict(connection.execute(select(Account.id, Account.balance)).all())  # type: ignore[arg-type]  # rows are pairs
        audits = connection.execute(select(Audit)).all()
    expected = dict.fromkeys(range(ACCOUNTS), BALANCE)
    for audit in audits:
        expected[audit.source] -= audit.amount
        expected[audit.target] += audit.amount
    promised = sorted(number for number, answer in answers.items() if answer.status == 201)
    return total == ACCOUNTS * BALANCE, balances == expected and sorted(audit.id for audit in audits) == promised


@contextmanager
def cases(database: dict[str, Any]) -> Iterator[list[Case]]:
    """Start the databases; ``database`` is other arguments of the bank's ``Database``."""
    with postgresql() as place, sqlite() as file, mariadb() as maria:
        level = {"isolation_level": "SERIALIZABLE"}
        urls = {"async": place.url, "sync": place.sync_url}
        found = [Case("PostgreSQL, SERIALIZABLE", "/transfer", place.witness, urls, level, database)]
        if maria is not None:
            urls = {kind: with_driver(maria, driver) for kind, driver in (("async", "asyncmy"), ("sync", "pymysql"))}
            found.append(Case("MariaDB, lock order", "/transfer-in-place", maria, urls, {}, database))
        urls = {"async": file.url, "sync": file.sync_url}
        found.append(Case("SQLite, deferred", "/transfer", file.witness, urls, {}, database))
        yield found


@contextmanager
def mariadb() -> Iterator[Engine | None]:
    """Make a database in the MariaDB that is there; where there is none say so, and fail if ``CI`` is set."""
    url = make_url(os.environ.get("ASGI_SQLA_TEST_MARIADB_URL") or "mysql://root@127.0.0.1:3306/test")
    server = create_engine(url.set(drivername="mysql+pymysql"), poolclass=NullPool)
    name = f"asgi_sqla_bench_{os.getpid()}"
    try:
        with server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except OperationalError as exc:
        if os.environ.get("CI"):
            raise
        print(f"no MariaDB: {exc.orig}", file=sys.stderr)
        yield None
        return
    try:
        yield create_engine(server.url.set(database=name), poolclass=NullPool)
    finally:
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name}"))


def with_driver(witness: Engine, driver: str) -> str:
    """Return the URL of MariaDB's database under another driver."""
    return witness.url.set(drivername=f"mysql+{driver}").render_as_string(hide_password=False)


def rst(outcomes: list[Outcome]) -> str:
    """Return the table of the runs."""
    head = ("database", "sessions", "retries", "requests", "201", "other answers", "retried", "most attempts")
    rows = [
        (
            *(one.title, one.kind, one.retries or "none", one.requests, one.created, one.requests - one.created),
            *(one.again, one.most, "yes" if one.sum_kept else "NO", "yes" if one.once else "NO", f"{one.seconds:.1f}"),
        )
        for one in outcomes
    ]
    return simple_table([(*head, "sum kept", "each once", "seconds"), *rows])


async def main(arguments: argparse.Namespace) -> int:
    """Run everything; return 1 if a promise was broken."""
    requests = 200 if arguments.short else 2_000
    outcomes = []
    with cases(arguments.database) as all_cases:
        for case in all_cases:
            for kind in ("async", "sync"):
                for retries in (RETRIES, 0):
                    outcomes.append(await run(case, kind, retries, requests))
                    print(outcomes[-1], file=sys.stderr, flush=True)
    return finish(rst(outcomes), outcomes, arguments)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(command_line(__doc__, bank=True))))
