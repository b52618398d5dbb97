"""Whatever a request does, and however it ends, the table contains what the model says."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from anyio import to_thread
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from sqlalchemy import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction
from support.asgi import Call, respond
from support.databases import NO_OWNER, Backend, Item, empty

from asgi_sqla import Database, SQLAlchemyMiddleware

Script = Callable[[Session], object]
Step = Callable[[Any], Awaitable[object]]


class RefusedError(Exception):
    """The exception of the model's handler."""


async def refuse(_send: Any) -> None:
    raise RefusedError


async def leave(_send: Any) -> bool:
    return True


BUDGET = 5.0
"""Seconds after which no further run starts: a busy machine plays fewer of them."""
MOST_RUNS = 40

STATUSES = [200, 201, 303, 404, 500]


@dataclass
class Level:
    """The writes in a transaction, or in a savepoint in it, and whether its COMMIT must fail."""

    names: set[str] = field(default_factory=set)
    fails: bool = False
    savepoint: SessionTransaction | None = None


class Requests(RuleBasedStateMachine):
    """Requests, one after the other, beside a model of what each leaves in the table."""

    backend: Backend
    kind: str

    def __init__(self) -> None:
        super().__init__()
        empty(self.backend.witness)
        self.runner = asyncio.Runner()
        self.database = Database(self.backend.url)
        self.committed: set[str] = set()
        self.written = 0
        self.task: asyncio.Task[Call] | None = None

    may_end = precondition(lambda self: self.task is not None and self.left <= 0)
    running = precondition(lambda self: self.task is not None)
    sound = precondition(lambda self: self.task is not None and not self.aborted)
    nested = precondition(lambda self: self.task is not None and len(self.levels) > 1)
    sound_and_nested = precondition(lambda self: self.task is not None and len(self.levels) > 1 and not self.aborted)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Do one step after the other, until one returns True."""
        while not await (await self.steps.get())(send):
            self.done.set()

    def do(self, step: Step) -> None:
        """Let the running request do ``step``, and wait until it is done."""
        self.left -= 1

        async def run() -> None:
            self.done.clear()
            self.steps.put_nowait(step)
            assert self.task is not None
            waiter = asyncio.ensure_future(self.done.wait())
            await asyncio.wait((waiter, self.task), return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()

        self.runner.run(run())

    def execute(self, script: Script) -> bool:
        """Let the running request run ``script`` on its session; return whether the database accepted it."""
        failures: list[DBAPIError] = []

        async def step(_send: Any) -> None:
            try:
                if self.kind == "sync":
                    await to_thread.run_sync(lambda: script(self.database.session))
                else:
                    await self.database.async_session.run_sync(script)
            except DBAPIError as exc:
                failures.append(exc)

        self.do(step)
        return not failures

    def expect(self, starts: list[int], raised: type[BaseException] | None) -> None:
        """Wait for the end of the request, and check its result."""

        async def ended() -> Call:
            assert self.task is not None
            return await asyncio.wait_for(self.task, 10)

        call = self.runner.run(ended())
        self.task = None
        assert call.starts == starts
        assert isinstance(call.raised, raised or type(None))
        assert self.backend.names() == sorted(self.committed)

    def take(self) -> None:
        """Record everything pending as committed."""
        self.committed.update(*(level.names for level in self.levels))

    @precondition(lambda self: self.task is None)
    @rule(writes=st.integers(0, 2), steps=st.integers(0, 4))
    def begin(self, writes: int, steps: int) -> None:
        self.left = 0
        """The least number of steps after its first writes; otherwise most requests would end without rows."""
        self.levels = [Level()]
        self.aborted = False

        async def start() -> None:
            self.steps: asyncio.Queue[Step] = asyncio.Queue()
            self.done = asyncio.Event()
            self.task = asyncio.create_task(Call(SQLAlchemyMiddleware(self.app, self.database))())

        self.runner.run(start())
        for _ in range(writes):
            self.write(orphan=False)
        self.left = steps

    @sound
    @rule(orphan=st.sampled_from([False, False, False, True]))
    def write(self, orphan: bool) -> None:
        self.written += 1
        name = f"item {self.written:04}"
        values = {"name": name, "owner_id": NO_OWNER if orphan else None}
        assert self.execute(lambda session: session.execute(insert(Item).values(values)))
        self.levels[-1].names.add(name)
        self.levels[-1].fails |= orphan

    @sound
    @rule()
    def write_what_fails(self) -> None:
        assert not self.execute(lambda session: session.execute(insert(Item).values(name=None)))
        self.aborted = self.backend.is_postgresql  # there a failed statement costs the transaction

    @sound
    @rule()
    def open_savepoint(self) -> None:
        level = Level()

        def script(session: Session) -> None:
            level.savepoint = session.begin_nested()

        assert self.execute(script)
        self.levels.append(level)

    @sound_and_nested
    @rule()
    def release_savepoint(self) -> None:
        level = self.levels.pop()
        assert self.execute(lambda _session: level.savepoint and level.savepoint.commit())
        self.levels[-1].names |= level.names
        self.levels[-1].fails |= level.fails

    @nested
    @rule()
    def roll_back_savepoint(self) -> None:
        level = self.levels.pop()
        assert self.execute(lambda _session: level.savepoint and level.savepoint.rollback())
        self.aborted = False

    @running
    @rule(commit=st.booleans())
    def end_by_hand(self, commit: bool) -> None:
        if commit:
            self.commit_by_hand()
        else:
            self.roll_back_by_hand()

    def commit_by_hand(self) -> None:
        committed = self.execute(lambda session: session.commit())
        assert committed is not (self.aborted or any(level.fails for level in self.levels))
        if committed:
            self.take()
            self.levels = [Level()]
        else:
            self.roll_back_by_hand()

    def roll_back_by_hand(self) -> None:
        assert self.execute(lambda session: session.rollback())
        self.levels = [Level()]
        self.aborted = False

    @may_end
    @rule(how=st.sampled_from([*STATUSES, "raise", "return", "be cancelled"]))
    def end(self, how: int | str) -> None:
        if isinstance(how, int):
            self.answer(how)
        elif how == "raise":
            self.do(refuse)
            self.expect([], RefusedError)
        elif how == "return":
            self.do(leave)
            self.expect([], None)
        else:
            self.cancel()

    def answer(self, status: int) -> None:
        fails = status < 400 and (self.aborted or any(level.fails for level in self.levels))
        if status < 400 and not fails:
            self.take()

        async def step(send: Any) -> bool:
            await respond(send, status)
            return True

        self.do(step)
        self.expect([500 if fails else status], DBAPIError if fails else None)

    def cancel(self) -> None:
        assert self.task is not None
        self.task.cancel()
        self.expect([], asyncio.CancelledError)

    def teardown(self) -> None:
        if self.task is not None:
            self.cancel()

        async def dispose() -> int:
            pools = [self.database.engine.pool, self.database.async_engine.pool]
            await self.database.async_dispose()
            return sum(pool.checkedout() for pool in pools)  # type: ignore[attr-defined]  # both are queue pools

        out = self.runner.run(dispose())
        self.runner.close()
        assert out == 0


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_any_sequence_of_events(backend: Backend, kind: str) -> None:
    """Begin, write, savepoint, failing write, commit, cancel and response happen in any order."""
    until = time.monotonic() + BUDGET
    for number in range(MOST_RUNS):
        machine = type("Machine", (Requests,), {"backend": backend, "kind": kind})
        # Each run has examples of its own; in CI they are the same each time.
        run_state_machine_as_test(
            seed(number)(machine) if "CI" in os.environ else machine,
            settings=settings(
                max_examples=2,
                stateful_step_count=40,
                deadline=None,
                database=None,
                phases=[Phase.generate],  # to shrink takes minutes; delete this line to see the least example
                suppress_health_check=list(HealthCheck),
            ),
        )
        if time.monotonic() > until:
            break
