"""A separate MariaDB with a setting that some have: a lock timeout rolls the whole transaction back."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from support.asgi import Call, respond
from support.drivers import EACH, MARIADB, case
from support.rivals import perform
from support.servers import wait_until
from support.services import missing

from asgi_sqla import ERROR_RESPONSES, Database, SQLAlchemyMiddleware, current_unit


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a MariaDB with innodb_rollback_on_timeout; return its URL, with a placeholder for the driver."""
    path = "/usr/local/bin:/usr/bin:/usr/sbin"
    programs = [shutil.which(name, path=path) for name in ("mariadb-install-db", "mariadbd")]
    if None in programs:
        missing("no mariadbd and mariadb-install-db to start a MariaDB of the test's own with")
    install, mariadbd = map(str, programs)
    folder = tmp_path_factory.mktemp("mariadb")
    data = f"--datadir={folder / 'data'}"
    more = ["--user=root", "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run([install, "--no-defaults", data, *more], check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [f"--socket={folder / 's'}", f"--port={port}", "--bind-address=127.0.0.1", "--user=root"]
    options += ["--innodb-rollback-on-timeout=ON", "--innodb-lock-wait-timeout=1", f"--pid-file={folder / 'pid'}"]
    running = subprocess.Popen(
        [mariadbd, "--no-defaults", data, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    engine = create_engine(f"mysql+pymysql://root@127.0.0.1:{port}/", poolclass=NullPool)
    try:
        assert wait_until(lambda: answers(engine.connect), 40)
        with engine.connect() as connection:
            connection.execute(text("CREATE DATABASE timeouts"))
        yield f"mysql+DRIVER://root@127.0.0.1:{port}/timeouts"
    finally:
        running.terminate()
        running.wait(20)


def answers(connect: Callable[[], Connection]) -> bool:
    """Return whether the server accepts a connection."""
    with suppress(DBAPIError):
        connect().close()
        return True
    return False


@pytest.mark.parametrize(("backend_name", "kind"), [case(name) for name in MARIADB])
@pytest.mark.timeout(120)
async def test_a_write_that_a_server_refuses_as_read_only(server: str, backend_name: str, kind: str) -> None:
    """A primary that has become a replica: the connection is discarded, and the write is retried elsewhere."""
    url = make_url(server.replace("DRIVER", backend_name)).set(username="shop")
    root = create_engine(server.replace("DRIVER", "pymysql"), poolclass=NullPool).connect()
    for sql in (
        "CREATE USER IF NOT EXISTS shop@'%'",
        "GRANT ALL ON timeouts.* TO shop@'%'",
        "SET GLOBAL read_only = 1",
    ):
        root.execute(text(sql))
    root.execute(text("CREATE TABLE IF NOT EXISTS written (attempt INT)"))
    database = Database(url)
    attempts: list[int] = []

    def work(session: Session) -> None:
        attempt = current_unit().attempt
        attempts.append(session.scalar(text("SELECT connection_id()")))
        if attempt == 2:
            root.execute(text("SET GLOBAL read_only = 0"))
        session.execute(text(f"INSERT INTO written VALUES ({attempt})"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        await respond(send, 201)

    refused = await Call(SQLAlchemyMiddleware(app, database, error_responses=ERROR_RESPONSES))()
    retried = await Call(SQLAlchemyMiddleware(app, database, retries=1))()
    await database.async_dispose()
    root.execute(text("DELETE FROM written"))
    root.commit()
    root.close()

    assert (refused.starts, retried.starts) == ([503], [201])
    assert len(set(attempts)) == 3


@pytest.mark.parametrize("answer", [201, 422])
@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize(("backend_name", "kind"), [case(name) for name in MARIADB])
@pytest.mark.timeout(120)
async def test_a_lock_timeout_that_rolls_everything_back(
    server: str, backend_name: str, kind: str, goes_on: bool, answer: int
) -> None:
    """A handler that catches it is not answered 201 without its rows, and nothing is kept."""
    assert (backend_name, kind) in EACH.values()
    database = Database(server.replace("DRIVER", backend_name))
    witness = create_engine(server.replace("DRIVER", "pymysql"), poolclass=NullPool)
    with witness.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS t"))
        connection.execute(text("CREATE TABLE t (id INT PRIMARY KEY, x VARCHAR(20))"))
        connection.execute(text("INSERT INTO t VALUES (1, 'locked')"))

    def work(session: Session) -> None:
        session.execute(text("INSERT INTO t VALUES (2, 'first')"))
        with suppress(DBAPIError):
            session.execute(text("UPDATE t SET x = 'mine' WHERE id = 1"))
        if goes_on:
            session.execute(text("INSERT INTO t VALUES (3, 'after')"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await perform(database, kind, work)
        await respond(send, answer)

    with witness.begin() as rival:
        rival.execute(text("UPDATE t SET x = 'theirs' WHERE id = 1"))
        call = await Call(SQLAlchemyMiddleware(app, database))()

    with witness.connect() as connection:
        rows = list(connection.execute(text("SELECT x FROM t WHERE id > 1")).scalars())
    await database.async_dispose()
    assert rows == []
    assert call.starts == ([422] if answer == 422 and not goes_on else [] if goes_on else [500])
