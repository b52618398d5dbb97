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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from anyio import to_thread
from sqlalchemy import Engine, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from asgi_sqla import Database, SQLAlchemyMiddleware, current_unit
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


class Settings(NamedTuple):
    """What the application is to be."""

    url: str
    kind: str
    retries: int
    engine_options: dict[str, Any]


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


def _set(session: Session, account: int, balance: Any) -> None:
    session.execute(update(Account).where(Account.id == account).values(balance=balance))


WORK: dict[str, Callable[[Session, dict[str, int]], None]] = {
    "/transfer": transfer,
    "/transfer-in-place": transfer_in_place,
    "/note": note,
}


class Bank:
    """The ASGI application: an order is a POST, and the answer is how many attempts it took."""

    def __init__(self, settings: Settings) -> None:
        self._kind = settings.kind
        self._database = Database(settings.url, engine_options=settings.engine_options)
        self.served = SQLAlchemyMiddleware(self, self._database, retries=settings.retries)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["path"] == "/out":
            await _answer(send, 200, self._out())
            return
        order = json.loads((await receive())["body"])
        work = WORK[scope["path"]]
        if self._kind == "sync":
            await to_thread.run_sync(self._work, work, order)
        else:
            await self._database.async_session.run_sync(work, order)
        await _answer(send, 201, current_unit().attempt)

    def _work(self, work: Callable[[Session, dict[str, int]], None], order: dict[str, int]) -> None:
        work(self._database.session, order)

    def _out(self) -> int:
        pools: list[Any] = [self._database.engine.pool, self._database.async_engine.pool]
        return sum(pool.checkedout() for pool in pools)


async def _answer(send: Any, status: int, number: int) -> None:
    body = b"%d" % number
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Answer(NamedTuple):
    """What a client was told."""

    status: int
    number: int


class Client:
    """The clients of one served bank, over real connections."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def order(self, path: str, orders: list[dict[str, int]]) -> dict[int, Answer]:
        """Send every order, ``CLIENTS`` at a time; return each one's answer by its identifier."""
        waiting = list(reversed(orders))
        answers: dict[int, Answer] = {}

        async def one() -> None:
            while waiting:
                order = waiting.pop()
                answers[order["id"]] = await self.ask("POST", path, json.dumps(order).encode())

        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        return answers

    async def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Send one request over a connection of its own."""
        reader, writer = await asyncio.open_connection(HOST, self._port)
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: bank\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.read()
        finally:
            writer.close()
        head, _, content = answer.decode().partition("\r\n\r\n")
        return Answer(int(head.split(" ", 2)[1]), int(content) if content.isdigit() else 0)

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
        [sys.executable, "-m", "benchmarks.bank", json.dumps(settings._asdict())],
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
    logging.disable(logging.ERROR)  # failures are what is measured, and answered
    asyncio.run(main(Settings(**json.loads(sys.argv[1]))))
