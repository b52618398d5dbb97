"""Sticking: a client that has written reads from the primary until the replicas have what it wrote."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio import to_thread
from sqlalchemy import make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from support.asgi import App, Call, http_scope, respond
from support.dark import dark
from support.databases import PLAIN, Backend, Item, connections_out
from support.failing import execute, insert
from support.marks import KINDS, on_postgresql
from support.standby import Standby, running_standby
from support.wire import wire
from test_replicas import replica

from asgi_sqla import (
    ConfigurationError,
    Database,
    ReadOnlyError,
    SQLAlchemyMiddleware,
    UnitOfWork,
    current_unit,
    on_commit,
    session_scope,
)
from asgi_sqla.testing import rolled_back
from asgi_sqla.unit.marks import PRIMARY, Entry, Mark, parse

READS = {"GET"}
WHERE = "SELECT pg_is_in_recovery()"
NAMES = "SELECT min(name) FROM item"


@pytest.fixture(scope="module")
def standby() -> Iterator[Standby]:
    """Return a standby that replays at once."""
    with running_standby() as running:
        yield running


@pytest.fixture
def lagging(standby: Standby) -> Iterator[Standby]:
    """Return a standby that is a second behind."""
    standby.lag("1s")
    yield standby
    standby.catch_up()


@pytest.fixture
def paused(standby: Standby) -> Iterator[Standby]:
    """Return a standby that replays nothing until it is told to."""
    standby.pause()
    yield standby
    standby.catch_up()


def shop(database: Database, kind: str) -> App:
    """Return an application: POST creates the item of its path, GET says whether it is there, and on which server."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        name = scope["path"].strip("/")
        if scope["method"] == "POST":
            await insert(database, kind, name=name)
            await respond(send, 201)
        else:
            found = await execute(database, kind, f"SELECT count(*) FROM item WHERE name = '{name}'")
            replayed = await execute(database, kind, WHERE)
            await respond(send, 200 if found else 404, b"standby" if replayed else b"primary")

    return app


def replica_url(backend: Backend, standby: Standby) -> str:
    """Return the URL of ``standby`` for the driver of ``backend``."""
    driver = make_url(backend.url).drivername
    return make_url(standby.url).set(drivername=driver).render_as_string(hide_password=False)


def replicated(backend: Backend, standby: Standby) -> Database:
    """Return the database of ``backend`` with ``standby`` as its replica."""
    return Database(backend.url, read_only_url=replica_url(backend, standby))


async def buy(app: App, count: int, wait: Any = lambda: None) -> tuple[int, int]:
    """POST and GET ``count`` items as one client; return how many were missed, and how many the standby served."""
    missed = served = 0
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for number in range(count):
            assert (await client.post(f"/{number:04}")).status_code == 201
            await to_thread.run_sync(wait)
            got = await client.get(f"/{number:04}")
            missed += got.status_code == 404
            served += got.text == "standby"
    return missed, served


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_reads_its_own_writes(backend: Backend, lagging: Standby, kind: str) -> None:
    """Behind a standby that lags it misses most of them without ``stick``, and none with it."""
    results = {}
    for stick in (None, 2.0, "wal"):
        database = replicated(backend, lagging)
        with backend.witness.begin() as connection:
            connection.execute(text("DELETE FROM item"))
        lagging.wait()
        app = SQLAlchemyMiddleware(shop(database, kind), database, read_only=READS, stick=stick)
        results[stick] = await buy(app, 50)
        await database.async_dispose()

    missed, _ = results[None]
    assert missed > 25
    assert (results[2.0][0], results["wal"][0]) == (0, 0)


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
async def test_a_standby_that_is_up_to_date_serves(backend: Backend, standby: Standby, kind: str) -> None:
    """With positions nearly every read goes there, although the client has just written."""
    database = replicated(backend, standby)
    app = SQLAlchemyMiddleware(shop(database, kind), database, read_only=READS, stick="wal")

    missed, served = await buy(app, 50, standby.wait)
    await database.async_dispose()

    assert missed == 0
    assert served >= 45


def cookie_of(call: Call) -> str | None:
    """Return the mark in the cookie that a response sets."""
    found = [value.decode() for name, value in call.messages[0]["headers"] if name == b"set-cookie"]
    match = re.match("asgi_sqla=([^;]*)", found[-1]) if found else None
    return None if match is None else match[1]


async def call(app: App, method: str = "GET", path: str = "/a", mark: str | None = None, **scope: Any) -> Call:
    """Send one request, with ``mark`` in its cookie."""
    headers = [] if mark is None else [(b"cookie", f"a=b; asgi_sqla={mark}; c=d".encode())]
    made = await Call(app, http_scope(path, method, **{"headers": headers, **scope}))()
    assert made.raised is None
    return made


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
async def test_round_trips(backend: Backend, paused: Standby, kind: str) -> None:
    """A write asks the primary once; a read asks the standby until its connection has said enough, and never waits."""
    with wire(backend.url) as (primary, url), wire(replica_url(backend, paused)) as (replayed, read_only_url):
        database = unprepared(url, read_only_url)
        plain, sticky = (
            SQLAlchemyMiddleware(lister(database, kind), database, read_only=READS, stick=stick)
            for stick in (None, "wal")
        )

        async def cost(app: App, method: str, mark: str | None = None) -> tuple[str | None, tuple[int, int]]:
            before = primary.round_trips, replayed.round_trips
            path = f"/{primary.round_trips}"
            made = await call(app, method, path, mark)
            return cookie_of(made), (primary.round_trips - before[0], replayed.round_trips - before[1])

        for _ in range(2):  # at first drivers connect, and asyncpg prepares
            wrote, (mark, marked) = await cost(plain, "POST"), await cost(sticky, "POST")
            read, behind = await cost(plain, "GET"), await cost(sticky, "GET", mark)
        paused.catch_up()
        first, second = [await cost(sticky, "GET", mark) for _ in range(2)]
        await database.async_dispose()

    twice = (backend.name, kind) == ("psycopg2", "sync")  # it asks in two
    begin = PLAIN or twice  # that travels alone
    assert wrote == (None, (3 + begin, 0))
    assert marked == (4 + begin + twice, 0)
    assert (read, behind) == ((None, (0, 1)), (None, (1, 1)))
    assert (first, second) == ((None, (0, 2)), (None, (0, 1)))


def unprepared(url: str, read_only_url: str) -> Database:
    """Return a database whose drivers do not prepare a statement when they have seen it often."""
    options = {"connect_args": {"prepare_threshold": None}}
    return Database(
        url,
        read_only_url=read_only_url,
        engine_options=options,
        async_engine_options={"connect_args": {}} if "asyncpg" in url else options,
    )


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
async def test_a_transaction_reads_with_a_snapshot_of_its_own(backend: Backend, standby: Standby, kind: str) -> None:
    """What is replayed after the standby was asked for its position is seen by a unit with one snapshot."""
    database = replicated(backend, standby)

    def buy_another(*event_of: Any) -> None:
        if "replay" in event_of[2]:
            with backend.witness.begin() as connection:
                connection.execute(text("INSERT INTO item (name) VALUES ('b')"))
            standby.wait()

    database.listen("after_cursor_execute", buy_another)
    app = SQLAlchemyMiddleware(shop(database, kind), database, read_only=READS, stick="wal")
    mark = cookie_of(await call(app, "POST"))
    standby.wait()

    options = {"read_only": True, "isolation_level": "repeatable read", "after": mark}
    seen = await in_scope(database, kind, "SELECT count(*) * 10 + pg_is_in_recovery()::int FROM item", options)
    await database.async_dispose()

    assert seen == 21  # two items, on the standby


async def in_scope(database: Database, kind: str, sql: str, options: Any) -> Any:
    """Return the one value of ``sql`` in a scope of ``kind``."""

    def in_thread() -> Any:
        with session_scope(database, **options) as session:
            return session.scalar(text(sql))

    if kind == "sync":
        return await to_thread.run_sync(in_thread)
    async with session_scope(database, **options) as async_session:
        return await async_session.scalar(text(sql))


@pytest.fixture
def stale(sqlite: Backend, tmp_path: Path) -> Database:
    """Return a database whose replica has one item, "replica", and never gets another."""
    return Database(sqlite.url, read_only_url=replica(tmp_path, "replica"))


def lister(database: Database, kind: str = "async") -> App:
    """Return an application: POST creates the item of its path, and every request answers the least name."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            await insert(database, kind, name=scope["path"].strip("/"))
        elif scope["method"] == "DELETE":
            await execute(database, kind, "DELETE FROM item RETURNING id")
        name = await execute(database, kind, NAMES)
        await respond(send, int(scope.get("status", 200)), (name or "nothing").encode())

    return app


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
async def test_the_cookie(stale: Database, kind: str, scheme: str, secure: bool) -> None:
    """It is for the server alone, ends with the time, and leaves the application's own cookies."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def add(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = ((b"set-cookie", b"session=1"),)
            await send(message)

        await lister(stale, kind)(scope, receive, add)

    sticky = SQLAlchemyMiddleware(app, stale, read_only=READS, stick=2.5)
    post = await call(sticky, "POST", scheme=scheme, root_path="/shop")
    read = await call(sticky, mark=cookie_of(post), scheme=scheme)
    other = await call(sticky, scheme=scheme)
    await stale.async_dispose()

    own, (name, value) = post.messages[0]["headers"]
    assert own == (b"set-cookie", b"session=1")
    assert name == b"set-cookie"
    expected = r"asgi_sqla=[0-9a-f]{8}t[0-9a-f]+; Max-Age=3; Path=/; HttpOnly; SameSite=Lax"
    assert re.fullmatch(expected + ("; Secure" if secure else ""), value.decode())
    assert read.body + b" " + other.body == b"a replica"
    assert len(read.messages[0]["headers"]) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("method", "status", "marked"),
    [("GET", 200, False), ("PUT", 200, False), ("POST", 200, True), ("POST", 400, False), ("DELETE", 200, True)],
)
async def test_only_a_committed_write_is_marked(
    stale: Database, kind: str, method: str, status: int, marked: bool
) -> None:
    """A unit that only read, or was rolled back, leaves its client where it was."""
    sticky = SQLAlchemyMiddleware(lister(stale, kind), stale, read_only=READS, stick=9)
    made = await call(sticky, method, status=status)
    await stale.async_dispose()
    assert (cookie_of(made) is not None) is marked


@pytest.mark.parametrize(
    ("text_of", "served_by"),
    [
        ("{key}tffffffffffff", "primary"),
        ("{key}t1", "replica"),
        ("00000000tffffffffffff", "replica"),
        ("00000000t1.{key}t" + "f" * 16, "primary"),
        ("{key}w0", "primary"),  # SQLite cannot say what it has replayed
        ("primary", "primary"),
        ("", "primary"),
        ("{key}", "primary"),
        ("{key}t" + "f" * 17, "primary"),
        ("{key}t-1", "primary"),
        ("{key}t1." * 99999, "primary"),
        ("\xe9%00", "primary"),
    ],
    ids=lambda value: value[:20],
)
async def test_a_mark_that_was_made_up(stale: Database, text_of: str, served_by: str) -> None:
    """Nothing in a mark is an error, and all that it can do is to send its owner to the primary."""
    sticky = SQLAlchemyMiddleware(lister(stale), stale, read_only=READS, stick=2.0)
    mark = text_of.format(key=stale._mark_key)
    post = await call(sticky, "POST", "/primary", mark=mark)
    read = await call(sticky, mark=mark)
    async with session_scope(stale, read_only=True, after=mark) as session:
        assert await session.scalar(text(NAMES)) == served_by
    await stale.async_dispose()

    assert (read.status, read.body.decode()) == (200, served_by)
    assert len(cookie_of(post) or "") <= 512
    assert str(stale._mark_key) in (cookie_of(post) or "")


def by_functions() -> Any:
    """Return functions that keep the mark of a user on the server."""
    kept: dict[str, str] = {}

    def read(scope: Any) -> str | None:
        return kept.get(scope["user"])

    def write(scope: Any, message: Any, mark: str) -> None:
        assert message["status"] == 200
        kept[scope["user"]] = mark

    return read, write


@pytest.mark.parametrize("carrier", ["header", "functions"])
async def test_other_carriers(stale: Database, carrier: str) -> None:
    """A mark travels in a header too, or however two functions of the application want it."""
    stick_by = "X-Mark" if carrier == "header" else by_functions()
    sticky = SQLAlchemyMiddleware(lister(stale), stale, read_only=READS, stick=9, stick_by=stick_by)

    post = await call(sticky, "POST", user="me")
    returned = [(name, value) for name, value in post.messages[0]["headers"] if name == b"x-mark"]
    mine = await call(sticky, user="me", headers=returned)
    other = await call(sticky, user="you")
    await stale.async_dispose()

    assert (mine.body, other.body) == (b"a", b"replica")
    assert len(post.messages[0]["headers"]) == len(returned) == (carrier == "header")


def failing(_scope: Any, _message: Any, _mark: str) -> None:
    """Fail as a store of marks may."""
    raise LookupError


async def awaited() -> None:
    """Be what nothing awaits."""


@pytest.mark.parametrize("write", [failing, lambda _scope, _message, _mark: awaited()], ids=["raises", "awaits"])
async def test_a_carrier_that_fails(stale: Database, write: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The commit is done, so its response is sent all the same, and the log says what was missing."""
    sticky = SQLAlchemyMiddleware(lister(stale), stale, read_only=READS, stick=9, stick_by=(lambda _scope: None, write))
    assert (await call(sticky, "POST")).status == 200
    await stale.async_dispose()
    assert "its client got no mark" in caplog.text


async def test_two_databases(stale: Database, tmp_path: Path) -> None:
    """Only what was written is read from its primary, and a second write does not make the first one forgotten."""
    (tmp_path / "other").mkdir()
    other = Database(replica(tmp_path / "other", "a"), read_only_url=replica(tmp_path / "other", "b"))
    apps = [SQLAlchemyMiddleware(lister(one), (stale, other), read_only=READS, stick=9) for one in (stale, other)]

    first = cookie_of(await call(apps[0], "POST"))
    seen = [(await call(app, mark=first)).body for app in apps]
    both = cookie_of(await call(apps[1], "POST", "/c", mark=first))
    seen += [(await call(app, mark=both)).body for app in apps]
    for database in (stale, other):
        await database.async_dispose()

    assert seen == [b"a", b"b", b"a", b"a"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_scope_reads_after_the_mark_of_another(stale: Database, kind: str) -> None:
    """A worker reads what the unit that sent it a job has written; a mark is a text, and no longer-lived object."""
    units: list[UnitOfWork] = []

    def write() -> None:
        with session_scope(stale) as session:
            units.append(current_unit())
            session.add(Item(name="a"))
            assert units[0].mark is None

    if kind == "sync":
        await to_thread.run_sync(write)
    else:
        async with session_scope(stale) as async_session:
            units.append(current_unit())
            async_session.add(Item(name="a"))
    seen = [
        await in_scope(stale, kind, NAMES, {"read_only": True, "after": after, **more})
        for after in (units[0].mark, None)
        for more in ({}, {"isolation_level": "serializable"})
    ]
    async with session_scope(stale, read_only=True, after=units[0].mark):
        assert current_unit().mark == units[0].mark
    await stale.async_dispose()
    assert seen == ["a", "a", "replica", "replica"]


WRITERS = ["commit", "scope", "scope in a thread", "callback", "sync callback of a scope"]


@pytest.mark.parametrize("how", WRITERS)
async def test_every_way_to_write_is_marked(stale: Database, how: str) -> None:
    """A commit of the application, a scope inside the request and a callback count as the request's own."""

    async def write(*_: object) -> None:
        async with session_scope(stale) as session:
            session.add(Item(name="a"))

    def write_now(nested: bool = False) -> None:
        with session_scope(stale) as session:
            session.execute(text("SELECT 1")) if nested else session.add(Item(name="a"))
            if nested:
                on_commit(write_now)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        if how == "commit":
            stale.async_session.add(Item(name="a"))
            await stale.async_session.commit()
        elif how == "scope":
            await write()
        elif how == "callback":
            current_unit().on_commit(write)
        else:
            await to_thread.run_sync(write_now, how != "scope in a thread")
        await respond(send, 404 if how == "commit" else 200)

    sticky = SQLAlchemyMiddleware(app, stale, read_only={"GET"}, stick=9)
    read = SQLAlchemyMiddleware(lister(stale), stale, read_only=READS, stick=9)
    mark = cookie_of(await call(sticky, "POST"))
    seen = (await call(read, mark=mark)).body
    await stale.async_dispose()
    assert seen == b"a"


@on_postgresql
async def test_a_callback_sends_a_mark_with_its_job(backend: Backend, standby: Standby) -> None:
    """When callbacks run, the mark of the request has the position of its commit."""
    database = replicated(backend, standby)
    marks: list[str | None] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        unit = current_unit()
        unit.on_commit(lambda: marks.extend((unit.mark, current_unit().mark)))
        database.async_session.add(Item(name="a"))
        await respond(send)

    post = await call(SQLAlchemyMiddleware(app, database, read_only=READS, stick="wal"), "POST")
    await database.async_dispose()

    assert marks == [cookie_of(post)] * 2
    assert "w" in str(marks[0])


@on_postgresql
@pytest.mark.parametrize("stick", [60.0, "wal"])
@pytest.mark.parametrize("given", [False, True], ids=["by URL", "given"])
async def test_reading_from_the_primary_refuses_writes(
    backend: Backend, paused: Standby, stick: Any, given: bool
) -> None:
    """What the session does not refuse the primary does, on our read-only connections and on an engine passed in."""
    owner = Database(backend.url)
    database = replicated(backend, paused)
    if given:
        database = Database(async_engine=owner.async_engine, read_only_url=replica_url(backend, paused))
    app = SQLAlchemyMiddleware(shop(database, "async"), database, read_only=READS, stick=stick)
    mark = cookie_of(await call(app, "POST"))

    for level in (None, "REPEATABLE READ"):
        with pytest.raises(Exception, match="read-only transaction"):
            await in_scope(
                database, "async", "DELETE FROM item", {"read_only": True, "after": mark, "isolation_level": level}
            )
        async with session_scope(database, read_only=True, after=mark, isolation_level=level) as session:
            session.add(Item(name="b"))
            with pytest.raises(ReadOnlyError):
                await session.flush()
            await session.rollback()
    await database.async_dispose()
    await owner.async_dispose()
    assert backend.names() == ["a"]


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
async def test_a_replica_that_is_down(
    backend: Backend, standby: Standby, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What must be seen after a write is read from the primary, with a warning, and no password in it."""
    gone = make_url(backend.url).set(host="127.0.0.1", port=1, query={}, password="secret")
    database = Database(backend.url, read_only_url=gone)
    app = SQLAlchemyMiddleware(shop(database, kind), database, read_only=READS, stick="wal")
    post = await call(app, "POST")

    assert (await call(app, mark=cookie_of(post))).body == b"primary"
    await database.async_dispose()
    assert "could not be asked for its WAL position" in caplog.text
    assert "secret" not in caplog.text


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("why", ["refused", "silent"])
async def test_a_position_that_cannot_be_read(
    backend: Backend, paused: Standby, kind: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit is done and answered; the client reads from the primary for a while instead."""
    with dark(backend) as (proxy, url):
        database = Database(url, read_only_url=replica_url(backend, paused))

        def spoil(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "current_wal" in statement and why == "silent":
                proxy.go_dark()
            elif "current_wal" in statement:
                raise ProgrammingError(statement, None, Exception("permission denied"))

        database.listen("before_cursor_execute", spoil)
        app = SQLAlchemyMiddleware(shop(database, kind), database, read_only=READS, stick="wal")
        async with asyncio.timeout(30):
            post = await call(app, "POST")
        proxy.let_through()
        read = await call(app, mark=cookie_of(post))
        async with asyncio.timeout(30):  # a thread that was waiting for the server may need a moment
            while connections_out(database):  # noqa: ASYNC110  # nobody sets an event when it returns
                await asyncio.sleep(0.01)
        await database.async_dispose()

    assert (post.status, read.body) == (201, b"primary")
    assert caplog.text.count("did not tell its WAL position") == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_inside_rolled_back_there_is_no_replica(stale: Database, kind: str) -> None:
    """Everything is on one connection, so nothing is marked, and a mark from before changes nothing."""
    sticky = SQLAlchemyMiddleware(lister(stale, kind), stale, read_only=READS, stick=9)
    async with rolled_back(stale):
        post = await call(sticky, "POST", mark=f"{stale._reading.key}tffffffffffff")
        read = await call(sticky, mark=f"{stale._reading.key}tffffffffffff")
    await stale.async_dispose()
    assert (cookie_of(post), read.body) == (None, b"a")


async def test_a_scope_inside_a_request_reads_what_the_request_would(stale: Database) -> None:
    """It need not be given the mark of the client that the request came from."""
    seen: list[Any] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        seen.append(await in_scope(stale, "async", NAMES, {"read_only": True}))
        async with session_scope(stale) as session:
            session.add(Item(name="a"))
        seen.append(await in_scope(stale, "sync", NAMES, {"read_only": True}))
        await respond(send)

    sticky = SQLAlchemyMiddleware(app, stale, read_only=READS, stick=9)
    mark = cookie_of(await call(sticky, "PUT"))
    with stale.engine.begin() as connection:
        connection.execute(text("DELETE FROM item"))
    await call(sticky, mark=mark)
    await stale.async_dispose()

    assert seen == ["replica", "a", None, "a"]


@on_postgresql
async def test_a_unit_that_began_on_the_primary_stays_there(backend: Backend, paused: Standby) -> None:
    """What it has read does not disappear again in its next transaction, though the standby has caught up meanwhile."""
    database = replicated(backend, paused)
    mark = cookie_of(
        await call(SQLAlchemyMiddleware(shop(database, "async"), database, read_only=READS, stick="wal"), "POST")
    )
    async with session_scope(database, read_only=True, after=mark) as session:
        seen = [await session.scalar(text(WHERE))]
        await session.commit()
        await to_thread.run_sync(paused.catch_up)
        seen.append(await session.scalar(text(WHERE)))
    seen.append(await in_scope(database, "async", WHERE, {"read_only": True, "after": mark}))
    await database.async_dispose()
    assert seen == [False, False, True]


@on_postgresql
async def test_a_server_that_replays_nothing(backend: Backend) -> None:
    """It may be anything, such as the target of a logical replication, so it is not trusted with a position."""
    database = Database(
        backend.url, read_only_url=make_url(backend.url).update_query_dict({"application_name": "other"})
    )
    who = "SELECT current_setting('application_name')"
    seen = [
        await in_scope(database, "sync", who, {"read_only": True, "after": after})
        for after in (None, f"{database._mark_key}w1")
    ]
    database.dispose()
    assert seen == ["other", ""]


@on_postgresql
async def test_a_replica_that_has_no_connection_left(backend: Backend, standby: Standby) -> None:
    """Its load is not put on the primary: the caller gets the error that it gets without a mark."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}
    database = Database(backend.url, read_only_url=replica_url(backend, standby), engine_options=options)
    async with session_scope(database, read_only=True) as session:
        await session.scalar(text(WHERE))
        with pytest.raises(PoolTimeoutError):
            await in_scope(database, "async", WHERE, {"read_only": True, "after": f"{database._mark_key}w1"})
    await database.async_dispose()


async def test_a_database_without_positions(sqlite: Backend, tmp_path: Path, global_db: Database) -> None:
    """One that is configured too late to be refused is read from its primary for a while."""
    sticky = SQLAlchemyMiddleware(lister(global_db), read_only=READS, stick="wal")
    global_db.configure(sqlite.url, read_only_url=replica(tmp_path, "replica"))
    mark = cookie_of(await call(sticky, "POST"))
    assert (await call(sticky, mark=mark)).body == b"a"
    await global_db.async_dispose()


def test_marks_that_follow_each_other() -> None:
    """The later one counts, but of two positions the higher; too many databases make a mark that nobody can read."""
    first = parse("0000000aw5.0000000bt1.0000000ct2")
    later = parse("0000000aw4.0000000bt3.0000000dw1")
    assert str(first.followed_by(later)) == "0000000aw5.0000000bt3.0000000ct2.0000000dw1"
    assert str(PRIMARY.followed_by(later)) == str(later)
    assert str(Mark({f"{key:08x}": Entry(position=key) for key in range(99)})) == "primary"


async def test_what_cannot_work_is_refused(stale: Database) -> None:
    """A scope that joins another reads where that one does, a mark is a string, and only PostgreSQL has positions."""
    with pytest.raises(ConfigurationError, match="propagation"):
        session_scope(stale, read_only=True, after="a", propagation="join")
    sticky = SQLAlchemyMiddleware(
        lister(stale),
        stale,
        read_only=READS,
        stick=9,
        stick_by=(lambda _scope: 5, lambda *_: None),  # type: ignore[arg-type, return-value]
    )
    assert isinstance((await Call(sticky)()).raised, ConfigurationError)
    with pytest.raises(ConfigurationError, match='stick="wal" is for PostgreSQL'):
        SQLAlchemyMiddleware(lister(stale), stale, read_only=READS, stick="wal")
    await stale.async_dispose()
