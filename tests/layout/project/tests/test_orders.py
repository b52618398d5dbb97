"""The orders, as a client sees them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from httpx import AsyncClient
from shop.models import Person
from shop.worker import ship_orders

pytestmark = pytest.mark.anyio


async def test_an_order_is_kept(client: AsyncClient, ann: Person) -> None:
    """It is in the list."""
    answer = await client.post("/orders", json={"person_id": ann.id, "item": "tea"})

    assert (answer.status_code, (await client.get("/orders")).json()) == (201, [answer.json()])


async def test_a_second_one_is_refused(client: AsyncClient, ann: Person) -> None:
    """A constraint of the table forbids it, and the client gets a 409."""
    answers = [await client.post("/orders", json={"person_id": ann.id, "item": "tea"}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [201, 409]


async def test_an_unknown_person_cannot_order(client: AsyncClient) -> None:
    """The client gets the 404 of main.py."""
    answer = await client.post("/orders", json={"person_id": 1, "item": "tea"})

    assert (answer.status_code, answer.json()) == (404, {"detail": "not found"})


async def test_a_mail_follows_the_commit(client: AsyncClient, ann: Person, captured_callbacks: list[Any]) -> None:
    """The callback is captured and not called."""
    await client.post("/orders", json={"person_id": ann.id, "item": "tea"})

    assert [callback.args for callback in captured_callbacks] == [("ann@example.org", "tea")]


async def test_no_mail_follows_a_failed_commit(
    client: AsyncClient,
    ann: Person,
    captured_callbacks: list[Any],
    fail_commit: Callable[..., AbstractContextManager[None]],
) -> None:
    """And the order is not kept."""
    with fail_commit():
        answer = await client.post("/orders", json={"person_id": ann.id, "item": "tea"})

    assert (answer.status_code, captured_callbacks) == (503, [])
    assert (await client.get("/orders")).json() == []


async def test_the_list_is_one_statement(
    client: AsyncClient, assert_statements: Callable[..., AbstractContextManager[list[str]]]
) -> None:
    """However many orders there are."""
    with assert_statements(exactly=1):
        await client.get("/orders")


@pytest.mark.asgi_sqla(mode="copy")  # one transaction cannot serve an async and a sync session
async def test_the_worker_ships(client: AsyncClient, ann: Person) -> None:
    """It ships each order once."""
    order = (await client.post("/orders", json={"person_id": ann.id, "item": "tea"})).json()

    assert (ship_orders(), ship_orders()) == ([order["id"]], [])
