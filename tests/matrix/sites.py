"""A site: one application under one server, in its own process and with its own PostgreSQL database.

So PostgreSQL's list of connections and its statistics are the site's.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.pool import NullPool
from support.changed import python_path
from support.databases import Base, postgresql_url

HERE = Path(__file__).parent
PATIENCE = 10.0
"""Seconds to wait for an event that should happen at once."""
STARTING = 45.0
"""Seconds that a server has to start: a test ends after 120."""
CURSE = """
INSERT INTO owner (id) VALUES (500);
CREATE FUNCTION curse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the curse of the matrix'; END $$;
CREATE CONSTRAINT TRIGGER curse AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.owner_id = 500) EXECUTE FUNCTION curse();
"""
"""Makes the COMMIT of an item of owner 500 fail with an error that is not an IntegrityError."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Server:
    """A server that people use, and how it is started."""

    name: str
    command: tuple[str, ...]
    """What follows ``python -m``; ``{port}`` and ``{app}`` are filled in."""
    trio: bool = False

    def __str__(self) -> str:
        return self.name

    def arguments(self, port: int, app: str) -> list[str]:
        return [sys.executable, "-m", *(part.format(port=port, app=app) for part in self.command)]


UVICORN = ("uvicorn", "--port", "{port}", "--no-access-log", "--ws", "websockets-sansio", "{app}")
SERVERS = (
    Server("uvicorn asyncio", (*UVICORN, "--loop", "asyncio", "--http", "h11")),
    Server("uvicorn uvloop", (*UVICORN, "--loop", "uvloop", "--http", "httptools")),
    Server("hypercorn asyncio", ("hypercorn", "--bind", "127.0.0.1:{port}", "--worker-class", "asyncio", "{app}")),
    Server("hypercorn trio", ("hypercorn", "--bind", "127.0.0.1:{port}", "--worker-class", "trio", "{app}"), trio=True),
    Server("granian", ("granian", "--interface", "asgi", "--port", "{port}", "{app}")),
    Server("daphne", ("daphne", "-b", "127.0.0.1", "-p", "{port}", "{app}")),
)


@functools.cache
def template() -> URL:
    """Return the URL of a database with our tables, which is the template of others."""
    url = create_database(make_url(postgresql_url()), "matrix")
    engine = create_engine(url, poolclass=NullPool)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text(CURSE))
    return url


def create_database(server: URL, name: str, like: str = "template1") -> URL:
    """Create a database on ``server``, a copy of ``like``, and return its URL."""
    url = server.set(drivername="postgresql+psycopg")
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {like}"))
    return url.set(database=name)


def free_port() -> int:
    """Return a port that nothing listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Site:
    """A running server with its application; entering it starts the server, and leaving it stops the server."""

    def __init__(self, server: Server, app: str, folder: Path, **environment: str) -> None:
        self.server = server
        self.folder = folder
        self.log = folder / "log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        url = create_database(template(), f"site_{next(_numbers)}", "matrix")
        self.witness: Engine = create_engine(url, poolclass=NullPool)
        # A connection for each request: uvicorn closes one after an exception, unannounced.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE, limits=limits, verify=False)
        self._arguments = server.arguments(self.port, app)
        self._environment = {
            **os.environ,
            "PYTHONPATH": python_path(HERE.parent),
            "PYTHONUNBUFFERED": "1",
            "MATRIX_URL": url.set(drivername="postgresql").render_as_string(hide_password=False),
            "MATRIX_GATES": str(folder),
            **environment,
        }

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._arguments, env=self._environment, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )
        if not wait_until(lambda: self.process.poll() is not None or self._listens(), STARTING) or self.process.poll():
            self.process.kill()
            self.process.wait()
            self.client.close()
            raise RuntimeError(f"{self.server} did not start:\n{self.log.read_text()}")
        return self

    def __exit__(self, *_exc: object) -> None:
        self.client.close()
        self.stop()

    def _listens(self) -> bool:
        try:
            return self.client.get("/state").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """Ask the server to stop, as an operator does, and wait until it has."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def open_gate(self, name: str) -> None:
        """Let the requests that wait under that name continue."""
        (self.folder / name).touch()

    def post(self, path: str, name: str, **query: str | int) -> httpx.Response:
        """Post to ``path`` for the item ``name``."""
        return self.client.post(path, params={"name": name, **query})

    def get(self, path: str, name: str = "") -> httpx.Response:
        """Get ``path`` for the items whose names begin with ``name``."""
        return self.client.get(path, params={"name": name})

    def note(self, name: str) -> str | None:
        """Return what the application left under that name."""
        note: str | None = self.get("/state", name).json()["note"]
        return note

    def out(self) -> int:
        """Return how many connections are checked out of the application's pools."""
        return int(self.get("/state").json()["out"])

    def scalar(self, query: str, **values: Any) -> Any:
        """Ask PostgreSQL for one value, on a separate connection."""
        with self.witness.connect() as connection:
            return connection.execute(text(query), values).scalar_one()

    def names(self, prefix: str) -> list[str]:
        """Return the committed items whose names begin with ``prefix``, without it."""
        query = text("SELECT name FROM item WHERE name LIKE :prefix ORDER BY name")
        with self.witness.connect() as connection:
            return [name.removeprefix(prefix) for name in connection.execute(query, {"prefix": f"{prefix}%"}).scalars()]

    def connections(self, state: str = "%") -> int:
        """Return how many connections PostgreSQL lists besides the witness, in ``state``."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state LIKE :state "
            "AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        return int(self.scalar(query, state=state))

    def abandoned(self) -> int:
        """Return how many connections ended without a goodbye, as PostgreSQL counts them."""
        return int(self.scalar("SELECT sessions_abandoned FROM pg_stat_database WHERE datname = current_database()"))

    def logged(self) -> str:
        """Return everything that the server has printed."""
        return self.log.read_text(errors="replace")


def wait_until(true: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Wait until ``true()`` is true; return whether it became so."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
