"""A user's application with SQLModel, whose session classes have an ``exec()`` that checks statements."""

from __future__ import annotations

from typing import Annotated, assert_type

from fastapi import Depends, FastAPI
from sqlmodel import Field, Session, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from asgi_sqla import Database, SQLAlchemyMiddleware, session_scope
from asgi_sqla.models import LookupMixin, get_one


class Hero(LookupMixin, SQLModel, table=True):
    """A table."""

    id: int | None = Field(default=None, primary_key=True)
    name: str


db: Database[Session, AsyncSession] = Database(
    "sqlite://", session_options={"class_": AsyncSession, "sync_session_class": Session}
)
api = FastAPI()
app = SQLAlchemyMiddleware(api, db)
AsyncDatabaseSession = Annotated[AsyncSession, Depends(db.get_async_session)]
DatabaseSession = Annotated[Session, Depends(db.get_session)]


@api.post("/heroes")
async def add_hero(hero: Hero, session: AsyncDatabaseSession) -> Hero:
    """Use an injected AsyncSession."""
    found = await session.exec(select(Hero).where(Hero.name == hero.name))
    session.add(hero)
    return found.first() or hero


@api.get("/heroes")
def list_heroes(session: DatabaseSession) -> list[Hero]:
    """Use an injected Session."""
    return list(session.exec(select(Hero)))


@session_scope(db)
async def rename(old: str, new: str) -> Hero | None:
    """Use the AsyncSession of the unit."""
    hero = (await db.async_session.exec(select(Hero).where(Hero.name == old))).one_or_none()
    if hero is not None:
        hero.name = new
    return hero


async def nightly() -> None:
    """Use scopes of both kinds, lookups and a factory."""
    async with session_scope(db, read_only=True) as session:
        assert_type(session, AsyncSession)
        assert_type((await session.exec(select(Hero))).first(), Hero | None)
        assert_type(await Hero.get_one(session, name="Deadpond"), Hero)
    with session_scope(db) as sync_session:
        assert_type(sync_session, Session)
        assert_type(get_one(sync_session, Hero, name="Deadpond"), Hero)
    assert_type(db.session.exec(select(Hero)).first(), Hero | None)
    assert_type(await rename("Deadpond", "Wade"), Hero | None)
    with db.sessionmaker() as own:
        assert_type(own, Session)
