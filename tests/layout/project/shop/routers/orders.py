"""``/orders``, with async handlers: they use ``db.async_session``."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import select

from asgi_sqla import on_commit
from shop.db import db
from shop.mails import confirm
from shop.models import Order, Person

router = APIRouter(prefix="/orders", tags=["orders"])


class NewOrder(BaseModel):
    """What a client sends."""

    person_id: int
    item: str


class OrderSeen(NewOrder):
    """What a client gets."""

    id: int
    shipped: bool


@router.post("", status_code=201, response_model=OrderSeen)
async def add_order(new: NewOrder) -> Order:
    """Take an order. The mail is sent after the COMMIT, and not at all if the COMMIT fails."""
    person = await Person.get_or_404(db.async_session, new.person_id)
    order = Order(person_id=person.id, item=new.item)
    db.async_session.add(order)
    await db.async_session.flush()  # sets the id, which the response needs
    on_commit(confirm, person.email, order.item)
    return order


@router.get("", response_model=list[OrderSeen])
async def list_orders() -> Sequence[Order]:
    """List the orders."""
    return (await db.async_session.scalars(select(Order).order_by(Order.id))).all()
