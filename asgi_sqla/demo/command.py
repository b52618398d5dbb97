"""The command: a shop on a temporary file behind a real server, the tour, and an exit code.

Holds: what is set up before the tour and removed after it.
Must not know: the steps.
"""

from __future__ import annotations

import asyncio
import platform
import signal
import socket
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from asgi_sqla import db
from asgi_sqla.demo.application import app as shop
from asgi_sqla.demo.report import BOLD, DIM, Report
from asgi_sqla.demo.server import HOST, listen, serving
from asgi_sqla.demo.tour import Tour
from asgi_sqla.demo.witness import Witness

POOL = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 1}


def run(port: int, *, serve: bool, app: Any = shop) -> int:
    """Take the tour of ``app``; return 0 if every promise was kept, 1 if not, and 2 if ``port`` is in use."""
    report = Report(sys.stdout)
    try:
        listener = listen(port)
    except OSError as exc:
        sys.stderr.write(f"port {port} is not available: {exc.strerror}; leave out --port for a free one\n")
        return 2
    with listener, tempfile.TemporaryDirectory(prefix="asgi_sqla_") as folder:
        path = Path(folder, "shop.db")
        db.configure(f"sqlite:///{path}", engine_options=POOL)
        asyncio.run(_visit(app, listener, serve=serve, witness=Witness(path), report=report))
    return 1 if report.broken else 0


async def _visit(app: Any, listener: socket.socket, *, serve: bool, witness: Witness, report: Report) -> None:
    port = listener.getsockname()[1]
    began = time.monotonic()
    async with serving(app, listener):
        _open(report, port)
        with witness.reading_the_log():
            await Tour(HOST, port, witness=witness, report=report).run()
        report.close(time.monotonic() - began)
        if serve:
            _invite(report, port)
            await _interrupted()
            report.line("\nThe server stops, and its database file is removed.")


def _open(report: Report, port: int) -> None:
    names = {"SQLAlchemy": "sqlalchemy", "FastAPI": "fastapi", "uvicorn": "uvicorn"}
    versions = ", ".join(f"{name} {version(package)}" for name, package in names.items())
    report.line("asgi_sqla: a tour of its promises", BOLD)
    report.line(f"Python {platform.python_version()}, {versions}", DIM)
    report.line(f"http://{HOST}:{port}, SQLite in a temporary file, 2 sync and 2 async connections", DIM)


def _invite(report: Report, port: int) -> None:
    report.line(f"\nThe shop is open at http://{HOST}:{port}/docs until you press Ctrl-C. Try:", BOLD)
    for line in (
        f"shop=http://{HOST}:{port}",
        "curl -i $shop/orders",
        "curl -i $shop/orders -H 'content-type: application/json' -d '{\"product\": 1}'",
        "curl -i $shop/orders -H 'content-type: application/json' -d '{\"product\": 404}'",
        "curl -s --limit-rate 50k $shop/catalogue -o /dev/null & sleep 1; curl $shop/connections",
        f"python -m websockets ws://{HOST}:{port}/till",
        '{"product": 1, "quantity": 2}',
    ):
        report.line(f"  {line}")


async def _interrupted() -> None:
    """Return at Ctrl-C, or at SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
