"""The application of the runs under trouble: it moves money and writes rows, in a uvicorn of its own process.

``python -m benchmarks.bank SETTINGS`` serves until its standard input ends; it prints its port first.
Must not know: who calls it, or what becomes of the figures.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

from anyio import to_thread
from sqlalchemy import Engine, insert, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from asgi_sqla import ERROR_RESPONSES, Database, ErrorKind, SQLAlchemyMiddleware, current_unit
from benchmarks.contenders import ROOT
from benchmarks.traffic import HOST

ACCOUNTS, BALANCE = 10, 1_000
CLIENTS = 20


class Base(DeclarativeBase):
    """The tables."""


class Account(Base):
    """Where money is."""

    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    balance: Mapped[int]


class Audit(Base):
    """That a request was carried out; its identifier is the request's, so none is twice."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    source: Mapped[int]
    target: Mapped[int]
    amount: Mapped[int]


class Entry(Base):
    """That a request was carried out, once or twice."""

    __tablename__ = "entry"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


class Settings(NamedTuple):
    """What the application is to be."""

    url: str
    kind: str
    retries: int
    engine_options: dict[str, Any]
    database: Mapping[str, Any] = MappingProxyType({})
    """Other arguments of ``Database``."""
    middleware: Mapping[str, Any] = MappingProxyType({})
    """Other arguments of ``SQLAlchemyMiddleware``."""


def open_accounts(witness: Engine) -> None:
    """Make the tables anew, with the same balance in each account."""
    Base.metadata.drop_all(witness)
    Base.metadata.create_all(witness)
    with witness.begin() as connection:
        connection.execute(insert(Account), [{"id": number, "balance": BALANCE} for number in range(ACCOUNTS)])


def transfer(session: Session, order: dict[str, int]) -> None:
    """Read both balances, and write both: right only if nobody comes between."""
    source, target, amount = order["source"], order["target"], order["amount"]
    balances = dict(session.execute(select(Account.id, Account.balance).where(Account.id.in_((source, target)))).all())  # type: ignore[arg-type]  # rows are pairs
    _set(session, source, balances[source] - amount)
    _set(session, target, balances[target] + amount)
    session.add(Audit(**order))


def transfer_in_place(session: Session, order: dict[str, int]) -> None:
    """Have the database add and subtract, which locks one row after the other."""
    _set(session, order["source"], Account.balance - order["amount"])
    _set(session, order["target"], Account.balance + order["amount"])
    session.add(Audit(**order))


def note(session: Session, order: dict[str, int]) -> None:
    """Write one row."""
    session.add(Audit(**order))


def enter(session: Session, order: dict[str, int]) -> None:
    """Write one row, as often as it is called."""
    session.add(Entry(number=order["id"]))


def sleep(session: Session, order: dict[str, int]) -> None:
    """Keep a connection busy for so many milliseconds."""
    session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": order["amount"] / 1000})


def _set(session: Session, account: int, balance: Any) -> None:
    session.execute(update(Account).where(Account.id == account).values(balance=balance))


WORK: dict[str, Callable[[Session, dict[str, int]], None]] = {
    "/transfer": transfer,
    "/transfer-in-place": transfer_in_place,
    "/note": note,
    "/entry": enter,
    "/sleep": sleep,
}
DOUBT = 2
"""What the body of an error says if its COMMIT was sent and its answer never came."""


class Fate:
    """What became of the transactions of one request, over all its attempts: its callbacks tell, in doubt none does."""

    def __init__(self) -> None:
        self.open = 0

    def expect(self) -> None:
        """Wait to be told of one more attempt."""
        self.open += 1
        current_unit().on_commit(self._tell)
        current_unit().on_rollback(self._tell)

    def _tell(self) -> None:
        self.open -= 1


class Bank:
    """The ASGI application: an order is a POST, and the answer is how many attempts it took."""

    def __init__(self, settings: Settings) -> None:
        self._kind = settings.kind
        self._database = Database(settings.url, engine_options=settings.engine_options, **settings.database)
        answers = {**ERROR_RESPONSES, Exception: self._fail} | {
            kind: self._late if kind is ErrorKind.STATEMENT_TIMEOUT else self._fail for kind in ErrorKind
        }
        self._middleware = SQLAlchemyMiddleware(
            self, self._database, retries=settings.retries, error_responses=answers, **settings.middleware
        )
        self._slowest = 0.0
        self._log = _Last()
        logging.getLogger("asgi_sqla").addHandler(self._log)

    async def served(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request with its fate beside it."""
        scope["fate"] = Fate()
        scope["began"] = time.monotonic()
        await self._middleware(scope, receive, send)

    async def _fail(self, scope: Any, _receive: Any, send: Any) -> None:
        self._slowest = max(self._slowest, time.monotonic() - scope["began"])
        await _answer(send, 503, DOUBT if scope["fate"].open else 0)

    async def _late(self, _scope: Any, _receive: Any, send: Any) -> None:
        await _answer(send, 504, 0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        asked = {"/out": self._out, "/held": self._held, "/slowest": self._slowest_failure, "/nothing": int}
        if scope["path"] in asked:
            await _answer(send, 200, asked[scope["path"]]())
            return
        scope["fate"].expect()
        order = json.loads((await receive())["body"])
        work = WORK[scope["path"]]
        if self._kind == "sync":
            await to_thread.run_sync(self._work, work, order)
        else:
            await self._database.async_session.run_sync(work, order)
        await _answer(send, 201, current_unit().attempt)

    def _work(self, work: Callable[[Session, dict[str, int]], None], order: dict[str, int]) -> None:
        work(self._database.session, order)

    def _held(self) -> int:
        return self._log.held

    def _slowest_failure(self) -> int:
        """Return the microseconds that the slowest failure took, from its request to its answer."""
        return int(self._slowest * 1e6)

    def _out(self) -> int:
        pools: list[Any] = [self._database.engine.pool, self._database.async_engine.pool]
        return sum(pool.checkedout() for pool in pools)


class _Last(logging.Handler):
    """Hears how many units the last message of a full pool named as holders."""

    held = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one record."""
        if (said := record.getMessage()).startswith("a pool is exhausted"):
            self.held = said.count(" s")  # "POST /sleep (2.1 s)"


async def _answer(send: Any, status: int, number: int) -> None:
    body = b"%d" % number
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Answer(NamedTuple):
    """What a client was told."""

    status: int
    number: int
    seconds: float = 0.0
    """How long the client waited for it."""
    at: float = 0.0
    """When it came."""


class Client:
    """The clients of one served bank, over real connections."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def order(
        self, path: str, orders: list[dict[str, int]], answers: dict[int, Answer] | None = None
    ) -> dict[int, Answer]:
        """Send every order, ``CLIENTS`` at a time; return each one's answer by its identifier, as they come."""
        waiting = list(reversed(orders))
        answers = {} if answers is None else answers

        async def one() -> None:
            while waiting:
                order = waiting.pop()
                answers[order["id"]] = await self.ask("POST", path, json.dumps(order).encode())

        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        return answers

    async def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Send one request over a connection of its own."""
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: bank\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.read()
        finally:
            writer.close()
        head, _, content = answer.decode().partition("\r\n\r\n")
        now = time.monotonic()
        return Answer(int(head.split(" ", 2)[1]), int(content) if content.isdigit() else 0, now - began, now)

    async def out(self) -> int:
        """Return how many connections are out of the bank's pools."""
        return (await self.ask("GET", "/out")).number


def statuses(answers: dict[int, Answer]) -> Counter[int]:
    """Return how often each status was answered."""
    return Counter(answer.status for answer in answers.values())


@contextmanager
def served(settings: Settings) -> Iterator[Client]:
    """Run the bank in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bank", json.dumps(settings._asdict(), default=dict)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Client(int(process.stdout.readline()))
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def main(settings: Settings) -> None:
    """Serve until the standard input ends."""
    import uvicorn  # only this process needs it

    listener = socket.create_server((HOST, 0), backlog=512)
    config = uvicorn.Config(Bank(settings).served, interface="asgi3", log_config=None, timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    print(listener.getsockname()[1], flush=True)
    task = asyncio.create_task(server.serve([listener]))
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await task


if __name__ == "__main__":
    logging.getLogger().addHandler(logging.NullHandler())  # failures are what is measured, and answered
    asyncio.run(main(Settings(**json.loads(sys.argv[1]))))
