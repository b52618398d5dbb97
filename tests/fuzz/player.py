"""Plays one attempt at a program, step by step, and keeps the ledger of what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import anyio
from sqlalchemy import text

from asgi_sqla import current_unit, session_scope
from fuzz import statements
from fuzz.ledger import Fate, Ledger, Savepoint, Thread, Transaction, Write
from fuzz.programs import Step
from fuzz.stage import Stage
from fuzz.witness import TAKEN, Called, Entry, values

ANYIO = tuple(map(int, version("anyio").split(".")[:2]))
"""Before 4.16 it loses one of two cancellations that come in the same turn, and then spins for ever at a checkpoint."""


class RefusedError(Exception):
    """An exception that a program raises itself."""


class Player:
    """Plays steps with one kind of session: "plain" and "thread" are sync ones, the latter called from a loop."""

    def __init__(
        self, stage: Stage, ledger: Ledger, place: str, *, thread: Thread | None = None, awaits: bool = True
    ) -> None:
        self.stage = stage
        self.ledger = ledger
        self.place = place
        self.thread = thread
        self.awaits = awaits
        """Whether the unit of work may have async callbacks."""
        self.session = "async" if place == "async" else "sync"

    @property
    def transaction(self) -> Transaction:
        """What is pending in the session."""
        return self.ledger.transactions[self.session]

    async def play(self, steps: tuple[Step, ...]) -> None:
        """Play one step after the other."""
        for step in steps:
            await self.do(step)

    async def do(self, step: Step) -> None:
        """Play a step, and handle its exception as the program says."""
        try:
            action: Callable[[Step], Awaitable[None]] = getattr(self, f"_{step.kind}")
            await action(step)
        except Exception as exc:
            self._saw(exc)
            if not step.caught:
                raise
            if step.caught == "rolled back":
                await self._roll_back()
        except BaseException as exc:
            self._saw(exc)
            raise

    def _saw(self, exc: BaseException) -> None:
        self.ledger.troubled = True
        self.stage.seen.append(exc)

    async def perform(self, script: statements.Script) -> Any:
        """Let the session run ``script``."""
        database = self.stage.database
        if self.place == "plain":
            return script(database.session)
        if self.place == "thread":
            return await self.stage.in_thread(lambda _thread: script(database.session))
        return await database.async_session.run_sync(script)

    def _attempt(self, step: Step, *, raw: bool = False) -> Write:
        return self.ledger.attempt_write(f"step {step.number}", self.thread, raw=raw)

    async def _write(self, step: Step) -> None:
        write = self._attempt(step, raw=step.how == "on the driver's connection")
        script = statements.write(step.how, self.stage.program.seed, write, orphan=step.flag)
        await self._perform_write(write, script)
        self.ledger.wrote(write, self.session)

    async def _perform_write(self, write: Write, script: statements.Script) -> None:
        left = len(self.stage.left)
        try:
            await self.perform(script)
        finally:
            if len(self.stage.left) > left:  # its thread goes on with it, whatever follows
                write.thread = self.stage.left[-1]

    async def _fail(self, step: Step) -> None:
        if step.how == "pending":  # it fails at a flush that comes later
            write = self._attempt(step)

            def add(session: Any) -> None:
                write.entry = Entry(id=TAKEN, program=-1, attempt=0, name="again")
                session.add(write.entry)

            await self.perform(add)
            self.ledger.wrote(write, self.session)
        elif step.flag:
            savepoint = await self._begin_nested()
            try:
                await self.perform(statements.fail(step.how))
            except Exception:
                await self._finish(savepoint, keep=False)
                raise
            await self._finish(savepoint, keep=True)
        else:
            await self.perform(statements.fail(step.how))

    async def _savepoint(self, step: Step) -> None:
        if step.how == "begin":
            await self._begin_nested()
        elif step.how in ("release", "roll back"):
            if len(self.transaction.savepoints) > 1:
                await self._finish(self.transaction.savepoints[-1], keep=step.how == "release")
        else:
            write = self._attempt(step)
            where, _, what = step.how.partition(" ")
            make = statements.in_core_savepoint if where == "core" else statements.in_text_savepoint
            columns = values(self.stage.program.seed, write, orphan=False)
            sql = statements.INSERT.format(owner="NULL", **columns)
            await self._perform_write(write, make(sql, keep=what == "kept"))
            if what == "kept":
                self.ledger.wrote(write, self.session)
            else:
                write.fate = Fate.DROPPED

    async def _begin_nested(self) -> Savepoint:
        if self.place == "async":
            handle: Any = await self.stage.database.async_session.begin_nested()
        else:
            handle = await self.perform(lambda session: session.begin_nested())
        savepoint = Savepoint(handle)
        self.transaction.savepoints.append(savepoint)
        return savepoint

    async def _finish(self, savepoint: Savepoint, *, keep: bool) -> None:
        """Release a savepoint, or roll it back."""
        handle = savepoint.handle
        end = handle.commit if keep else handle.rollback
        try:
            if self.place == "async":
                await end()
            else:
                await self.perform(lambda _session: end())
        except BaseException:
            # Told so by the savepoint itself, the application knows that its rows are gone, or may be.
            self.transaction.close(savepoint, Fate.UNKNOWN)
            raise
        self.transaction.close(savepoint, Fate.WANTED if keep else Fate.DROPPED)

    async def _end(self, step: Step) -> None:
        if step.how == "rollback":
            await self._roll_back()
        elif step.how in ("close", "reset", "invalidate"):
            try:
                await self._call(step.how)
            finally:
                self.ledger.discard(self.session)
        elif step.how == "expunge_all":
            await self.perform(self._expunge)
        elif "rollback" in step.how.lower():
            self.ledger.troubled = True  # a COMMIT past the session may find nothing to commit
            await self.perform(statements.end(step.how))
        else:
            await self._commit(step.how)

    async def _call(self, name: str) -> None:
        """Call a method of the session as its kind does."""
        if self.place == "async":
            await getattr(self.stage.database.async_session, name)()
        else:
            await self.perform(lambda session: getattr(session, name)())

    def _expunge(self, session: Any) -> None:
        waiting = statements.unflushed(session)
        session.expunge_all()
        self.ledger.expunge(self.session, waiting)

    async def _roll_back(self) -> None:
        writes = self.ledger.roll_back(self.session)
        try:
            await self._call("rollback")
        except BaseException:
            for write in writes:
                write.fate = Fate.UNKNOWN if write.fate is Fate.DROPPED else write.fate
            raise

    async def _commit(self, how: str) -> None:
        """Commit as the application may: the package does not decide what that keeps."""
        trouble = self.ledger.troubled
        try:
            if how == "commit":
                await self._call("commit")
            else:
                await self.perform(statements.end(how))
            waiting = await self.perform(statements.unflushed)
        except BaseException:
            self.ledger.tried(self.session)
            raise
        if trouble and how != "commit":
            # PostgreSQL answers COMMIT in a failed transaction with a silent ROLLBACK, and who writes it gets no error.
            self.ledger.tried(self.session)
            for write in self.transaction.take():
                write.fate = Fate.UNKNOWN
        else:
            self.ledger.kept(self.session, waiting)

    async def _callback(self, step: Step) -> None:
        moment, _, what = step.how.partition(" ")
        pending = {name: tuple(each.writes) for name, each in self.ledger.transactions.items()}
        inner = [one for each in self.ledger.transactions.values() for one in each.savepoints[-1].writes]
        # A session in a savepoint counts although it has written nothing: the savepoint may be rolled back by itself.
        taking_part = [bool(each.writes) or len(each.savepoints) > 1 for each in self.ledger.transactions.values()]
        stage = self.stage
        own = Ledger(self.ledger.attempt)
        called = Called(
            moment,
            step.number,
            tuple(write for writes in pending.values() for write in writes),
            innermost=tuple(inner) if sum(taking_part) == 1 else (),
        )

        def callback() -> None:
            stage.called.append(called)
            if what == "writes":
                write = own.attempt_write(f"callback {step.number}", None)
                stage.database.session.execute(stage.insert(write))
            elif what == "fails":
                raise RefusedError

        async def async_callback() -> None:
            stage.called.append(called)
            if what == "writes":
                write = own.attempt_write(f"callback {step.number}", None)
                await stage.database.async_session.execute(stage.insert(write))
            elif what == "fails":
                raise RefusedError

        unit = current_unit()
        register = unit.on_commit if moment == "commit" else unit.on_rollback
        register(async_callback if step.flag and self.awaits else callback)

    async def _rollback_only(self, _step: Step) -> None:
        current_unit().rollback_only()
        self.ledger.rollback_only = True

    async def _trouble(self, step: Step) -> None:
        if step.how == "read":
            await self.perform(lambda session: session.scalars(self.stage.select()).all())
        elif self.ledger.attempt <= step.value:
            if step.how == "transient":
                await self.perform(statements.transient)
            elif step.how == "lost":
                await self.perform(lambda session: session.execute(text(statements.LOST)))
            else:
                self.stage.losing = True

    async def _block(self, step: Step) -> None:
        """Play steps in ``with session:``, which does nothing at its end, or rolls back after an exception."""
        try:
            await self.play(step.inner)
            if step.flag:
                raise RefusedError
        except BaseException as exc:
            await self._leave_block(exc)
            raise
        if self.place == "async":
            await self.stage.database.async_session.__aexit__(None, None, None)
        else:
            await self.perform(lambda session: session.__exit__(None, None, None))

    async def _leave_block(self, exc: BaseException) -> None:
        writes = self.ledger.roll_back(self.session)
        try:
            if self.place == "async":
                await self.stage.database.async_session.__aexit__(type(exc), exc, None)
            else:
                await self.perform(lambda session: session.__exit__(type(exc), exc, None))
        except BaseException:
            for write in writes:
                write.fate = Fate.UNKNOWN if write.fate is Fate.DROPPED else write.fate
            raise

    async def _scope(self, step: Step) -> None:
        propagation, _, kind = step.how.partition(" ")
        if kind == "async":
            await self._play_scope(step, propagation, "async", self.thread)
        elif self.place == "plain":
            await self._play_scope(step, propagation, "plain", self.thread)
        else:
            await self.stage.in_thread(
                lambda thread: statements.drive(self._play_scope(step, propagation, "plain", thread))
            )

    async def _play_scope(self, step: Step, propagation: Any, place: str, thread: Thread | None) -> None:
        if place == "async" and self.place == "plain":
            return  # nothing can be awaited there
        new = propagation == "new"
        ledger = Ledger(self.ledger.attempt) if new else self.ledger
        if new:
            self.stage.ledgers.append(ledger)
        awaits = place == "async" if new else self.awaits
        player = Player(self.stage, ledger, place, thread=thread, awaits=awaits)
        scope = session_scope(self.stage.database, propagation=propagation)
        savepoint = Savepoint(None)
        try:
            if place == "async":
                async with scope:
                    await player.play_inside(step, savepoint, nested=propagation == "nested")
            else:
                with scope:
                    await player.play_inside(step, savepoint, nested=propagation == "nested")
        except BaseException as exc:
            player._saw(exc)
            player.transaction.close(savepoint, Fate.DROPPED if isinstance(exc, RefusedError) else Fate.UNKNOWN)
            if new:
                ledger.settle(promised=False)
            raise
        player.transaction.close(savepoint, Fate.WANTED)
        if new:
            ledger.settle(promised=True)

    async def play_inside(self, step: Step, savepoint: Savepoint, *, nested: bool) -> None:
        """Play the steps inside a scope."""
        if nested:
            self.transaction.savepoints.append(savepoint)
        await self.play(step.inner)
        if step.flag:
            raise RefusedError

    async def _thread(self, step: Step) -> None:
        def work(thread: Thread) -> None:
            player = Player(self.stage, self.ledger, "plain", thread=thread, awaits=self.awaits)
            statements.drive(player.play(step.inner))

        if self.place == "plain":
            await self.play(step.inner)
        else:
            await self.stage.in_thread(work)

    async def _timeout(self, step: Step) -> None:
        if self.place == "plain":
            await self.play(step.inner)
        elif step.how == "asyncio" or ANYIO < (4, 16):
            async with asyncio.timeout(step.value):
                await self.play(step.inner)
        elif step.how == "anyio fails":
            with anyio.fail_after(step.value):
                await self.play(step.inner)
        else:
            with anyio.move_on_after(step.value):
                await self.play(step.inner)
