"""``python -m benchmarks.events``: event streams that each read and wrote hold nothing, and no event comes too early.

A real uvicorn serves, a raw client reads. First many streams are open at once: each has read and written once, has
sent its event, and is idle. None may hold a connection. Then one stream sends many events, each with an INSERT; its
reader looks for the row of each on another connection when it has the event. Exits with 1 where that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asgi_sqla import Database, SQLAlchemyMiddleware
from benchmarks.databases import postgresql

HOST = "127.0.0.1"


class Base(DeclarativeBase):
    """The table."""


class Event(Base):
    """An event."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Streams:
    """The application: ``/idle/7`` writes event 7 and waits; ``/all/1000`` writes and sends that many events."""

    def __init__(self, database: Database, kind: str) -> None:
        self.database = database
        self.kind = kind

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request with events."""
        what, number = scope["path"].strip("/").split("/")
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in range(int(number)) if what == "all" else [int(number)]:
            await self.write(event)
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % event, "more_body": True})
        while what == "idle" and (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b""})

    async def write(self, event: int) -> None:
        """Read and write once."""
        if self.kind == "async":
            await self.database.async_session.scalar(select(Event.id).limit(1))
            await self.database.async_session.execute(insert(Event).values(id=event))
        else:
            await asyncio.to_thread(self._write, event)

    def _write(self, event: int) -> None:
        self.database.session.scalar(select(Event.id).limit(1))
        self.database.session.execute(insert(Event).values(id=event))


class Found(NamedTuple):
    """What was seen."""

    kind: str
    idle: int
    """Streams that were open and idle, each after its event."""
    out: int
    """Connections that were out then."""
    in_transaction: int
    """Connections that the server says are in a transaction then."""
    events: int
    too_early: int
    """Events that their reader had before their row could be seen."""
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether everything is as promised."""
        return (self.out, self.in_transaction, self.too_early) == (0, 0, 0)


@contextmanager
def served(app: Any) -> Iterator[int]:
    """Serve ``app`` from a thread until the block ends; give the port."""
    with socket.create_server((HOST, 0), backlog=2048) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


async def ask(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a stream, and read its headers."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def event_of(reader: asyncio.StreamReader) -> int:
    """Return the next event of a stream."""
    chunk = await reader.readuntil(b"\n\n")
    return int(chunk.partition(b"data: ")[2])


async def observe(witness: Engine, url: str, kind: str, idle: int, events: int) -> Found:
    """Have ``idle`` streams open at once, then ``events`` events in one."""
    Base.metadata.drop_all(witness)
    Base.metadata.create_all(witness)
    database = Database(url, engine_options={"pool_size": 5, "max_overflow": 0, "pool_timeout": 120})
    streams = Streams(database, kind)
    began = time.perf_counter()
    with served(SQLAlchemyMiddleware(streams, database)) as port, witness.connect() as connection:
        opened = await asyncio.gather(*(ask(port, f"/idle/{-number}") for number in range(1, idle + 1)))
        told = [await event_of(reader) for reader, _ in opened]
        out = sum(one.out for one in database.pools())
        states = text("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
        in_transaction = int(connection.execute(states).scalar_one())
        assert sorted(told) == list(range(-idle, 0))
        for _, writer in opened:
            writer.close()
        reader, writer = await ask(port, f"/all/{events}")
        too_early = 0
        for _ in range(events):
            event = await event_of(reader)
            connection.rollback()
            too_early += connection.scalar(select(Event.id).where(Event.id == event)) is None
        writer.close()
    await database.async_dispose()
    return Found(kind, idle, out, in_transaction, events, too_early, round(time.perf_counter() - began, 1))


def main() -> int:
    """Run the command line; 0 if everything is as promised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description=__doc__)
    parser.add_argument("--short", action="store_true", help="100 streams and 100 events")
    number = 100 if parser.parse_args().short else 1_000
    with postgresql() as place:
        found = [
            asyncio.run(observe(place.witness, url, kind, number, number))
            for kind, url in (("async", place.url), ("sync", place.sync_url))
        ]
    for one in found:
        print(one)
    return int(not all(one.kept for one in found))


if __name__ == "__main__":
    raise SystemExit(main())
