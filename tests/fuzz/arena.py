"""Where programs are played: one database and one event loop for many of them, so that none affects the next."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio
from sqlalchemy import Connection
from support.databases import PLAIN, Backend, connections_out

from asgi_sqla import ERROR_RESPONSES, Database, SQLAlchemyMiddleware, session_scope
from fuzz import statements
from fuzz.ledger import Ledger
from fuzz.player import Player, RefusedError
from fuzz.programs import Program, Step, draw
from fuzz.stage import Client, Stage
from fuzz.witness import Findings, Log, Witness, is_told, judge_callback, judge_rows, notes, settled

Commit: TypeAlias = Callable[[Connection], None]

LONGEST = 30.0
"""Seconds after which a program counts as waiting forever."""


def stacks() -> str:
    """Return where every thread and task of this process is."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        for task in asyncio.all_tasks():
            print(task.get_name(), file=file)
            awaited: Any = task.get_coro()
            while (frame := getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)) is not None:
                print(f"  {frame.f_code.co_filename}, line {frame.f_lineno}, {frame.f_code.co_name}", file=file)
                awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
            print(f"  {awaited!r}", file=file)
        file.seek(0)
        return file.read()


class Arena:
    """A database with its witness, and the programs that are played there one after the other."""

    def __init__(self, backend: Backend, kind: str, witness: Witness, executor: ThreadPoolExecutor) -> None:
        options: dict[str, Any] = {} if backend.is_postgresql else {"connect_args": {"timeout": 0.02}}
        self.backend = backend
        self.kind = kind
        self.witness = witness
        self.database = Database(backend.url, engine_options=options, pipelining=not PLAIN)
        self.executor = executor
        self.stage: Stage | None = None
        if backend.is_postgresql:
            self.database.listen("commit", self._lose)

    async def play(self, seed: int) -> tuple[Program, Findings]:
        """Play the program of ``seed``, and judge it."""
        program = draw(self.backend.name, self.kind, seed)
        stage = self.stage = Stage(program, self.database, self.executor)
        log = Log()
        logger = logging.getLogger("asgi_sqla")
        logger.addHandler(log)
        try:
            async with asyncio.timeout(LONGEST):
                failure = await self._perform(stage)
                await stage.clear()
        except BaseException as exc:
            exc.add_note(f"the program was {program}")
            if isinstance(exc, TimeoutError):
                exc.add_note(stacks())
            raise
        finally:
            logger.removeHandler(log)
        return program, self._judge(stage, log, failure)

    async def _perform(self, stage: Stage) -> BaseException | None:
        """Run the program in a task that can be cancelled in both ways; return its result."""
        work = {"request": self._request, "scope": self._scope, "function": self._function}[stage.program.place]

        async def run() -> None:
            with anyio.CancelScope() as stage.scope:
                await work(stage)

        if stage.program.kind == "sync" and stage.program.place != "request":
            future = asyncio.wrap_future(self.executor.submit(statements.drive, work(stage)))
            await asyncio.wait((future,))
            return future.exception()
        stage.task = asyncio.create_task(run())
        await asyncio.wait((stage.task,))
        return asyncio.CancelledError() if stage.task.cancelled() else stage.task.exception()

    async def _request(self, stage: Stage) -> None:
        program = stage.program

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            await Handler(stage, send, client).run()

        middleware = SQLAlchemyMiddleware(
            app, self.database, retries=program.retries, error_responses=ERROR_RESPONSES if program.mapped else None
        )
        client = Client(middleware)
        await client()
        handler = stage.handler
        assert handler is not None
        ledger = handler.player.ledger
        if not handler.settled:
            ledger.settle(promised=False)
        elif handler.whole and client.raised is None:
            ledger.settle(promised=True)
        elif not (handler.whole and isinstance(client.raised, asyncio.CancelledError)):
            ledger.settle(promised=False)
        # else: cancelled while its last work was committed, of which nobody is told anything
        if client.raised is not None:
            stage.seen.append(client.raised)
        if isinstance(client.raised, asyncio.CancelledError):
            raise client.raised

    async def _scope(self, stage: Stage) -> None:
        ledger, player = self._begin(stage)
        try:
            if player.place == "async":
                async with session_scope(self.database):
                    await play(player, stage)
            else:
                with session_scope(self.database):
                    await play(player, stage)
        except BaseException as exc:
            stage.seen.append(exc)
            ledger.settle(promised=False)
            raise
        ledger.settle(promised=True)

    async def _function(self, stage: Stage) -> None:
        scope = session_scope(self.database, retries=stage.program.retries)

        @scope
        async def function() -> None:
            await play(self._begin(stage)[1], stage)

        @scope
        def sync_function() -> None:
            statements.drive(play(self._begin(stage)[1], stage))

        try:
            if stage.program.kind == "async":
                await function()
            else:
                sync_function()
        except BaseException as exc:
            stage.seen.append(exc)
            for ledger in stage.ledgers:
                ledger.settle(promised=False)
            raise
        for ledger in stage.ledgers:
            ledger.settle(promised=ledger.attempt == stage.attempts)

    def _begin(self, stage: Stage) -> tuple[Ledger, Player]:
        stage.attempts += 1
        ledger = Ledger(stage.attempts)
        stage.ledgers.append(ledger)
        awaits = stage.program.kind == "async"
        return ledger, Player(stage, ledger, "async" if awaits else "plain", awaits=awaits)

    def _judge(self, stage: Stage, log: Log, failure: BaseException | None) -> Findings:
        sentences = [*log.sentences(), *notes(failure)]
        for exc in stage.seen:
            sentences += notes(exc)
        told = is_told(sentences)
        writes = [write for ledger in stage.ledgers for write in ledger.everything]
        if out := settled(lambda: connections_out(self.database)):
            return Findings(out=[f"{out} connections are checked out"])
        idle = self.witness.idle()
        rows = self.witness.rows(stage.program.seed)
        found = judge_rows(rows, writes, stage.attempts, told)
        for called in stage.called:
            found.lies += judge_callback(rows, called, told)
        if idle:
            found.idle.append(f"{idle} connections are idle in a transaction")
        return found

    def _lose(self, connection: Connection) -> None:
        """Apply the COMMIT that is about to be sent, and lose its connection before the answer."""
        if self.stage is None or not self.stage.losing:
            return
        self.stage.losing = False
        cursor = connection.connection.cursor()  # past the events of SQLAlchemy
        cursor.execute("SELECT pg_backend_pid()")
        row = cursor.fetchone()
        cursor.execute("COMMIT")
        cursor.close()
        assert row is not None
        self.witness.terminate(row[0])


class Handler:
    """The application of a request: one attempt at the program."""

    def __init__(self, stage: Stage, send: Any, client: Client) -> None:
        stage.attempts += 1
        stage.handler = self
        ledger = Ledger(stage.attempts)
        stage.ledgers.append(ledger)
        self.stage = stage
        self.player = Player(stage, ledger, "async" if stage.program.kind == "async" else "thread")
        self.settled = False
        """Whether the client holds the start of a response."""
        self.whole = False
        """Whether the body was sent whole and the application has returned."""
        self._sent_whole = False
        self._send = send
        self._client = client

    async def run(self) -> None:
        """Play the steps, and answer an exception if the program says so."""
        try:
            await self._play()
        except Exception as exc:
            self.stage.seen.append(exc)
            if not self.stage.program.on_error or self.settled:
                raise
            await self._start(self.stage.program.on_error)
            await self._body()
        self.whole = self._sent_whole

    async def _play(self) -> None:
        for index, step in enumerate(self.stage.program.steps):
            self.stage.cancel_at(index)
            if step.kind == "return":
                return
            if step.kind == "raise":
                raise RefusedError
            if step.kind == "body":
                await self._body()
            elif step.kind == "start":
                await self._start_caught(step)
            else:
                await self.player.do(step)

    async def _start_caught(self, step: Step) -> None:
        try:
            await self._start(int(step.value))
        except Exception as exc:
            self.stage.seen.append(exc)
            if not step.caught:
                raise
        except BaseException as exc:
            self.stage.seen.append(exc)
            if step.caught != "swallowed":
                raise

    async def _start(self, status: int) -> None:
        pending = self.player.ledger.pending
        try:
            await self._send({"type": "http.response.start", "status": status, "headers": []})
        except BaseException:
            for write in pending:
                write.offered = True
            raise
        finally:
            if self._client.starts and not self.settled:
                self.settled = True
                self.player.ledger.settle(promised=self._client.starts[0] < 400)

    async def _body(self) -> None:
        if not self.settled:
            return  # a body without a start is for the server to judge
        await self._send({"type": "http.response.body", "body": b""})
        self._sent_whole = True


async def play(player: Player, stage: Stage) -> None:
    """Play the steps of a scope, or of a function."""
    for index, step in enumerate(stage.program.steps):
        stage.cancel_at(index)
        if step.kind == "raise":
            raise RefusedError
        await player.do(step)


@asynccontextmanager
async def open_arena(backend: Backend, kind: str) -> AsyncIterator[Arena]:
    """Yield an arena, and remove it afterwards."""
    witness = Witness(backend)
    with ThreadPoolExecutor(8) as executor:
        arena = Arena(backend, kind, witness, executor)
        try:
            yield arena
        finally:
            await arena.database.async_dispose()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if others:  # SQLAlchemy closes what a cancellation has spoilt in tasks of its own
                await asyncio.wait(others, timeout=1)
            witness.close()


async def play_all(
    backend: Backend, kind: str, seeds: range, report: Callable[[Program, Findings], bool], commit: Commit | None = None
) -> int:
    """Play the program of each seed and report it, until ``report`` says that it is enough; return the last seed.

    ``commit`` is called before each COMMIT: it can make the database break a promise, for the fuzzer to find.
    """
    async with open_arena(backend, kind) as arena:
        if commit is not None:
            arena.database.listen("commit", commit)
        for seed in seeds:
            if not report(*await arena.play(seed)):
                return seed
    return seeds[-1]
