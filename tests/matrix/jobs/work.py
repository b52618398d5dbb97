"""The work of every worker: one insert through ``session_scope()``, in each of its forms.

The engines are made and used at import, before any fork and on another event loop than the jobs', as users do. Nothing
in this module knows of loops, forks or threads.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from asgi_sqla import Database, session_scope

database = Database(os.environ["ASGI_SQLA_TEST_URL"])
FOLDER = Path(os.environ["ASGI_SQLA_TEST_FOLDER"])
"""Where every job writes down how it ended, a file for each."""
WAY = os.environ["ASGI_SQLA_TEST_WAY"]
"""How a worker is to run its jobs, where it knows several ways."""
QUEUE = os.environ["ASGI_SQLA_TEST_QUEUE"]
"""A name of this run's own in Redis."""
REDIS = os.environ["ASGI_SQLA_TEST_REDIS_URL"]

TIME_LIMIT = 1
"""Seconds after which a worker ends a job."""


class Base(DeclarativeBase):
    """The tables of the jobs."""


class Done(Base):
    """A row that a job inserts; its transaction decides whether it stays."""

    __tablename__ = "done"
    name: Mapped[str] = mapped_column(primary_key=True)


class Refused(Exception):  # noqa: N818  # what a job says, not what is wrong with it
    """What a job raises after its insert."""


def note(name: str, word: str) -> None:
    """Write down the result of a job; once for each attempt."""
    with (FOLDER / name).open("a") as notes:
        notes.write(f"{word}\n")


def notes(name: str) -> list[str]:
    """Return what has been written down about a job."""
    path = FOLDER / name
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def noted(name: str) -> Iterator[None]:
    """Write down how the block ends: outside every scope, and so after its COMMIT or ROLLBACK."""
    try:
        yield
    except BaseException as exc:
        note(name, type(exc).__name__)
        raise
    note(name, "done")


def decide(name: str, fate: str) -> None:
    """Raise, if that is the fate of this attempt."""
    if fate == "fails" or (fate == "fails once" and not notes(name)):
        raise Refused(name)


async def act_async(session: AsyncSession, name: str, fate: str) -> None:
    """Insert the row, check that no other job's answer arrives, and meet the fate."""
    session.add(Done(name=name))
    await session.flush()
    assert await session.scalar(select(Done.name).where(Done.name == name)) == name
    if fate == "cancelled":
        note(name, "hangs")
        await asyncio.sleep(600)
    if fate == "cancelled in SQL":
        note(name, "hangs")
        await session.execute(text("SELECT pg_sleep(600)"))
    decide(name, fate)


def act(session: Session, name: str, fate: str) -> None:
    """Do the same in a sync session."""
    session.add(Done(name=name))
    session.flush()
    assert session.scalar(select(Done.name).where(Done.name == name)) == name
    if fate == "cancelled":
        note(name, "hangs")
        while True:  # what a thread is sent reaches it between two calls only
            time.sleep(0.05)
    if fate == "cancelled in SQL":
        note(name, "hangs")
        session.execute(text("SELECT pg_sleep(600)"))
    decide(name, fate)


def noting_async(
    function: Callable[[str, str], Coroutine[Any, Any, None]],
) -> Callable[[str, str], Coroutine[Any, Any, None]]:
    """Write the job down."""

    @functools.wraps(function)
    async def job(name: str, fate: str) -> None:
        with noted(name):
            await function(name, fate)

    return job


def noting(function: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """Write the job down."""

    @functools.wraps(function)
    def job(name: str, fate: str) -> None:
        with noted(name):
            function(name, fate)

    return job


@noting_async
async def async_with(name: str, fate: str) -> None:
    """Work in ``async with``."""
    async with session_scope(database) as session:
        await act_async(session, name, fate)


@noting
def sync_with(name: str, fate: str) -> None:
    """Work in ``with``."""
    with session_scope(database) as session:
        act(session, name, fate)


@noting_async
@session_scope(database)
async def async_decorator(name: str, fate: str) -> None:
    """Work in a decorated coroutine function."""
    await act_async(database.async_session, name, fate)


@noting
@session_scope(database)
def sync_decorator(name: str, fate: str) -> None:
    """Work in a decorated function."""
    act(database.session, name, fate)


ASYNC_JOBS = (async_with, async_decorator)
SYNC_JOBS = (sync_with, sync_decorator)


def by_asyncio_run(function: Callable[[str, str], Coroutine[Any, Any, None]]) -> Callable[[str, str], None]:
    """Return a plain function that runs the coroutine function on an event loop of its own."""

    def job(name: str, fate: str) -> None:
        asyncio.run(function(name, fate))

    job.__name__ = job.__qualname__ = function.__name__
    return job


PLAIN_JOBS = (*map(by_asyncio_run, ASYNC_JOBS), *SYNC_JOBS)
"""Every job as a plain function, for workers that know nothing of coroutines."""


def orders() -> Iterator[tuple[str, str, str]]:
    """Yield the requests on standard input: function, name and fate of one job a line."""
    for line in sys.stdin:
        function, name, fate = line.rstrip("\n").split("\t")
        yield function, name, fate


async def async_orders() -> AsyncIterator[tuple[str, str, str]]:
    """Yield the same without blocking the event loop."""
    waiting = orders()
    while (order := await asyncio.to_thread(next, waiting, None)) is not None:
        yield order


with session_scope(database) as first:
    first.scalars(select(Done)).all()


async def first_use() -> None:
    """Use the async engine, as code that checks the database at import does."""
    async with session_scope(database) as session:
        await session.scalars(select(Done))


asyncio.run(first_use())
