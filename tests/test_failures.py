"""What the client is told, what is kept and what is given back, wherever and however a request fails."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session
from support.asgi import App, Call, http_scope, respond
from support.databases import Backend, backend_names
from support.failing import BrokenError, Patient, Trouble, engine_of, execute, insert, until

from asgi_sqla import Database, SQLAlchemyMiddleware

Messages = list[tuple[Any, ...]]

NOTHING: Messages = []
HALF: Messages = [("start", 201), ("body", b"one", True)]
WHOLE: Messages = [*HALF, ("body", b"two", False)]
REFUSED: Messages = [("start", 422), *WHOLE[1:]]
LATER = ["background", "stream"]
"""What is written after the start, and committed if the application returns, whatever the status."""
ALL = ["background", "handler", "stream"]
FAILED: Messages = [("start", 500), ("body", b"Internal Server Error", False)]

KINDS = ["sync", "async", "both"]
CANCELLED = ["cancelled", "cancelled twice", "cancelled by anyio"]
HOWS = ["exception", *CANCELLED, "terminated", "status"]
WHERES = ["handler", "flush", "commit", "rollback", "close", "stream", "background", "last commit"]


class Outcome(NamedTuple):
    """What must come of a failure: all ASGI messages, all rows, and what the server sees raised."""

    messages: Messages
    rows: list[str]
    raised: type[BaseException] | None


def cancelled(messages: Messages, rows: list[str]) -> dict[str, Outcome]:
    return dict.fromkeys(CANCELLED, Outcome(messages, rows, asyncio.CancelledError))


MATRIX: dict[str, dict[str, Outcome]] = {
    "handler": {
        "exception": Outcome(NOTHING, [], BrokenError),
        "terminated": Outcome(NOTHING, [], DBAPIError),
        "status": Outcome(REFUSED, LATER, None),
        **cancelled(NOTHING, []),
    },
    "flush": {
        "exception": Outcome(NOTHING, [], BrokenError),
        "terminated": Outcome(NOTHING, [], DBAPIError),
        **cancelled(NOTHING, []),
    },
    "commit": {
        "exception": Outcome(FAILED, [], BrokenError),
        "terminated": Outcome(FAILED, [], DBAPIError),
        "status": Outcome(WHOLE, ALL, None),
        **cancelled(NOTHING, ["handler"]),  # a COMMIT that has begun is waited for
    },
    "rollback": {
        # The connection is in doubt, so it is invalidated, and the session with it: the body cannot use it.
        "exception": Outcome(REFUSED[:2], [], InvalidRequestError),
        "terminated": Outcome(REFUSED[:2], [], InvalidRequestError),
        **cancelled(NOTHING, []),
    },
    "close": {
        "exception": Outcome(WHOLE, ALL, BrokenError),
    },
    "stream": {
        "exception": Outcome(HALF, ["handler"], BrokenError),
        "terminated": Outcome(HALF, ["handler"], DBAPIError),
        **cancelled(HALF, ["handler"]),
    },
    "background": {
        "exception": Outcome(WHOLE, ["handler"], BrokenError),
        "terminated": Outcome(WHOLE, ["handler"], DBAPIError),
        **cancelled(WHOLE, ["handler"]),
    },
    "last commit": {
        "exception": Outcome(WHOLE, ["handler"], BrokenError),
        "terminated": Outcome(WHOLE, ["handler"], DBAPIError),
        **cancelled(WHOLE, ALL),
        "cancelled by anyio": Outcome(WHOLE, ALL, None),  # nothing is awaited after it
    },
}
NOT_APPLICABLE = {
    ("flush", "status"): "a flush returns no status",
    ("rollback", "status"): "the status that rolls back is handler/status",
    ("close", "terminated"): "a session that has settled has no connection when it is closed",
    **dict.fromkeys([("close", how) for how in CANCELLED], "closing a session that has settled awaits nothing"),
    **dict.fromkeys(
        [(where, "status") for where in ("close", "stream", "background", "last commit")], "the status has been sent"
    ),
}
NO_TERMINATION = "SQLite has no server, and so no backend to terminate"


def cases() -> list[Any]:
    """Every cell of the matrix that applies, for every backend."""
    return [
        pytest.param(backend, where, how, id=f"{backend}-{where}-{how}")
        for backend in backend_names()
        for where, outcomes in MATRIX.items()
        for how in outcomes
        if not (backend == "sqlite" and how == "terminated")  # NO_TERMINATION
    ]


def test_the_matrix_is_complete() -> None:
    """Each place x each way is in the matrix, or says why it does not apply."""
    cells = {(where, how) for where, outcomes in MATRIX.items() for how in outcomes}

    assert cells | NOT_APPLICABLE.keys() == {(where, how) for where in WHERES for how in HOWS}
    assert cells & NOT_APPLICABLE.keys() == set()


def seen(call: Call) -> Messages:
    """Return what of each message the matrix speaks of."""
    return [
        ("start", message["status"])
        if message["type"] == "http.response.start"
        else ("body", message["body"], message.get("more_body", False))
        for message in call.messages
    ]


@pytest.fixture(scope="module", autouse=True)
def young_garbage() -> Iterator[None]:
    """Keep what imports made out of the collection after each test, which takes 50 ms otherwise."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class BreaksOnClose(Session):
    """A session of the user's own whose close() fails, having closed."""

    breaks = False

    def close(self) -> None:
        super().close()
        if BreaksOnClose.breaks:
            raise BrokenError


def application(database: Database, kind: str, status: int, trouble: Trouble) -> App:
    """Return an application that writes in its handler, in mid-stream and after its body."""
    writer = "async" if kind == "both" else kind

    async def app(scope: Any, receive: Any, send: Any) -> None:
        trouble.watch(engine_of(database, writer))
        if kind == "both":
            await execute(database, "sync", "SELECT 1")
        await insert(database, writer, name="handler")
        await trouble.at("handler", database, writer)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await insert(database, writer, name="stream")
        await trouble.at("stream", database, writer)
        await send({"type": "http.response.body", "body": b"two", "more_body": False})
        await insert(database, writer, name="background")
        await trouble.at("background", database, writer)

    return app


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("backend", "where", "how"), cases(), indirect=["backend"])
async def test_a_failure(
    database: Database, backend: Backend, where: str, how: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client, the table and the pools are left as the matrix says, and the next request is served."""
    database.configure(backend.url, session_options={"class_": BreaksOnClose})
    monkeypatch.setattr(BreaksOnClose, "breaks", where == "close")
    trouble = Trouble(backend, where, how)
    status = 422 if where == "rollback" or (where, how) == ("handler", "status") else 201
    call = Patient(SQLAlchemyMiddleware(application(database, kind, status, trouble), database))

    await trouble.suffer(call)

    await until(lambda: out(database) == 0)
    expected = MATRIX[where][how]
    assert seen(call) == expected.messages
    assert backend.names() == expected.rows
    assert isinstance(call.raised, expected.raised or type(None))
    assert idle_in_transaction(backend) == 0
    monkeypatch.setattr(BreaksOnClose, "breaks", False)
    assert await next_requests(database, kind, 2) == [201, 201]


def out(database: Database) -> int:
    """Return how many connections of both pools are checked out."""
    pools = [database.engine.pool, database.async_engine.pool]
    return sum(pool.checkedout() for pool in pools)  # type: ignore[attr-defined]  # both are queue pools


def idle_in_transaction(backend: Backend) -> int:
    """Return how many backends the server says are idle in transaction; SQLite has none."""
    return backend.backends("idle in transaction%") if backend.is_postgresql else 0


async def next_requests(database: Database, kind: str, count: int) -> list[int]:
    """Return the statuses of ``count`` requests, one after the other, that write."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "sync" if kind == "sync" else "async", name=scope["path"])
        await respond(send, 201)

    middleware = SQLAlchemyMiddleware(app, database)
    calls = [await Call(middleware, http_scope(f"/next/{number}"))() for number in range(count)]
    return [call.status for call in calls]
