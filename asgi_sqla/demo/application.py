"""A small shop on FastAPI: an example application with ``asgi_sqla``.

None of this code commits, rolls back or closes a session, and no handler is told which session to use.

Holds: the tables, the handlers and a job, as a user would write them.
Must not know: the tour.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from fastapi import BackgroundTasks, FastAPI, Response, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import ForeignKey, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import QueuePool

from asgi_sqla import ERROR_RESPONSES, SQLAlchemyMiddleware, db, session_scope


class Base(DeclarativeBase):
    """The tables of the shop."""


class Product(Base):
    """What can be ordered."""

    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Order(Base):
    """An order. COMMIT checks whether its product exists, because the constraint is deferred."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("product.id", deferrable=True, initially="DEFERRED"))
    quantity: Mapped[int]


class Mail(Base):
    """A confirmation that went to a customer."""

    __tablename__ = "mail"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]
    address: Mapped[str]


class DailyReport(Base):
    """The report of one day."""

    __tablename__ = "report"
    id: Mapped[int] = mapped_column(primary_key=True)
    orders: Mapped[int]


class NewOrder(BaseModel):
    """What a customer sends."""

    product: int
    quantity: int = 1
    email: str | None = None


@asynccontextmanager
async def lifespan(_api: FastAPI) -> AsyncIterator[None]:
    """Create the tables and the first products. Outside a request, a scope is the unit of work."""
    async with db.async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with session_scope() as session:
        session.add_all([Product(id=1, name="tea"), Product(id=2, name="coffee")])
    yield


api: FastAPI = FastAPI(title="A small shop", lifespan=lifespan)


@api.post("/orders", status_code=201)
async def place_order(new: NewOrder, response: Response, tasks: BackgroundTasks) -> dict[str, Any]:
    """Take an order: an async handler, with the ``AsyncSession`` of this request."""
    order = Order(product_id=new.product, quantity=new.quantity)
    db.async_session.add(order)
    await db.async_session.flush()  # the answer needs the id, so INSERT now
    if new.quantity > 100:
        response.status_code = 422  # an error status rolls back what was inserted above
        return {"error": "at most 100 of a product"}
    if new.email is not None:
        tasks.add_task(confirm, order.id, new.email)
    return {"order": order.id}


async def confirm(order_id: int, address: str) -> None:
    """Confirm an order, after its response: a new transaction, committed when this returns."""
    db.async_session.add(Mail(order_id=order_id, address=address))


@api.post("/orders/by-phone", status_code=201)
def place_order_by_phone(new: NewOrder) -> dict[str, int]:
    """Take an order: a sync handler, in a worker thread, with the ``Session`` of this request."""
    order = Order(product_id=new.product, quantity=new.quantity)
    db.session.add(order)
    db.session.flush()
    return {"order": order.id}


@api.get("/orders")
def list_orders() -> list[dict[str, int]]:
    """List every order."""
    orders = db.session.scalars(select(Order).order_by(Order.id))
    return [{"order": order.id, "product": order.product_id, "quantity": order.quantity} for order in orders]


@api.get("/orders/count")
async def count_orders() -> dict[str, int]:
    """Count the orders."""
    return {"orders": await db.async_session.scalar(select(func.count(Order.id))) or 0}


@api.get("/catalogue")
async def catalogue() -> StreamingResponse:
    """Stream the catalogue. It is read before the response starts, so no connection waits for the client."""
    products = (await db.async_session.scalars(select(Product))).all()
    return StreamingResponse(pages(products), media_type="text/plain")


@api.get("/catalogue/sync")
def catalogue_sync() -> StreamingResponse:
    """Stream the catalogue, with the sync ``Session``."""
    products = db.session.scalars(select(Product)).all()
    return StreamingResponse(pages(products), media_type="text/plain")


def pages(products: Sequence[Product]) -> Iterator[str]:
    """Yield 20 MB in pages of 64 KiB."""
    line = ", ".join(product.name for product in products) + "\n"
    page = (line * (2**16 // len(line) + 1))[: 2**16]
    for _ in range(320):
        yield page


@api.websocket("/till")
async def till(socket: WebSocket) -> None:
    """Take an order per message. Asking for the next message commits the last one.

    So an answer that is sent in between leaves before its COMMIT; to commit first, open a ``session_scope()``.
    """
    await socket.accept()
    async for message in socket.iter_json():
        new = NewOrder.model_validate(message)
        order = Order(product_id=new.product, quantity=new.quantity)
        db.async_session.add(order)
        await db.async_session.flush()
        await socket.send_json({"order": order.id})


@api.get("/connections")
async def connections() -> dict[str, int]:
    """Count the connections that are checked out. A request that needs no database uses none."""
    pools = {"sync": db.engine.pool, "async": db.async_engine.pool}
    return {kind: cast("QueuePool", pool).checkedout() for kind, pool in pools.items()}


@session_scope()
async def close_the_day() -> int:
    """Write the report of the day: a nightly job, outside any request, and a unit of work for each call."""
    orders = await db.async_session.scalar(select(func.count(Order.id))) or 0
    db.async_session.add(DailyReport(orders=orders))
    return orders


app: SQLAlchemyMiddleware = SQLAlchemyMiddleware(api, error_responses=ERROR_RESPONSES, check_on_startup=True)
"""What a server runs, after ``db.configure(url)`` has configured ``db``."""
