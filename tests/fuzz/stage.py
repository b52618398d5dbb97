"""What surrounds one program: its database, its threads, its client, and the task that cancels it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
from anyio import to_thread
from sqlalchemy import Insert, Select, insert, select
from support.asgi import Call, Message

from asgi_sqla import Database
from fuzz.ledger import Ledger, Thread, Write
from fuzz.programs import Program
from fuzz.witness import Called, Entry, values

LONGEST_CALL = 1.0
"""Seconds that a call in a thread that was left behind may take."""


class Client(Call):
    """A client in process: a message is sent at once, whatever is cancelled after that."""

    async def send(self, message: Message) -> None:
        await super().send(message)
        await asyncio.sleep(0)


class Stage:
    """Everything that the attempts at one program share."""

    def __init__(self, program: Program, database: Database, executor: ThreadPoolExecutor) -> None:
        self.program = program
        self.database = database
        self.executor = executor
        self.ledgers: list[Ledger] = []
        self.attempts = 0
        self.seen: list[BaseException] = []
        """Every exception that the application caught."""
        self.called: list[Called] = []
        self.left: list[Thread] = []
        """The threads whose tasks did not wait for them."""
        self.handler: Any = None
        """The last attempt at a request."""
        self.losing = False
        """Whether the next COMMIT loses its answer."""
        self.scope: anyio.CancelScope | None = None
        self.task: asyncio.Task[Any] | None = None
        self._running: list[threading.Event] = []
        self._cancelling: list[asyncio.Task[None]] = []

    def insert(self, write: Write) -> Insert:
        """Return the statement that writes a row."""
        return insert(Entry).values(values(self.program.seed, write, orphan=False))

    def select(self) -> Select[Any]:
        """Return a query, before which a session flushes."""
        return select(Entry).where(Entry.program == self.program.seed)

    async def in_thread(self, work: Callable[[Thread], Any]) -> Any:
        """Call ``work`` in a worker thread; when cancelled, wait for it as anyio does, or leave it as asyncio does."""
        thread = Thread()
        ended = threading.Event()

        def run() -> Any:
            try:
                return work(thread)
            finally:
                ended.set()

        try:
            if self.program.abandons:
                future = self.executor.submit(contextvars.copy_context().run, run)
                return await asyncio.wrap_future(future)
            result = await to_thread.run_sync(run)
            await asyncio.sleep(0)  # where anyio tells of a cancellation that came meanwhile
        except asyncio.CancelledError:
            if not ended.is_set():  # a task.cancel() does that to anyio, too
                thread.left = True
                self.left.append(thread)
                self._running.append(ended)
            raise
        return result

    def cancel_at(self, step: int) -> None:
        """Cancel the program soon, if this is the step for that."""
        cancellation = self.program.cancellation
        if cancellation is not None and cancellation.step == step and self.attempts == 1:
            self._cancelling.append(asyncio.create_task(self._cancel()))

    async def _cancel(self) -> None:
        cancellation = self.program.cancellation
        assert cancellation is not None
        for _ in range(cancellation.times):
            if cancellation.seconds:
                await asyncio.sleep(cancellation.seconds)
            for _ in range(cancellation.turns):
                await asyncio.sleep(0)
            if cancellation.how == "anyio" and self.scope is not None:
                self.scope.cancel()
            elif self.task is not None:
                self.task.cancel()

    async def clear(self) -> None:
        """Wait for everything that the program has left running."""
        for task in self._cancelling:
            task.cancel()
        await asyncio.gather(*self._cancelling, return_exceptions=True)
        for ended in self._running:  # one that was cancelled before it began never ends
            await asyncio.get_running_loop().run_in_executor(None, ended.wait, LONGEST_CALL)
