"""Wrong uses, which type checkers refuse before the application runs.

A comment ``# type: ignore[code]`` holds each: it is an error itself if the checker no longer objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, Session, mapped_column

from asgi_sqla import Database, SQLAlchemyMiddleware, current_unit, session_scope
from asgi_sqla.migrations import Migrations
from asgi_sqla.models import Base, get_one
from asgi_sqla.testing import assert_statements, rolled_back

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope


class User(Base):
    """A model with lookups."""

    __tablename__ = "typed_users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Serve nothing."""


def of_database() -> None:
    """Arguments of ``Database``, and what cannot be set."""
    engine = create_engine("sqlite://")
    Database(5)  # type: ignore[arg-type]
    Database(engine)  # type: ignore[arg-type]
    Database(async_engine=engine)  # type: ignore[arg-type]
    Database("sqlite://", pool_size=5)  # type: ignore[call-arg]
    Database("sqlite://", transaction_mode="exclusive")  # type: ignore[arg-type]
    Database("sqlite://", read_only_url=[5])  # type: ignore[list-item]
    Database[int, AsyncSession]("sqlite://")  # type: ignore[type-var]
    db = Database("sqlite://")
    db.session = Session()  # type: ignore[misc]
    db.listen("connect")  # type: ignore[call-arg]


def of_middleware(db: Database, migrations: Migrations) -> None:
    """Arguments of the middleware."""
    SQLAlchemyMiddleware(db, app)  # type: ignore[arg-type]
    SQLAlchemyMiddleware(app, create_engine("sqlite://"))  # type: ignore[arg-type]
    SQLAlchemyMiddleware(app, db, commit_on=200)  # type: ignore[arg-type]
    SQLAlchemyMiddleware(app, db, commit_parts=True)  # type: ignore[arg-type]
    SQLAlchemyMiddleware(app, db, error_responses={IntegrityError: "409"})  # type: ignore[dict-item]
    SQLAlchemyMiddleware(app, db, read_only=True)  # type: ignore[arg-type]
    SQLAlchemyMiddleware(app, db, retries="3")  # type: ignore[arg-type]
    SQLAlchemyMiddleware(app, db, on_startup=migrations.migrate)  # type: ignore[arg-type]
    SQLAlchemyMiddleware(app, db, echo=True)  # type: ignore[call-arg]


async def of_scopes(db: Database) -> None:
    """Arguments of scopes, and a session of the other kind."""
    session_scope(create_engine("sqlite://"))  # type: ignore[arg-type]
    session_scope(db, propagation="joined")  # type: ignore[arg-type]
    session_scope(db, read_only="yes")  # type: ignore[arg-type]
    session_scope(db, True)  # type: ignore[call-arg, arg-type]
    with session_scope(db) as session:
        await session.commit()  # type: ignore[func-returns-value, misc]
    async with session_scope(db) as async_session:
        async_session.scalars(select(User)).all()  # type: ignore[attr-defined]
    current_unit().on_commit("notify")  # type: ignore[arg-type]
    current_unit().on_begin(lambda: None)  # type: ignore[arg-type, misc]
    current_unit().attempt = "1"  # type: ignore[assignment]

    @session_scope(db)
    def add(number: int) -> str:
        return str(number)

    add("1")  # type: ignore[arg-type]
    add(1) + 1  # type: ignore[operator]


async def of_lookups(session: Session, async_session: AsyncSession) -> None:
    """Await a value, and use an awaitable as a value."""
    await User.get_one(session, name="Ann")  # type: ignore[misc]
    print(User.get_one(async_session, name="Ann").name)  # type: ignore[attr-defined]
    print(User.get_by_pk(session, 1).name)  # type: ignore[union-attr]
    print(get_one(session, User, name="Ann").nick)  # type: ignore[attr-defined]


def of_others(db: Database, migrations: Migrations) -> None:
    """Arguments of migrations and of testing."""
    Migrations(db)  # type: ignore[call-arg]
    Migrations("sqlite://", "migrations")  # type: ignore[arg-type]
    migrations.upgrade(1)  # type: ignore[arg-type]
    rolled_back(db, mode="copies")  # type: ignore[arg-type]
    assert_statements(db, max="3")  # type: ignore[arg-type]
