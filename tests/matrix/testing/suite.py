"""The one test file: it passes with each client, database, order and number of workers.

``test_suite.py`` runs it, in a separate pytest, on a database that holds one order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import shops

from asgi_sqla import session_scope

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture
def client(rolled_back_database: Any) -> Iterator[shops.Client]:
    """Return the client under test."""
    shops.told.clear()
    with shops.CLIENTS[os.environ["ASGI_SQLA_TEST_CLIENT"]]() as client:
        yield client


def count(client: shops.Client, kind: str) -> int:
    """Return how many orders the test itself sees, in a new scope."""

    async def in_async_scope() -> int:
        async with session_scope(shops.db) as session:
            return await session.scalar(shops.COUNT) or 0

    if kind == "async":
        return int(client.run(in_async_scope))
    with session_scope(shops.db) as session:
        return session.scalar(shops.COUNT) or 0


@KINDS
@pytest.mark.parametrize("time", range(5))
def test_requests_and_the_test_see_one_world(client: shops.Client, kind: str, time: int) -> None:
    """The next request and the test see what a request commits, and each test begins with the one order."""
    assert count(client, kind) == 1
    assert [client.send(f"/{kind}/{name}/201") for name in "ab"] == [(201, "2"), (201, "3")]
    assert count(client, kind) == 3


@KINDS
def test_a_request_that_fails_leaves_nothing(client: shops.Client, kind: str) -> None:
    """The application rolls back as usual."""
    client.send(f"/{kind}/a/201")
    assert client.send(f"/{kind}/b/422")[0] == 422
    assert (count(client, kind), shops.told) == (2, ["a"])


@KINDS
def test_callbacks_are_captured(client: shops.Client, kind: str, captured_callbacks: Any) -> None:
    """They are collected with their arguments, and not called."""
    client.send(f"/{kind}/a/201")
    assert ([one.args for one in captured_callbacks], shops.told) == ([("a",)], [])


@KINDS
def test_statements_are_counted(client: shops.Client, kind: str, assert_statements: Any) -> None:
    """There are an INSERT and a SELECT."""
    with assert_statements(exactly=2):
        client.send(f"/{kind}/a/201")


@KINDS
def test_a_commit_fails_on_request(client: shops.Client, kind: str, fail_commit: Any) -> None:
    """The client gets the error, and the next request is served."""
    with fail_commit():
        assert [client.send(f"/{kind}/{name}/201")[0] for name in "ab"] == [503, 201]
    assert (count(client, kind), shops.told) == (2, ["b"])


@KINDS
@pytest.mark.asgi_sqla(mode="copy")
def test_a_connection_is_lost_on_request(client: shops.Client, kind: str, kill_connection: Any) -> None:
    """The client gets the error, and the next request is served."""
    with kill_connection():
        statuses = [client.send(f"/{kind}/{name}/201")[0] for name in "ab"]
    assert (statuses[0] >= 500, statuses[1]) == (True, 201)


@pytest.mark.asgi_sqla(mode="copy")
@pytest.mark.parametrize("time", range(2))
def test_a_copy_serves_both_kinds(client: shops.Client, time: int) -> None:
    """The other kind sees what one kind commits."""
    assert [client.send(f"/{kind}/{kind}/201") for kind in ("sync", "async")] == [(201, "2"), (201, "3")]
    assert (count(client, "sync"), count(client, "async")) == (3, 3)
