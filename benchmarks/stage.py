"""The process of one contender: holds its application, and does what it is told line by line.

``python -m benchmarks.stage MODULE URL POOL LOOP`` reads a JSON command from each line of its standard
input and writes a JSON answer to its standard output.
Must not know: which contender it is, or what the others do.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import platform
import socket
import sys
import threading
import time
from collections import Counter
from importlib import import_module
from importlib.metadata import version
from typing import Any, TextIO

from sqlalchemy import Connection, Engine, event

from benchmarks.calls import Client, Lifespan

ALWAYS = ("sqlalchemy", "asyncpg", "psycopg", "starlette", "uvicorn")


class Stage:
    """One contender on its event loop."""

    def __init__(self, module: Any, url: str, pool: dict[str, Any], answers: TextIO) -> None:
        self._answers = answers
        self._module = module
        self._client = Client(module.make(url, pool))
        self._collections = [0, 0, 0]
        gc.callbacks.append(self._collected)

    async def run(self) -> None:
        """Obey until the input ends."""
        async with Lifespan(self._client):
            while line := await asyncio.to_thread(sys.stdin.readline):
                command = json.loads(line)
                answer = await getattr(self, command.pop("do"))(**command)
                print(json.dumps(answer), file=self._answers, flush=True)

    async def versions(self) -> dict[str, str]:
        """Return what is installed here."""
        names = dict.fromkeys((*self._module.LIBRARIES, *ALWAYS))
        return {"python": platform.python_version(), **{name: version(name) for name in names}}

    async def round(self, path: str, requests: int) -> dict[str, Any]:
        """Make ``requests`` in process, one after the other; return microseconds for each, and the statuses."""
        client = self._client
        client.statuses.clear()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(requests):
            await client(path)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return {
            "wall": wall / requests * 1e6,
            "cpu": cpu / requests * 1e6,
            "statuses": Counter(client.statuses),
        }

    async def status(self, path: str) -> int:
        """Make one request in process and return its status."""
        return await self._client.status(path)

    async def blocks(self, path: str) -> bool:
        """Make one request in process; return whether a sync COMMIT ran on the event loop, which waited for it."""
        on_loop: list[bool] = []

        def note(connection: Connection) -> None:
            on_loop.append(not connection.dialect.is_async and threading.current_thread() is threading.main_thread())

        event.listen(Engine, "commit", note)
        await self._client.status(path)
        event.remove(Engine, "commit", note)
        return any(on_loop)

    async def collections(self) -> list[int]:
        """Return how often the collector has run, by the generation it looked at."""
        return self._collections

    def _collected(self, phase: str, told: dict[str, int]) -> None:
        self._collections[told["generation"]] += phase == "stop"

    async def freeze(self) -> None:
        """Hide from the collector what the application has made when it started."""
        gc.freeze()

    async def unfreeze(self) -> None:
        """Show it again."""
        gc.unfreeze()

    async def serve(self) -> int:
        """Serve on a loopback port with uvicorn, one worker; return the port."""
        import uvicorn  # only now: not every measurement needs it

        # With its protocol, or asyncio would not switch off Nagle's delay.
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen(2048)
        config = uvicorn.Config(
            self._client.app, loop="none", log_level="critical", access_log=False, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # ours stay
        self._serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event to wait for
            await asyncio.sleep(0.01)
        port: int = listening.getsockname()[1]
        return port


def main() -> None:
    """Run the contender that the command line names."""
    logging.disable(logging.CRITICAL)  # a peer that logs each failure is not to be judged by the terminal
    name, url, pool, loop = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not come between the answers
    module = import_module(f"benchmarks.peers.{name}")
    try:
        with asyncio.Runner(loop_factory=import_module(loop).new_event_loop) as runner:
            runner.run(Stage(module, url, json.loads(pool), answers).run())
    finally:
        os._exit(0)  # slow readers may still be connected


if __name__ == "__main__":
    main()
