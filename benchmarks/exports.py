"""``python -m benchmarks.exports``: a million rows stream to a slow reader, and the server's memory stays flat.

A real uvicorn streams a table as CSV from a read-only unit, in a ``session_scope()`` of the body's generator, to a
reader of 5 MB a second. Its memory may grow by 30 MB at most over what it was when idle, and one connection is out
meanwhile. Then a reader hangs up half-way. At the end no connection may be out. Exits with 1 where that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, NamedTuple

from sqlalchemy import Engine, String, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asgi_sqla import Database, session_scope
from benchmarks.contenders import ROOT
from benchmarks.databases import postgresql
from benchmarks.report import command_line, finish, simple_table
from benchmarks.serializable import mariadb, with_driver

HOST = "127.0.0.1"
SECOND = 5_000_000
"""Bytes that the reader takes in a second."""
GROWTH = 30.0
"""MB that the server may grow."""
PART = 1_000
"""Rows that are fetched and sent at a time."""
ROWS = {
    "postgresql": "INSERT INTO exported SELECT n, md5(n::text) FROM generate_series(1, {}) n",
    "mysql": "INSERT INTO exported SELECT seq, md5(seq) FROM seq_1_to_{}",
}


class Base(DeclarativeBase):
    """The table."""


class Exported(Base):
    """A row of the export."""

    __tablename__ = "exported"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))


class Export(NamedTuple):
    """What came of one export."""

    title: str
    kind: str
    rows: int
    seconds: float
    idle: float
    grown: float
    """MB of the server's memory, over ``idle``, at its highest."""
    during: int
    """Connections that were out while the body was read."""
    out: int
    """Connections that were out at the end."""
    out_after_hanging_up: int

    @property
    def kept(self) -> bool:
        """Whether everything is as promised."""
        return self.grown <= GROWTH and (self.during, self.out, self.out_after_hanging_up) == (1, 0, 0)


class Exporter:
    """The application: ``/export`` streams the table, ``/pools`` says how many connections are out."""

    def __init__(self, url: str, kind: str) -> None:
        self.database = Database(url)
        self.kind = kind

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["path"] == "/pools":
            engines = self.database._reading.get("read")
            made = [] if engines is None else engines.existing()
            out = sum(one.pool.checkedout() for one in made)  # type: ignore[attr-defined]  # queue pools
            await self._start(send, b"application/json")
            await send({"type": "http.response.body", "body": str(out).encode()})
            return
        await self._start(send, b"text/csv")
        body = self.parts() if self.kind == "async" else self.parts_from_thread()
        watching = asyncio.create_task(self._gone(receive))
        try:
            async for part in body:
                await send({"type": "http.response.body", "body": part, "more_body": True})
                if watching.done():
                    return
            await send({"type": "http.response.body", "body": b""})
        finally:
            await body.aclose()  # type: ignore[attr-defined]  # both are generators
            watching.cancel()

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the table."""
        async with session_scope(self.database, read_only=True) as session:
            result = await session.stream(select(Exported.id, Exported.name).execution_options(yield_per=PART))
            async for rows in result.partitions():
                yield b"".join(b"%d,%s\n" % (row.id, row.name.encode()) for row in rows)

    def parts_in_thread(self) -> Iterator[bytes]:
        """Yield the table, by the sync session."""
        with session_scope(self.database, read_only=True) as session:
            result = session.execute(select(Exported.id, Exported.name).execution_options(yield_per=PART))
            for rows in result.partitions():
                yield b"".join(b"%d,%s\n" % (row.id, row.name.encode()) for row in rows)

    async def parts_from_thread(self) -> AsyncIterator[bytes]:
        """Yield what the sync session yields, each part from a thread."""
        parts = self.parts_in_thread()
        try:
            while (part := await asyncio.to_thread(next, parts, None)) is not None:
                yield part
        finally:
            await asyncio.to_thread(parts.close)  # type: ignore[attr-defined]  # a generator

    async def _start(self, send: Any, kind: bytes) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


class Served(NamedTuple):
    """The exporter in a process of its own."""

    pid: int
    port: int

    def memory(self, what: str) -> float:
        """Return MB of ``VmRSS`` or, since ``forget``, of ``VmHWM``."""
        found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1_000

    def forget(self) -> None:
        """Let ``VmHWM`` begin again."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    async def get(self, path: str, pace: int = 0, most: int = sys.maxsize) -> tuple[int, bytes]:
        """Return how many lines a response has and its last bytes; read ``pace`` bytes a second, ``most`` bytes."""
        reader, writer = await asyncio.open_connection(HOST, self.port, limit=2**16)
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        began, taken, lines, last = time.perf_counter(), 0, 0, b""
        while taken < most and (data := await reader.read(2**16)):
            taken, lines, last = taken + len(data), lines + data.count(b"\n"), data
            if pace:
                await asyncio.sleep(max(0.0, taken / pace - (time.perf_counter() - began)))
        writer.close()
        return lines, last

    async def out(self) -> int:
        """Return how many connections are out; wait a while for none."""
        for _ in range(100):
            out = int((await self.get("/pools"))[1])
            if out == 0:
                break
            await asyncio.sleep(0.05)
        return out


@contextmanager
def served(url: str, kind: str) -> Iterator[Served]:
    """Run the exporter until the block ends."""
    command = [sys.executable, "-m", "benchmarks.exports", "--serve", json.dumps([url, kind])]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield Served(process.pid, int(process.stdout.readline()))
        finally:
            process.kill()


async def export(title: str, witness: Engine, url: str, kind: str, rows: int) -> Export:
    """Export ``rows`` rows, and have another reader hang up half-way."""
    Base.metadata.drop_all(witness)
    Base.metadata.create_all(witness)
    with witness.begin() as connection:
        connection.execute(text(ROWS[witness.dialect.name].format(rows)))
    with served(url, kind) as server:
        await server.get("/export", most=2**20)  # so that everything is imported and connected
        await server.out()
        idle = server.memory("VmRSS")
        server.forget()
        began = time.perf_counter()
        reading = asyncio.create_task(server.get("/export", pace=SECOND))
        await asyncio.sleep(1)
        during = int((await server.get("/pools"))[1])
        lines, _ = await reading
        seconds = time.perf_counter() - began
        assert lines == rows, f"{lines} of {rows} lines came"
        grown = server.memory("VmHWM") - idle
        out = await server.out()
        await server.get("/export", pace=SECOND, most=rows * 38 // 2)
        return Export(title, kind, rows, seconds, idle, grown, during, out, await server.out())


def rst(exports: list[Export]) -> str:
    """Return the table."""
    head = ("database", "session", "rows", "seconds", "MB idle", "MB more", "out during", "out after", "hung up")
    rows = [
        (one.title, one.kind, f"{one.rows:,}", f"{one.seconds:.0f}", f"{one.idle:.0f}", f"{one.grown:.1f}")
        + (one.during, one.out, one.out_after_hanging_up)
        for one in exports
    ]
    return simple_table([head, *rows])


async def main(arguments: argparse.Namespace) -> int:
    """Run everything; return 1 if a promise was broken."""
    rows = 300_000 if arguments.short else 1_000_000
    exports = []
    with ExitStack() as stack:
        place = stack.enter_context(postgresql())
        cases = [
            ("PostgreSQL", place.witness, place.url, "async"),
            ("PostgreSQL", place.witness, place.sync_url, "sync"),
        ]
        if (witness := stack.enter_context(mariadb())) is not None:
            cases.append(("MariaDB", witness, with_driver(witness, "aiomysql"), "async"))  # asyncmy reads ahead
            cases.append(("MariaDB", witness, with_driver(witness, "pymysql"), "sync"))
        for title, engine, url, kind in cases:
            exports.append(await export(title, engine, url, kind, rows))
            print(exports[-1], file=sys.stderr, flush=True)
    return finish(rst(exports), exports, arguments)


async def serve(url: str, kind: str) -> None:
    """Serve until the process is killed."""
    import uvicorn  # only this process needs it

    listener = socket.create_server((HOST, 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(Exporter(url, kind), interface="asgi3", lifespan="off", log_config=None)
    await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        logging.disable(logging.ERROR)
        asyncio.run(serve(*json.loads(sys.argv[2])))
    else:
        sys.exit(asyncio.run(main(command_line(__doc__))))
