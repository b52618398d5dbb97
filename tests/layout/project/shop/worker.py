"""A job outside any request: ``python -m shop.worker``."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import update

from asgi_sqla import session_scope
from shop.db import db
from shop.models import Order


@session_scope(db)
def ship_orders() -> Sequence[int]:
    """Ship every open order and return their ids. It commits when it returns, and rolls back when it raises."""
    ship = update(Order).where(Order.shipped.is_(False)).values(shipped=True).returning(Order.id)
    return db.session.scalars(ship).all()


if __name__ == "__main__":
    print("shipped:", *ship_orders())
