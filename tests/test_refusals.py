"""A COMMIT whose session the server ended: where it says so, nothing was committed, and the request is retried."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.util import await_only
from support.asgi import Call, http_scope, respond
from support.databases import Backend
from support.drivers import PSYCOPG_TELLS
from support.failing import engine_of, insert, lose_network
from support.marks import KINDS, POSTGRESQL, WAYS, on_postgresql

from asgi_sqla import ERROR_RESPONSES, Database, SQLAlchemyMiddleware, current_unit
from asgi_sqla.engine.refusals import is_refusal
from asgi_sqla.session.listeners import IN_DOUBT

on_telling = pytest.mark.parametrize("backend", [name for name in POSTGRESQL if name != "psycopg2"], indirect=True)
"""psycopg2 does not pass on the server's words about a connection that is then closed."""


@pytest.fixture(params=WAYS, ids=["pipelined", "plain"])
def pipelining(request: pytest.FixtureRequest) -> bool:
    """Have a ``Database`` with our adapters, and one with SQLAlchemy's own."""
    return bool(request.param)


class Shop:
    """An application that writes one row, and keeps what it was told of each attempt."""

    def __init__(self, database: Database, kind: str) -> None:
        self.told: list[str] = []
        self._database = database
        self._kind = kind
        self.app = SQLAlchemyMiddleware(self._serve, database, retries=2, error_responses=ERROR_RESPONSES)

    async def _serve(self, _scope: Any, _receive: Any, send: Any) -> None:
        current_unit().on_commit(self.told.append, "committed")
        current_unit().on_rollback(self.told.append, "rolled back")
        await insert(self._database, self._kind, name="tea")
        await respond(send, 201)

    async def order(self) -> int:
        """Make a request, and return its status."""
        return (await Call(self.app, http_scope(method="POST"))()).status


async def order_once_refused(database: Database, backend: Backend, kind: str) -> None:
    """Make a request whose first COMMIT the server refuses as it ends the session, and check that it is retried.

    An older psycopg loses the server's words, and so leaves a doubt.
    """
    shop = Shop(database, kind)
    found = await shop.order(), shop.told, backend.names()
    if engine_of(database, kind).dialect.driver == "asyncpg" or PSYCOPG_TELLS:
        assert found == (201, ["rolled back", "committed"], ["tea"])
    else:
        assert found == (503, [], [])


def once(database: Database, kind: str, do: Callable[[Connection], None]) -> None:
    """Do something just before the next COMMIT is sent."""
    left = [1]

    def on_commit(connection: Connection) -> None:
        if left:
            left.clear()
            do(connection)

    event.listen(engine_of(database, kind), "commit", on_commit)


@pytest.mark.parametrize("kind", KINDS)
@on_telling
async def test_a_session_that_was_ended_before_its_commit_is_retried(
    database: Database, backend: Backend, kind: str
) -> None:
    """As by a restart or a failover: the server's last words wait in the socket, and COMMIT meets them."""
    once(database, kind, partial(terminate, backend))
    await order_once_refused(database, backend, kind)


def terminate(backend: Backend, connection: Connection) -> None:
    cursor = connection.connection.cursor()  # past every event
    cursor.execute("SELECT pg_backend_pid()")
    (pid,) = cursor.fetchone() or (None,)
    with backend.witness.connect() as witness:
        assert witness.scalar(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid}) is True
    if connection.dialect.is_async:
        await_only(asyncio.sleep(0.05))  # asyncpg cannot read the words once a write to a Unix socket has failed


@pytest.mark.parametrize("kind", KINDS)
@on_telling
async def test_a_refusal_after_a_textual_commit_is_in_doubt(database: Database, backend: Backend, kind: str) -> None:
    """What the server refuses is the second COMMIT; the first one, of a listener, has committed."""

    def commit(connection: Connection) -> None:
        connection.exec_driver_sql("COMMIT")
        terminate(backend, connection)

    once(database, kind, commit)
    shop = Shop(database, kind)
    assert await shop.order() == 503
    assert (shop.told, backend.names()) == ([], ["tea"])


@pytest.mark.parametrize("kind", KINDS)
@on_telling
async def test_a_session_that_was_idle_for_too_long_is_retried(database: Database, backend: Backend, kind: str) -> None:
    """The server has ended it by its own timeout."""

    def linger(connection: Connection) -> None:
        connection.connection.cursor().execute("SET LOCAL idle_in_transaction_session_timeout = 50")
        await_only(asyncio.sleep(0.3)) if connection.dialect.is_async else time.sleep(0.3)

    once(database, kind, linger)
    await order_once_refused(database, backend, kind)


@pytest.fixture
def _killing_once(backend: Backend) -> Iterator[None]:
    """Install a deferred trigger that ends the session in the middle of its first COMMIT."""
    function = (
        "CREATE FUNCTION kill_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('kills') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(5); END IF; "
        "RETURN NULL; END $$"
    )
    trigger = (
        "CREATE CONSTRAINT TRIGGER killing AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION kill_once()"
    )
    with backend.witness.begin() as connection:
        for statement in ("CREATE SEQUENCE kills", function, trigger):  # a sequence is not rolled back
            connection.exec_driver_sql(statement)
    yield
    with backend.witness.begin() as connection:
        connection.exec_driver_sql("DROP FUNCTION kill_once() CASCADE")
        connection.exec_driver_sql("DROP SEQUENCE kills")


@pytest.mark.usefixtures("_killing_once")
@pytest.mark.parametrize("kind", KINDS)
@on_telling
async def test_a_session_that_is_ended_in_its_commit_is_retried(
    database: Database, backend: Backend, kind: str
) -> None:
    """The server answers COMMIT with the error that ends the session, and so has rolled back."""
    await order_once_refused(database, backend, kind)


@pytest.mark.parametrize("kind", KINDS)
@on_postgresql
async def test_a_commit_without_any_answer_is_in_doubt(database: Database, backend: Backend, kind: str) -> None:
    """It is neither retried nor told as rolled back: it may have been applied, though this one was not."""
    once(database, kind, lose_network)
    shop = Shop(database, kind)
    assert await shop.order() == 503
    assert (shop.told, backend.names()) == ([], [])


def ended(error: BaseException, *, cause: BaseException | None = None, context: BaseException | None = None) -> Any:
    """Return an error of SQLAlchemy's around ``error``, which has a cause or a context."""
    error.__cause__, error.__context__ = cause, context
    return OperationalError("COMMIT", {}, error)


ADMIN, LOST = (
    psycopg.errors.AdminShutdown("terminating connection due to administrator command"),
    "closed by the server",
)


@pytest.mark.parametrize(
    ("error", "refused"),
    {
        "the server's own error": (ended(psycopg.errors.AdminShutdown("terminating")), True),
        "asyncpg's, with the server's as its cause": (
            ended(asyncpg.ConnectionDoesNotExistError(LOST), cause=asyncpg.AdminShutdownError("terminating")),
            True,
        ),
        "asyncpg's, before it sent anything": (ended(asyncpg.InterfaceError("connection is closed")), True),
        "that of SQLAlchemy's own adapter": (
            ended(asyncpg.InterfaceError("cannot call Transaction.commit(): the underlying connection is closed")),
            True,
        ),
        "no word of the server": (ended(asyncpg.ConnectionDoesNotExistError(LOST)), False),
        "the server crashed": (ended(psycopg.errors.CrashShutdown("crash of another process")), False),
        "an earlier error": (ended(psycopg.OperationalError(LOST), context=ADMIN), False),
        "the words of asyncpg from elsewhere": (ended(psycopg.OperationalError("connection is closed")), False),
        "a protocol error of asyncpg": (ended(asyncpg.InternalClientError("unexpected message")), False),
    }.values(),
)
def test_which_errors_refuse_a_commit(error: DBAPIError, refused: bool) -> None:
    """Only those that say so, or that say that nothing was sent."""
    assert is_refusal(error) is refused
    assert IN_DOUBT not in getattr(error, "__notes__", [])


def test_causes_in_a_circle_end() -> None:
    """As some frameworks make them."""
    error = ValueError()
    error.__cause__ = error
    assert is_refusal(error) is False
