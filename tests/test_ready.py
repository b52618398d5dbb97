"""Readiness: what is answered in every state of the databases, how soon, and what is never shown."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from fastapi import FastAPI
from sqlalchemy import create_engine, event, make_url, text
from support.asgi import Call, http_scope
from support.dark import dark
from support.databases import Backend, connections_out
from support.empty import KINDS as EMPTY_KINDS
from support.failing import execute, insert, until
from support.marks import KINDS, POSTGRESQL, on_one, on_server
from support.migrating import Project, first_project
from support.servers import Server, wait_until

from asgi_sqla import ConfigurationError, Database, SQLAlchemyMiddleware, current_unit, session_scope
from asgi_sqla.health import ready
from asgi_sqla.health import server as room
from asgi_sqla.testing import rolled_back

LIMIT = 0.3
"""Seconds that a question waits in these tests."""
PATIENCE = 5.0


def of_kind(backend: Backend, kind: str, **options: Any) -> Database:
    """Return a database that is asked by its async engine, or by its sync one, because it has no other."""
    if kind == "async":
        return Database(backend.url, **options)
    return Database(engine=create_engine(sync_url(backend.url), **options.get("engine_options", {})))


def sync_url(url: str) -> Any:
    """Return the URL for a sync driver."""
    drivers = {"asyncpg": "psycopg", "asyncmy": "pymysql", "aiomysql": "pymysql", "aiosqlite": "pysqlite"}
    parsed = make_url(url)
    _, _, driver = parsed.drivername.partition("+")
    query = {"sslmode" if key == "ssl" else key: value for key, value in parsed.query.items()}
    known = driver in drivers
    return parsed.set(drivername=f"{parsed.get_backend_name()}+{drivers[driver]}", query=query) if known else parsed


async def disposed(database: Database) -> None:
    """Dispose both kinds of engine, also one that was passed in."""
    for engine in database._ready().existing():
        if not engine.dialect.is_async:
            engine.dispose()
    await database.async_dispose()


async def ask(app: Any, method: str = "GET", path: str = "/ready") -> tuple[int, Any]:
    """Return the status, and the JSON of the body if there is one."""
    call = await Call(app, http_scope(path, method))()
    assert call.raised is None
    return call.status, json.loads(call.body) if call.body else None


def count_connections_used(database: Database, kind: str) -> list[int]:
    """Return a list that gets an item for each connection that is checked out."""
    used: list[int] = []
    engine = database.engine if kind == "sync" else database.async_engine.sync_engine
    event.listen(engine, "checkout", lambda *_: used.append(1))
    return used


@pytest.fixture(params=KINDS)
async def database(request: pytest.FixtureRequest, backend: Backend) -> AsyncIterator[Database]:
    """Return a database that is asked by either kind of engine."""
    database = of_kind(backend, request.param)
    yield database
    await disposed(database)


async def test_a_database_that_answers_is_ready(database: Database) -> None:
    """At any path, with what a person wants to know, and nothing that a stranger must not."""
    status, said = await ask(ready(database), path="/any/path")
    (one,) = said.pop("databases")
    assert (status, said) == (200, {"ready": True})
    assert 0 < one["primary"].pop("milliseconds") < 60_000
    assert one["primary"] == {"reachable": True}
    assert one.keys() == {"kind", "primary", "pools"}
    assert one["kind"] == database._dialect().name
    assert [pool["out"] for pool in one["pools"]] == [0]


@on_one
async def test_methods(backend: Backend) -> None:
    """HEAD has the headers of GET and no body, and any other method is refused with the list of these two."""
    database = Database(backend.url)
    app = ready(database)
    got, head, post = [await Call(app, http_scope("/", method))() for method in ("GET", "HEAD", "POST")]
    assert (got.status, head.status, post.status) == (200, 200, 405)
    assert head.messages[0] == got.messages[0]
    assert (head.body, post.body) == (b"", b"")
    assert dict(got.messages[0]["headers"])[b"content-length"] == b"%d" % len(got.body)
    assert (b"allow", b"GET, HEAD") in post.messages[0]["headers"]
    socket = Call(app, {"type": "websocket", "path": "/"})
    await socket()
    assert [message["type"] for message in socket.messages] == ["websocket.close"]
    await disposed(database)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_is_good_for_a_while(backend: Backend, kind: str) -> None:
    """Requests in that time ask nothing of the database; those that come together share one question."""
    database = of_kind(backend, kind)
    await ask(ready(database))
    used = count_connections_used(database, kind)
    kept, fresh = ready(database, cache=60), ready(database, cache=0)
    assert {(await ask(kept))[0] for _ in range(5)} == {200}
    assert len(used) == 1
    answers = await asyncio.gather(*(ask(fresh) for _ in range(20)))
    assert ({status for status, _ in answers}, len(used)) == ({200}, 2)
    await ask(fresh)
    assert len(used) == 3
    await disposed(database)


async def test_a_client_that_hangs_up_leaves_the_question_to_the_others(backend: Backend) -> None:
    """It is asked outside its request, in no unit of work."""
    database = Database(backend.url)
    used = count_connections_used(database, "async")
    app = SQLAlchemyMiddleware(ready(database, cache=60), database)
    first = asyncio.create_task(ask(app))
    await asyncio.sleep(0)
    first.cancel()
    assert (await ask(app))[0] == 200
    assert len(used) == 1
    await disposed(database)


@pytest.mark.parametrize("kind", KINDS)
@on_server
async def test_a_dark_server_is_a_503_in_time(backend: Backend, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is asked, with connections in the pool and without; it is ready again with the network.

    A thread that waits for its connection cannot be woken, so there are few of them.
    """
    monkeypatch.setattr(room, "SPACE", 1.0)
    with dark(backend) as (proxy, url):
        database = of_kind(Backend(backend.name, url, backend.witness), kind)
        app = ready(database, cache=0, timeout=LIMIT)
        async with asyncio.timeout(PATIENCE):
            while (await ask(app))[0] != 200:  # noqa: ASYNC110  # a busy machine needs longer for the first
                await asyncio.sleep(LIMIT)
        proxy.go_dark()
        threads = threading.active_count()
        for _ in range(room.MOST_LEFT + 5):
            began = time.monotonic()
            status, said = await ask(app)
            assert status == 503
            assert said["databases"][0]["primary"].pop("milliseconds") < 1000 * PATIENCE
            assert said["databases"][0]["primary"] == {"reachable": False, "error": "no answer"}
            assert time.monotonic() - began < LIMIT + PATIENCE
        assert threading.active_count() <= threads + room.MOST_LEFT + 2
        proxy.let_through()
        began = time.monotonic()
        while (await ask(app))[0] != 200:
            assert time.monotonic() < began + 4 * PATIENCE
            await asyncio.sleep(0.05)
        if kind == "async":
            await until(lambda: connections_out(database) == 0)
        await disposed(database)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_pool_is_ready_at_once(backend: Backend, kind: str) -> None:
    """The question has a connection of its own, and what the pool holds is in the answer."""
    database = of_kind(backend, kind, engine_options={"pool_size": 1, "max_overflow": 0, "pool_timeout": 30})
    app = ready(database, cache=0, timeout=PATIENCE)
    before = backend.backends() if backend.name != "sqlite" else 0

    async def held() -> None:
        began = time.monotonic()
        status, said = await ask(app)
        assert (status, time.monotonic() - began < PATIENCE) == (200, True)
        assert [(pool["out"], pool["size"], pool["waiting"]) for pool in said["databases"][0]["pools"]] == [(1, 1, 0)]

    if kind == "sync":
        with database.engine.connect():
            await held()
    else:
        async with database.async_engine.connect():
            await held()
    if backend.name != "sqlite":
        assert wait_until(lambda: backend.backends() == before + 1)
    await disposed(database)


@on_server
async def test_stale_connections_are_no_outage(database: Database, backend: Backend) -> None:
    """After a restart of the server the pool is full of them, and the first answer is right."""
    app = ready(database, cache=0, timeout=PATIENCE)
    assert (await ask(app))[0] == 200
    assert backend.terminate() >= 1
    assert (await ask(app))[0] == 200


@pytest.mark.parametrize("kind", KINDS)
@on_server
async def test_a_refused_connection_is_told_without_its_url(
    backend: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No password, user or host is in the answer, and no password in the log, which tells once."""
    url = make_url(backend.url).set(host="127.0.0.1", port=9, username="ann", password="s3cret", query={})
    database = of_kind(Backend(backend.name, url.render_as_string(hide_password=False), backend.witness), kind)
    app = ready(database, cache=0)
    with caplog.at_level(logging.INFO, "asgi_sqla"):
        answers = [await Call(app, http_scope("/"))() for _ in range(3)]
    for call in answers:
        assert call.status == 503
        assert json.loads(call.body)["databases"][0]["primary"]["error"] == "unavailable"
        assert not any(word in call.body for word in (b"s3cret", b"ann", b"127.0.0.1"))
    assert len([one for one in caplog.records if "readiness" in one.getMessage()]) == 1
    assert "s3cret" not in caplog.text + repr(app)
    await disposed(database)


async def test_a_database_without_a_configuration_is_not_ready(global_db: Database, sqlite: Backend) -> None:
    """It may be configured later."""
    app = ready(global_db, cache=0)
    status, said = await ask(app)
    assert (status, said["databases"][0]["primary"]["error"]) == (503, "ConfigurationError")
    global_db.configure(sqlite.url)
    assert (await ask(app))[0] == 200
    await global_db.async_dispose()


async def test_replicas_and_other_databases_count(sqlite: Backend, tmp_path: Path) -> None:
    """One that does not answer is enough for a 503, and the answer says which."""
    there = Database(sqlite.url, read_only_url=sqlite.url)
    gone = Database(sqlite.url, read_only_url=f"sqlite:///{tmp_path / 'no' / 'folder.db'}")
    assert (await ask(ready(there)))[0] == 200
    status, said = await ask(ready(there, gone))
    found = [[one["primary"]["reachable"], one["replicas"]["reachable"]] for one in said["databases"]]
    assert (status, found) == (503, [[True, True], [True, False]])
    assert [pool["role"] for pool in said["databases"][0]["pools"]] == ["write", "read"]
    await there.async_dispose()
    await gone.async_dispose()


@pytest.fixture(params=EMPTY_KINDS)
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    """Return a project on each kind of database in turn, with the revision that creates its tables."""
    with first_project(request.param, tmp_path) as project:
        yield project


async def test_revisions(project: Project) -> None:
    """Missing ones are not ready; newer ones are, because the older processes serve while a deployment goes on."""
    migrations = project.migrations

    async def state() -> tuple[int, str]:
        status, said = await ask(ready(migrations.database, migrations=migrations, timeout=PATIENCE))
        return status, said["databases"][0]["revision"]

    found = [await state()]
    await migrations.async_migrate()
    found.append(await state())
    project.second()
    found.append(await state())
    await migrations.async_migrate()
    found.append(await state())
    (project.folder / "migrations" / "versions" / "second.py").unlink()
    found.append(await state())
    assert found == [
        (503, "empty"),
        (200, "up to date"),
        (503, "upgrade available"),
        (200, "up to date"),
        (200, "unknown revision"),
    ]
    await migrations.database.async_dispose()


async def test_no_lock_is_waited_for(project: Project) -> None:
    """Another process migrates, and the answer comes at once."""
    migrations = project.migrations
    await migrations.async_migrate()
    app = ready(migrations.database, migrations=migrations, cache=0, timeout=PATIENCE)
    assert (await ask(app))[0] == 200
    go, locked = threading.Event(), threading.Event()

    def hold(_connection: object) -> None:
        locked.set()
        go.wait(PATIENCE)

    holding = threading.Thread(target=lambda: migrations.with_lock(hold))
    holding.start()
    assert await asyncio.to_thread(locked.wait, PATIENCE)
    status = (await ask(app))[0]
    go.set()
    holding.join()
    # On SQLite the lock is an exclusive transaction: in WAL mode others read what was there before.
    assert status == 200
    await migrations.database.async_dispose()


async def test_scripts_that_cannot_be_read_are_told(project: Project) -> None:
    """The answer has the class of the error, and the log the rest."""
    project.script("broken", "first", upgrade="pass")
    (project.folder / "migrations" / "versions" / "broken.py").write_text("import nothing_of_this_name")
    migrations = project.migrations
    status, said = await ask(ready(migrations.database, migrations=migrations))
    assert (status, said["databases"][0]["primary"]["error"]) == (503, "MigrationError")
    await migrations.database.async_dispose()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_writer_of_sqlite_is_not_waited_for(sqlite: Backend, kind: str) -> None:
    """Not even where transactions begin by taking the writer's lock."""
    database = (
        Database(sqlite.url, transaction_mode="immediate") if kind == "async" else of_kind(sqlite, kind)
    )  # an engine that was passed in begins as its owner wants
    app = ready(database, cache=0, timeout=LIMIT)
    await ask(app)
    with sqlite.witness.connect() as writer:
        writer.exec_driver_sql("BEGIN IMMEDIATE")
        assert (await ask(app))[0] == 200
    await disposed(database)


@on_one
async def test_around_it_a_unit_of_work(backend: Backend) -> None:
    """Beside others' routes under the middleware, it is no part of the unit, which has nothing to commit."""
    database = Database(backend.url)
    shop: Any = FastAPI()
    shop.add_middleware(SQLAlchemyMiddleware, database=database, retries=2)
    shop.add_route("/ready", ready(database, cache=0))
    shop.mount("/health", ready(database))

    async def name() -> str:
        await database.async_session.execute(text("SELECT 1"))
        return current_unit().name

    shop.get("/name")(name)

    with Server(shop) as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            answers = [await client.get(path) for path in ("/ready", "/health/any", "/name")]
            assert [answer.status_code for answer in answers] == [200, 200, 200]
            assert answers[0].json()["ready"] is True
            assert (await client.head("/ready")).headers["content-type"] == "application/json"
        assert server.out_now(database) == 0


async def test_inside_a_test_that_is_rolled_back(backend: Backend) -> None:
    """It asks there too, and ends no transaction of the test."""
    database = Database(backend.url)
    async with rolled_back(database):
        async with session_scope(database):
            await insert(database, "async", name="tea")
        assert (await ask(ready(database)))[0] == 200
        async with session_scope(database):
            assert await execute(database, "async", "SELECT count(*) FROM item") == 1
    assert backend.names() == []
    await disposed(database)


@on_one
async def test_alone_on_a_server(backend: Backend) -> None:
    """It takes part in the lifespan, and disposes what it has opened."""
    database = Database(backend.url)
    before = backend.backends() if backend.name != "sqlite" else 0
    with Server(ready(database), lifespan="on") as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            assert (await client.get("/")).status_code == 200
    if backend.name != "sqlite":
        assert wait_until(lambda: backend.backends() == before)


@pytest.mark.parametrize("backend", POSTGRESQL[:1], indirect=True)
def test_under_trio(backend: Backend) -> None:
    """The sync engine is asked, in a thread; a dark server is a 503 in time, and several clients share one question."""
    found: list[int] = []

    async def request(app: Any) -> None:
        messages: list[Any] = []

        async def send(message: Any) -> None:
            messages.append(message)

        await app(http_scope("/"), None, send)
        found.append(messages[0]["status"])

    async def scenario() -> None:
        database = of_kind(Backend(backend.name, url, backend.witness), "sync")
        app = ready(database, cache=0, timeout=PATIENCE)
        await request(app)
        used = count_connections_used(database, "sync")
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(request, app)
        # The first has its own; those that came while it was asked share the next.
        assert len(used) <= 2
        proxy.go_dark()
        with trio.fail_after(PATIENCE):
            await request(ready(database, timeout=LIMIT))
        proxy.let_through()
        database.engine.dispose()

    with dark(backend) as (proxy, url):
        trio.run(scenario)
    assert found == [200] * 11 + [503]


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("sqlite://",), {}, r"ready: 'sqlite://' is not a Database; write ready\(Database\(url\)\)"),
        ((), {"migrations": "migrations"}, "ready: migrations='migrations' is not a Migrations; write migrations="),
        ((), {"cache": -1}, "ready: cache=-1 is not a number of at least 0"),
        ((), {"cache": "5"}, "ready: cache='5' is not a number"),
        ((), {"timeout": 0}, "ready: timeout=0 is not a number above 0; write the seconds to wait"),
        ((), {"timeout": True}, "ready: timeout=True is not a number above 0"),
    ],
)
def test_wrong_arguments(sqlite: Backend, arguments: Any, options: Any, said: str) -> None:
    """Each is an error at once, that says what to write."""
    with pytest.raises(ConfigurationError, match=said):
        ready(*(arguments or [Database(sqlite.url)]), **options)


def test_migrations_of_another_database(tmp_path: Path, sqlite: Backend) -> None:
    """They would be read from nowhere."""
    from asgi_sqla.migrations import Migrations

    migrations = Migrations(Database("sqlite://"), tmp_path)
    with pytest.raises(ConfigurationError, match="is of another Database; write ready"):
        ready(Database(sqlite.url), migrations=migrations)


def test_a_password_by_mistake_is_not_shown() -> None:
    """A URL in the place of a Database is named by its type alone."""
    with pytest.raises(ConfigurationError) as caught:
        ready("postgresql://ann:s3cret@localhost/shop")  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)


def test_what_is_imported() -> None:
    """The core does not know it, and it does not load Alembic."""
    program = (
        "import sys, asgi_sqla; assert not any(name.startswith('asgi_sqla.health') for name in sys.modules); "
        "import asgi_sqla.health; assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
