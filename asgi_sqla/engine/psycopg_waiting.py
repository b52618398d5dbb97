"""psycopg's async connections, waiting for the server in one turn of the event loop: psycopg takes two, and a timer.

What is not plainly a statement is left to psycopg, and so is what interrupts one: it asks the server to cancel that.
A sync connection waits on the event loop too, where its transaction ends there.

Holds: how a connection waits; imported only with such an engine.
Must not know: what it waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, cast

from psycopg import AsyncConnection, pq, waiting

from asgi_sqla.engine.waiter import Waiter

ACTIVE: Any = pq.TransactionStatus.ACTIVE
READ: Any = waiting.WAIT_R
READABLE: Any = waiting.READY_R


async def awaited(gen: Generator[Any, Any, Any], number: int) -> Any:
    """Do what ``gen`` does with the socket ``number``, and wait for that on the event loop."""
    loop = asyncio.get_running_loop()
    try:
        ready = next(gen)
        while True:
            waiter, writes = Waiter(loop), ready & waiting.WAIT_W  # if the socket has no room for what is sent
            loop.add_reader(number, waiter.wake)
            if writes:
                loop.add_writer(number, waiter.wake)
            try:
                await waiter
            finally:
                loop.remove_reader(number)
                if writes:
                    loop.remove_writer(number)
            ready = gen.send(ready)  # libpq looks itself which of the two it can do
    except StopIteration as end:
        return end.value


class WaitingConnection(AsyncConnection[Any]):
    """A connection that goes on in the turn in which its answer comes."""

    __slots__ = ()

    async def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """Do what ``gen`` does, and wait where it has to."""
        # Between two rounds of a COPY, which a statement is not, psycopg lets others run.
        if args or kwargs or self._pipeline or self.pgconn.transaction_status == ACTIVE:
            return await super().wait(gen, *args, **kwargs)
        try:
            ready = next(gen)
        except StopIteration as end:
            return end.value
        interruption: BaseException | None = None
        loop, number = asyncio.get_running_loop(), self.pgconn.socket
        while ready == READ:
            waiter = Waiter(loop)
            try:
                loop.add_reader(number, waiter.wake)
                try:
                    await waiter
                finally:
                    loop.remove_reader(number)
            except (OSError, asyncio.CancelledError) as exc:
                interruption = exc
                break
            try:
                ready = gen.send(READABLE)
            except StopIteration as end:
                return end.value
        return await super().wait(cast("Generator[Any, Any, Any]", _Begun(gen, ready, interruption)))


class _Begun:
    """What a generator that has begun has left to do, for who expects one that has not.

    Its first step raises what has interrupted the wait, and the next one waits on.
    """

    __slots__ = ("_gen", "_interruption", "_ready")

    def __init__(self, gen: Any, ready: Any, interruption: BaseException | None) -> None:
        self._gen = gen
        self._ready = ready
        self._interruption = interruption

    def __next__(self) -> Any:
        interruption, self._interruption = self._interruption, None
        if interruption is not None:
            raise interruption
        return self._ready

    def send(self, ready: Any) -> Any:
        """Go on."""
        return self._gen.send(ready)
