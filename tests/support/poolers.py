"""A real PgBouncer in transaction mode, before a PostgreSQL of the tests."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url

from support.servers import wait_until
from support.services import answers, missing
from support.wire import Connection, Wire

CONFIGURATION = """\
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {servers}
server_round_robin = 1
max_client_conn = 400
"""
"""With turns, so that the next transaction of a client has another session of the server wherever there are several."""


@dataclass(frozen=True)
class Pooler:
    """A running PgBouncer."""

    url: URL
    process: subprocess.Popen[bytes]

    def through(self, driver: str) -> str:
        """Return the URL of the database behind it."""
        return self.url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


@functools.cache
def start(url: str, servers: int) -> Pooler:
    """Start one before ``url`` with so many sessions of the server, once per process; it ends with the process."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        missing("no PgBouncer: install the package pgbouncer")
    parsed = make_url(url)
    host = str(parsed.query.get("host", parsed.host))
    folder = Path(tempfile.mkdtemp(prefix="asgi_sqla_pooler_"))
    file = folder / "pgbouncer.ini"
    command = [program, str(file)]
    if os.getuid() == 0:  # it refuses to run as root; the socket of the server may be open to its owner alone
        owner = Path(host).stat().st_uid if host.startswith("/") else pwd.getpwnam("nobody").pw_uid
        os.chown(folder, owner, -1)
        command[1:1] = ["-u", pwd.getpwuid(owner).pw_name]
    for _ in range(5):  # others may take the port first
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = free.getsockname()[1]
        port, user = parsed.port or 5432, parsed.username
        file.write_text(CONFIGURATION.format(host=host, port=port, user=user, listen=listen, servers=servers))
        file.chmod(0o644)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        if listens(process, listen):
            atexit.register(stop, process, folder, os.getpid())
            return Pooler(parsed.set(host="127.0.0.1", port=listen, query={}), process)
    raise AssertionError((folder / "log").read_text())


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until PgBouncer listens, or has ended; return whether it listens."""
    assert wait_until(lambda: process.poll() is not None or answers("127.0.0.1", port)), "PgBouncer does not listen"
    return process.poll() is None


def stop(process: subprocess.Popen[bytes], folder: Path, owner: int) -> None:
    """End PgBouncer with the process that started it, but not with one that was forked from it."""
    if os.getpid() == owner:
        process.terminate()
        shutil.rmtree(folder, ignore_errors=True)


class Losing(Wire):
    """A wire between a pooler and PostgreSQL that loses a connection when the answer to a statement arrives."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self.answer_to: bytes | None = None
        """What is in the statement."""
        self._losing: Connection | None = None

    def _forward(self, end: Any, connection: Connection) -> None:
        driver, _server = connection.ends
        if end is not driver and connection is self._losing:
            for one in connection.ends:
                self._selector.unregister(one)
                one.close()
            return
        if end is driver and self.answer_to is not None:
            with suppress(ConnectionError):  # which the wire then meets too
                if self.answer_to in end.recv(65_536, socket.MSG_PEEK):
                    self._losing, self.answer_to = connection, None
        super()._forward(end, connection)
