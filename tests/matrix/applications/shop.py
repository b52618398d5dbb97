"""What every application of the matrix does, whatever framework calls it.

The work is the same everywhere: the applications beside this module only say how their framework
routes to it. Most functions come in twins, one word apart: for ``db.async_session`` and ``db.session``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import sniffio
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from support.databases import NO_OWNER, Item

from asgi_sqla import AsgiSqlaError, Database, ErrorKind, SQLAlchemyMiddleware, current_unit, session_scope

db = Database(os.environ["MATRIX_URL"])
OUTERMOST = os.environ.get("MATRIX_WRAP") == "outermost"
"""Whether to wrap the whole application, where the framework has a place of its own as well."""
small = Database(os.environ["MATRIX_URL"], engine_options={"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01})
MIDDLEWARE: dict[str, Any] = {"database": db, "error_responses": {IntegrityError: 409, ErrorKind.POOL_EXHAUSTED: 503}}
if os.environ.get("MATRIX_CANCEL"):
    MIDDLEWARE["cancel_on_disconnect"] = True
GATES = Path(os.environ["MATRIX_GATES"])
CURSED_OWNER = 500
"""An ``owner_id`` whose COMMIT fails with what ``error_responses`` does not name."""
OWNERS = {"mapped": NO_OWNER, "unmapped": CURSED_OWNER}

notes: dict[str, str] = {}
"""What was seen outside of any response, by the name of the request."""


class HandledError(Exception):
    """An exception for which every application has an error handler."""


@dataclass(frozen=True)
class Query:
    """The query string, the same for every endpoint."""

    name: str = ""
    """The item to write, and where notes are left."""
    status: int = 201
    fail: str = ""
    """How: raise, abort, handled, full (the pool), mapped or unmapped (of COMMIT), or late (of a streamed body)."""
    hook: bool = False
    """Whether the framework's hook, or dependency, writes an item too."""
    wait: bool = False
    """Whether to wait for the test to open the gate."""
    scope: bool = False
    """Whether a background task opens a scope of its own."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Query:
        """Read a query string: of each key its text, or the list of its texts."""
        texts = {key: value[-1] if isinstance(value, list | tuple) else value for key, value in given.items()}
        flags = {key: key in texts for key in ("hook", "wait", "scope")}
        return cls(texts.get("name", ""), int(texts.get("status", 201)), texts.get("fail", ""), **flags)


def wrapped(app: Any) -> Any:
    """Wrap the whole application."""
    return SQLAlchemyMiddleware(app, **MIDDLEWARE)


def item(query: Query, suffix: str = "") -> Item:
    return Item(name=query.name + suffix, owner_id=OWNERS.get(query.fail))


async def write_async(query: Query, abort: Exception | None = None) -> None:
    """Insert an item, and fail as requested; ``abort`` is the framework's own exception for an error response."""
    db.async_session.add(item(query))
    await db.async_session.flush()
    if query.wait:
        await gate_async(query)
    if query.fail == "full":
        try:
            async with small.async_engine.connect():
                await small.async_session.execute(select(1))
        finally:
            await small.async_dispose()  # the middleware does not know it
    raise_for(query, abort)


def write_sync(query: Query, abort: Exception | None = None) -> None:
    db.session.add(item(query))
    db.session.flush()
    if query.wait:
        gate_sync(query)
    if query.fail == "full":
        try:
            with small.engine.connect():
                small.session.execute(select(1))
        finally:
            small.dispose()  # the middleware does not know it
    raise_for(query, abort)


def raise_for(query: Query, abort: Exception | None) -> None:
    if query.fail == "raise":
        raise RuntimeError("raised as wished")
    if query.fail == "handled":
        raise HandledError
    if query.fail == "abort" and abort is not None:
        raise abort


async def hook_async(query: Query, session: AsyncSession | None = None) -> None:
    """Do the work of the framework's hook or dependency before the handler, in ``session`` if it is given."""
    if query.hook:
        session = session or db.async_session
        session.add(item(query, "-hook"))
        await session.flush()


def hook_sync(query: Query, session: Session | None = None) -> None:
    if query.hook:
        session = session or db.session
        session.add(item(query, "-hook"))
        session.flush()


async def count_async(query: Query) -> str:
    """Count the items whose name begins with the prefix."""
    return str(await db.async_session.scalar(counting(query)))


def count_sync(query: Query) -> str:
    return str(db.session.scalar(counting(query)))


def counting(query: Query) -> Any:
    return select(func.count()).select_from(Item).where(Item.name.startswith(query.name))


async def stream_async(query: Query) -> AsyncIterator[bytes]:
    """Yield a chunk, wait, and then read."""
    yield b"first\n"
    await gate_async(query)
    notes[query.name] = "the body went on"
    if query.fail == "late":
        db.async_session.add(item(query, "-late"))
        await db.async_session.flush()
        raise RuntimeError("raised late")
    yield (await count_async(query)).encode()


def stream_sync(query: Query) -> Iterator[bytes]:
    yield b"first\n"
    gate_sync(query)
    notes[query.name] = "the body went on"
    if query.fail == "late":
        db.session.add(item(query, "-late"))
        db.session.flush()
        raise RuntimeError("raised late")
    yield count_sync(query).encode()


async def background_async(query: Query) -> None:
    """Write as a task after the response does: in the request's unit, or in a separate scope."""
    try:
        if query.scope:
            async with session_scope(db) as session:
                session.add(Item(name=f"{query.name}background"))
        else:
            await gate_async(query)
            db.async_session.add(Item(name=f"{query.name}background"))
            await db.async_session.flush()
    except AsgiSqlaError as exc:
        notes[query.name] = type(exc).__name__
    else:
        notes[query.name] = "written"


def background_sync(query: Query) -> None:
    try:
        if query.scope:
            with session_scope(db) as session:
                session.add(Item(name=f"{query.name}background"))
        else:
            gate_sync(query)
            db.session.add(Item(name=f"{query.name}background"))
            db.session.flush()
    except AsgiSqlaError as exc:
        notes[query.name] = type(exc).__name__
    else:
        notes[query.name] = "written"


async def sleep_async() -> None:
    """Execute a statement that takes longer than any client waits."""
    await db.async_session.execute(text("SELECT pg_sleep(30)"))


def sleep_sync() -> None:
    db.session.execute(text("SELECT pg_sleep(30)"))


async def message_async(message: str) -> str:
    """Handle one message of a websocket: write an item of that name, and fail if the message says so."""
    await write_async(Query(message, fail="raise" if message.endswith("-raise") else ""))
    return f"written {message}"


def seen_unit() -> str:
    """Return the name of the current unit of work, or say that there is none."""
    try:
        return current_unit().name
    except AsgiSqlaError as exc:
        return type(exc).__name__


def started() -> None:
    """Record what startup code sees."""
    notes["startup"] = seen_unit()


async def state(query: Query) -> dict[str, Any]:
    """Return the note of that name, and how many connections are checked out of both pools."""
    pools: list[Any] = [db.engine.pool]
    if sniffio.current_async_library() == "asyncio":
        pools.append(db.async_engine.pool)
    return {"note": notes.get(query.name), "out": sum(pool.checkedout() for pool in pools)}


def state_sync(query: Query) -> dict[str, Any]:
    """Return the same where no event loop is running."""
    pool: Any = db.engine.pool
    return {"note": notes.get(query.name), "out": pool.checkedout()}


async def gate_async(query: Query) -> None:
    """Wait until the test creates a file of that name."""
    notes[f"{query.name}-waiting"] = threading.current_thread().name
    with anyio.fail_after(10):
        while not (GATES / query.name).exists():  # noqa: ASYNC110  # another process makes it
            await anyio.sleep(0.01)


def gate_sync(query: Query) -> None:
    notes[f"{query.name}-waiting"] = threading.current_thread().name
    deadline = time.monotonic() + 10
    while not (GATES / query.name).exists():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)
