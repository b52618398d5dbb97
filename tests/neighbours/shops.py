"""The blocks of the README as files, and the shop that they serve: in this process, or in one of its own."""

from __future__ import annotations

import functools
import importlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from matrix.sites import create_database, free_port
from sqlalchemy import Engine, make_url, text
from support.databases import postgresql_url
from support.servers import PATIENCE, Server, wait_until

README = Path(__file__).parent / "README.rst"
SECTION = re.compile(r"^(\w[^\n]*)\n(?:={3,}|-{3,})\n(.*?)(?=^\w[^\n]*\n-{3,}\n|\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^\.\. code-block:: python\n\n((?:    [^\n]*\n|\n)+)", re.MULTILINE)
DEFERRED = """
DO $$ DECLARE one record; BEGIN
    FOR one IN SELECT conrelid::regclass AS owner, conname, pg_get_constraintdef(oid) AS said
        FROM pg_constraint WHERE contype = 'u' AND connamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.owner, one.conname);
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I %s DEFERRABLE INITIALLY DEFERRED',
                       one.owner, one.conname, one.said);
    END LOOP;
END $$
"""
"""Makes every unique constraint a deferred one."""
STARTING = 120.0
"""Seconds that a process may need to import all that it serves, on a busy machine."""


def neighbour(title: str, distribution: str = "") -> pytest.MarkDecorator:
    """Return the mark that puts the outcome of a test into the row of a library, with the version tested."""
    row = f"{title} {version(distribution)}" if distribution else title
    return pytest.mark.cell("Neighbours", row, "promises")


def blocks() -> dict[str, str]:
    """Return the block of each library, by the title of its section; that of the whole is ``shop.py``."""
    found = {title: BLOCK.search(body) for title, body in SECTION.findall(README.read_text())}
    return {title: textwrap.dedent(block[1]) for title, block in found.items() if block}


def module_name(title: str) -> str:
    """Return what the block of a library is called as a module."""
    return "on_" + re.sub(r"\W", "_", title.lower())


@functools.cache
def database_url() -> str:
    """Return the URL of a PostgreSQL database that only these tests of this process use."""
    url = create_database(make_url(postgresql_url()), "neighbours")
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@dataclass
class Shop:
    """The shop in an empty folder and on an empty database, and a witness who looks at it from outside."""

    folder: Path
    patch: pytest.MonkeyPatch
    witness: Engine
    modules: list[ModuleType] = field(default_factory=list)

    def write(self, title: str) -> str:
        """Write ``shop.py`` and the block of a library, and return the name of its module."""
        name = module_name(title)
        found = blocks()
        (self.folder / "shop.py").write_text(found["With other libraries"])
        (self.folder / f"{name}.py").write_text(found[title])
        return name

    def load(self, title: str) -> Any:
        """Import the block of a library, make its tables, and return its module."""
        name = self.write(title)
        self.patch.syspath_prepend(self.folder)
        for one in ("shop", name):
            self.patch.delitem(sys.modules, one, raising=False)
        module = importlib.import_module(name)
        self.modules += [module, shop := importlib.import_module("shop")]
        metadata = module.SQLModel.metadata if hasattr(module, "SQLModel") else shop.Base.metadata
        metadata.create_all(self.witness)
        self.defer()
        return module

    def main(self, title: str, then: str = "") -> None:
        """Write ``main.py``, which serves the block of a library; ``then`` is added to it."""
        create = "import shop\nshop.Base.metadata.create_all(shop.db.engine)\n"
        (self.folder / "main.py").write_text(f"from {self.write(title)} import *\n{create}{then}")

    def defer(self) -> None:
        """Let PostgreSQL notice a second order of the same item at COMMIT, after every INSERT has gone well."""
        with self.witness.begin() as connection:
            connection.execute(text(DEFERRED))

    def items(self) -> list[str]:
        """Return the orders that are committed, as another connection sees them."""
        return self.rows("SELECT item FROM orders ORDER BY id")

    def rows(self, query: str) -> list[Any]:
        """Return the first column of every row."""
        with self.witness.connect() as connection:
            return list(connection.execute(text(query)).scalars())

    def write_row(self, statement: str) -> None:
        """Write what is there before the shop opens."""
        with self.witness.begin() as connection:
            connection.execute(text(statement))

    def dispose(self) -> None:
        """Close what the blocks have opened in this process."""
        for module in self.modules:
            if "db" in vars(module):
                module.db.dispose()
        self.witness.dispose()


@contextmanager
def served(app: Any) -> Iterator[httpx.Client]:
    """Serve ``app`` from a thread of this process, and yield a client."""
    with Server(app) as server, client_of(server.url) as client:
        yield client


@contextmanager
def served_by(python: str, folder: Path, **environment: str) -> Iterator[httpx.Client]:
    """Serve ``main:app`` of ``folder`` from a process of its own, run by ``python``, and yield a client."""
    port = free_port()
    command = [python, "-m", "uvicorn", "--port", str(port), "--no-access-log", "main:app"]
    log = folder / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, stdout=out, stderr=out)
    try:
        wait_until(lambda: "running on" in log.read_text() or server.poll() is not None, STARTING)
        with client_of(f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(PATIENCE)
        print(log.read_text())


def client_of(url: str) -> httpx.Client:
    """Return a client that connects for each request: uvicorn closes a connection after an exception, unannounced."""
    return httpx.Client(base_url=url, timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0))


def orders(client: httpx.Client, *items: str) -> list[int]:
    """Order each item, and return the statuses."""
    return [client.post("/orders", params={"item": item}).status_code for item in items]
