"""The work every contender does: one SELECT by primary key, or one INSERT.

Holds: the same few lines for both kinds of session.
Must not know: any contender.
"""

from __future__ import annotations

import os
from itertools import count

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from benchmarks.databases import NO_OWNER, READ, Item

_numbers = count(1)


def item(owner_id: int | None = None) -> Item:
    """Return a row that is not there yet; with ``NO_OWNER`` its COMMIT fails."""
    return Item(name=f"{os.getpid()}-{next(_numbers)}", owner_id=owner_id)


def read(session: Session) -> None:
    """SELECT by primary key."""
    assert session.get(Item, READ) is not None


def write(session: Session) -> None:
    """INSERT."""
    session.add(item())
    session.flush()


def add(session: Session) -> None:
    """Leave the INSERT to the COMMIT."""
    session.add(item())


def refused(session: Session) -> None:
    """INSERT what the database refuses at COMMIT."""
    session.add(item(NO_OWNER))
    session.flush()


async def read_async(session: AsyncSession) -> None:
    """SELECT by primary key."""
    assert await session.get(Item, READ) is not None


async def write_async(session: AsyncSession) -> None:
    """INSERT."""
    session.add(item())
    await session.flush()


async def add_async(session: AsyncSession) -> None:
    """Leave the INSERT to the COMMIT."""
    session.add(item())


async def refused_async(session: AsyncSession) -> None:
    """INSERT what the database refuses at COMMIT."""
    session.add(item(NO_OWNER))
    await session.flush()
