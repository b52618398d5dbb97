"""The tables. Imports nothing of the shop."""

from __future__ import annotations

from sqlalchemy import ForeignKey, MetaData, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asgi_sqla.models import NAMING_CONVENTION, LookupMixin


class Base(LookupMixin, DeclarativeBase):
    """The base of every model. Importing it imports the models as well."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Person(Base):
    """A person who can order."""

    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(200), unique=True)


class Order(Base):
    """An item that a person ordered. Nobody orders the same item twice."""

    __tablename__ = "orders"
    __table_args__ = (UniqueConstraint("person_id", "item"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey(Person.id))
    item: Mapped[str] = mapped_column(String(50))
    shipped: Mapped[bool] = mapped_column(default=False)
