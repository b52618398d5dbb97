"""Statements that nobody can end, or that need no end; and a gate that does not stop the event loop."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.pool import QueuePool
from support.databases import Backend

from asgi_sqla import Database
from asgi_sqla.engine import interrupting
from asgi_sqla.engine.interrupting import interruption
from asgi_sqla.session.gate import LIMIT, Gate


def test_a_closed_connection_is_not_interrupted(sqlite: Backend) -> None:
    """Its driver's connection may serve somebody else by now."""
    database = Database(sqlite.url)
    connection = database.engine.connect()
    assert interruption(connection) is not None
    connection.close()

    assert interruption(connection) is None
    database.dispose()


def test_a_connection_that_closes_at_this_moment_is_not_interrupted(sqlite: Backend) -> None:
    """Another thread is free to close it between two looks."""
    database = Database(sqlite.url)
    with database.engine.connect() as open_connection:

        class Closing:
            """A connection that was open when it was asked, and is not when it is used."""

            dialect, engine = open_connection.dialect, open_connection.engine
            closed = invalidated = False

            @property
            def connection(self) -> Any:
                raise InvalidRequestError("This connection is closed")

        closing: Any = Closing()
        assert interruption(closing) is None
    database.dispose()


def test_a_server_that_refuses_the_killer_is_asked_again() -> None:
    """What was to be killed is not left for a killer that never came."""
    refused: list[int] = []

    def refuse() -> Any:
        refused.append(1)
        raise OSError("too many connections")

    pool = QueuePool(refuse)
    for _ in range(2):
        with pytest.raises(OSError, match="too many connections"):
            interrupting._kill_query(pool, 1, None)

    assert (len(refused), pool in interrupting._to_kill) == (2, False)


async def test_a_gate_does_not_stop_the_event_loop() -> None:
    """A sync session on the loop goes on at once: what it waits for could not happen while it waits."""

    class Session:
        guard_gate: Gate | None = None

    session = Session()
    began = time.monotonic()
    with Gate([session]) as gate:
        gate.wait(session)
        assert session.guard_gate is gate

    assert time.monotonic() - began < LIMIT / 2
    assert session.guard_gate is None
