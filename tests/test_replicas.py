"""Replicas: read-only units use each in turn, and skip those that are down."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from sqlalchemy import make_url, select, text
from support.asgi import Call, http_scope, respond
from support.databases import Backend, Item
from support.failing import execute, insert
from support.marks import KINDS

from asgi_sqla import ConfigurationError, Database, SQLAlchemyMiddleware, session_scope

NAMES = "SELECT min(name) FROM item"


async def read(database: Database, kind: str) -> Any:
    """Return what a read-only unit sees."""

    def in_thread() -> Any:
        with session_scope(database, read_only=True) as session:
            return session.scalar(text(NAMES))

    if kind == "sync":
        return await to_thread.run_sync(in_thread)
    async with session_scope(database, read_only=True) as async_session:
        return await async_session.scalar(text(NAMES))


def replica(folder: Path, name: str) -> str:
    """Create a SQLite file whose only row contains its name, and return its URL."""
    path = folder / f"{name}.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name VARCHAR(200), owner_id INTEGER)")
        connection.execute("INSERT INTO item (name) VALUES (?)", (name,))
    connection.close()
    return f"sqlite:///{path}"


def dead(backend: Backend) -> str:
    """Return the URL of a server of the same kind that does not exist."""
    url = make_url(backend.url)
    if backend.name == "sqlite":
        return str(url.set(database="/nowhere/at/all.db"))
    return url.set(host="127.0.0.1", port=1, query={}).render_as_string(hide_password=False)


async def dispose(database: Database) -> None:
    """Dispose, and let aiosqlite's threads report to this loop that they could not connect."""
    await database.async_dispose()
    await asyncio.sleep(0.05)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return every line at WARNING."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("kind", KINDS)
async def test_reading_goes_to_the_replica(sqlite: Backend, tmp_path: Path, kind: str) -> None:
    """Read-only requests and scopes read there, and the database itself serves all others."""
    database = Database(sqlite.url, read_only_url=replica(tmp_path, "replica"))
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            await insert(database, kind, name="written")
        seen.append(await execute(database, kind, NAMES))
        await respond(send)

    middleware = SQLAlchemyMiddleware(app, database, read_only={"GET"})
    for method in ("POST", "GET", "DELETE"):
        call = await Call(middleware, http_scope(method=method))()
        assert (call.raised, call.status) == (None, 200)
    seen.append(await read(database, kind))
    await database.async_dispose()

    assert seen == ["written", "replica", "written", "replica"]
    assert sqlite.names() == ["written"]


@pytest.mark.parametrize("kind", KINDS)
async def test_replicas_are_used_in_turn(sqlite: Backend, tmp_path: Path, kind: str) -> None:
    """Each new connection goes to the next one."""
    urls = [replica(tmp_path, name) for name in ("one", "two", "three")]
    database = Database(sqlite.url, read_only_url=urls)
    seen: list[Any] = []

    async def nest(depth: int) -> None:
        if kind == "sync":
            with session_scope(database, read_only=True) as session:
                seen.append(session.scalar(text(NAMES)))
                await nest(depth - 1) if depth else None
        else:
            async with session_scope(database, read_only=True) as async_session:
                seen.append(await async_session.scalar(text(NAMES)))
                await nest(depth - 1) if depth else None

    await nest(4)
    await database.async_dispose()

    assert seen == ["one", "two", "three", "one", "two"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_dead_replica_is_skipped(backend: Backend, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """One warning without a password is logged, and the others serve."""
    gone = make_url(dead(backend))
    if backend.name != "sqlite":
        gone = gone.set(password="secret")
    database = Database(backend.url, read_only_url=[gone, backend.url])
    async with session_scope(database) as session:
        session.add(Item(name="a"))

    seen = [await read(database, kind) for _ in range(3)]
    await dispose(database)

    assert seen == ["a"] * 3
    assert len(warnings(caplog)) == 1
    assert "refused a connection, and is skipped for a while" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
async def test_a_replica_that_is_back_is_used_again(
    sqlite: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is used again after a while, and pooled connections that replaced it are closed."""
    now = [1000.0]
    monkeypatch.setattr("asgi_sqla.engine.replicas.time.monotonic", lambda: now[0])
    first, second = tmp_path / "late" / "first.db", replica(tmp_path, "second")
    database = Database(sqlite.url, read_only_url=[f"sqlite:///{first}", second])

    seen = [await read(database, kind) for _ in range(2)]
    first.parent.mkdir()
    replica(first.parent, "first")
    now[0] += 29
    seen.append(await read(database, kind))
    now[0] += 2
    seen += [await read(database, kind) for _ in range(2)]
    monkeypatch.undo()
    await dispose(database)

    assert seen == ["second"] * 3 + ["first"] * 2
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_when_every_replica_is_dead_the_last_error_is_raised(
    backend: Backend, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A skipped replica is still tried before a caller gets an error."""
    database = Database(backend.url, read_only_url=[dead(backend), dead(backend)])

    for _ in range(2):
        with pytest.raises(Exception, match=r"(?i)unable to open|refused|connect"):
            await read(database, kind)
    await dispose(database)

    assert len(warnings(caplog)) == 4


@pytest.mark.parametrize("kind", KINDS)
async def test_the_replica_of_an_engine_that_was_passed_in(sqlite: Backend, tmp_path: Path, kind: str) -> None:
    """The argument read_only_url= works with engine= and async_engine=; its engines are ours, and we dispose them."""
    owner = Database(sqlite.url)
    database = Database(
        engine=owner.engine, async_engine=owner.async_engine, read_only_url=replica(tmp_path, "replica")
    )

    assert await read(database, kind) == "replica"
    await database.async_dispose()
    await owner.async_dispose()


async def test_a_replica_refuses_writes(sqlite: Backend, tmp_path: Path) -> None:
    """Our connections refuse them, whatever the replica itself accepts."""
    url = replica(tmp_path, "replica")
    database = Database(sqlite.url, read_only_url=[url, url])

    with pytest.raises(Exception, match="readonly database"):
        async with session_scope(database, read_only=True) as session:
            await session.execute(text("DELETE FROM item"))
    async with session_scope(database, read_only=True) as session:
        assert (await session.scalars(select(Item.name))).all() == ["replica"]
    await database.async_dispose()


def test_another_kind_of_database_is_refused(sqlite: Backend) -> None:
    """SQL of one kind does not work on the other; the error shows no password."""
    with pytest.raises(ConfigurationError, match="is a different kind of database than") as info:
        Database(sqlite.url, read_only_url="postgresql://me:secret@localhost/db")
    assert "secret" not in str(info.value)
