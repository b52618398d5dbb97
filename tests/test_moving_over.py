"""A project on sqlalchemy-helpers moves over: at most 15 new lines, and its database is not touched."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, select
from sqlalchemy.pool import NullPool
from support.empty import KINDS, empty_database
from support.migrating import importable

from asgi_sqla.migrations import MigrateResult, Status

MODELS = """
from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from {name}_db import Base


class User(Base):
    __tablename__ = "{name}_users"  # as the tests of all projects share one Base
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
"""
SETTINGS = """
from pydantic import BaseModel
from pydantic_settings import BaseSettings


class SQLAlchemyModel(BaseModel):
    url: str = {url!r}


class AlembicModel(BaseModel):
    migrations_path: str = {folder!r} + "/migrations"


class Settings(BaseSettings):
    sqlalchemy: SQLAlchemyModel = SQLAlchemyModel()
    alembic: AlembicModel = AlembicModel()
"""
APP = """
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from {name}_db import db
from {name}_models import User

app = FastAPI()
{middleware}


@app.get("/users")
async def users(session: Annotated[AsyncSession, {dependency}]) -> list[str]:
    return list(await session.scalars(select(User.name)))


@app.post("/users/{{user}}")
async def add(user: str, session: Annotated[AsyncSession, {dependency}]) -> bool:
    return (await User.get_or_create(session, name=user))[1]
"""
REVISION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = {revision!r}, {before!r}, None, None


def upgrade():
    {upgrade}


def downgrade():
    {downgrade}
"""
OURS = {
    "db": """
from asgi_sqla.models import Base
from asgi_sqla.settings import migrations_from
from {name}_settings import Settings
migrations = migrations_from(Settings(), metadata=Base)
db = migrations.database
""",
    "env": """
import {name}_models
from {name}_db import migrations
from asgi_sqla.migrations import run_env
run_env(migrations)
""",
    "middleware": "from asgi_sqla import SQLAlchemyMiddleware\napp.add_middleware(SQLAlchemyMiddleware, database=db)",
    "dependency": "Depends(db.get_async_session)",
    "command": """
from asgi_sqla.cli import syncdb
from {name}_db import migrations
syncdb(migrations)
""",
}
"""All that the project gets instead of what it had: new lines only."""

_names = itertools.count(1)


class Old:
    """The project, with its database as sqlalchemy-helpers has left it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self.name = folder, url, f"moved_{next(_names)}"
        versions = folder / "migrations" / "versions"
        versions.mkdir(parents=True)
        create = f'op.create_table("{self.name}_users", sa.Column("id", sa.Integer, primary_key=True), {{}})'
        names = 'sa.Column("name", sa.String(50), nullable=False, unique=True)'
        self.revision("one", None, create.format(names))
        (folder / "migrations" / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s\n")
        tables = MetaData()
        name = Column("name", String(50), nullable=False, unique=True)
        users = Table(f"{self.name}_users", tables, Column("id", Integer, primary_key=True), name)
        version = Table("alembic_version", tables, Column("version_num", String(32), primary_key=True))
        engine = create_engine(self.sync_url, poolclass=NullPool)
        tables.create_all(engine)
        with engine.begin() as connection:
            connection.execute(users.insert().values(name="Ann"))
            connection.execute(version.insert().values(version_num="one"))

    @property
    def sync_url(self) -> str:
        return self.url.replace("postgresql://", "postgresql+psycopg://").replace("mariadb://", "mariadb+pymysql://")

    def revision(self, revision: str, before: str | None, upgrade: str) -> None:
        """Write a revision script."""
        content = REVISION.format(revision=revision, before=before, upgrade=upgrade, downgrade="pass")
        (self.folder / "migrations" / "versions" / f"{revision}.py").write_text(content)

    def move(self) -> int:
        """Write what is ours into it; return how many lines that are."""
        own = {"name": self.name, "url": self.url, "folder": str(self.folder)}
        files = {
            f"{self.name}_models.py": MODELS,
            f"{self.name}_settings.py": SETTINGS,
            f"{self.name}_db.py": OURS["db"],
        }
        for file, content in files.items():
            (self.folder / file).write_text(content.format(**own))
        (self.folder / "migrations" / "env.py").write_text(OURS["env"].format(**own))
        app = APP.format(name=self.name, middleware=OURS["middleware"], dependency=OURS["dependency"])
        (self.folder / f"{self.name}_app.py").write_text(app)
        return sum(len(one.strip().splitlines()) for one in OURS.values())

    def module(self, what: str) -> Any:
        """Return a module of the project."""
        return importlib.import_module(f"{self.name}_{what}")

    def dump(self) -> Any:
        """Return every table of the database with its columns and rows."""
        engine = create_engine(self.sync_url, poolclass=NullPool)
        found = MetaData()
        found.reflect(engine)
        with engine.connect() as connection:
            return {
                name: ([str(column.type) for column in table.columns], connection.execute(select(table)).all())
                for name, table in found.tables.items()
            }


@pytest.fixture(params=KINDS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Old]:
    """Return the project on each kind of database in turn."""
    with empty_database(request.param, tmp_path) as url, importable(tmp_path):
        yield Old(tmp_path, url)


async def test_a_project_moves_over(old: Old) -> None:
    """Models, scripts, version table, settings, command and dependency go on; the next revision upgrades it."""
    before = old.dump()
    lines = old.move()
    migrations = old.module("db").migrations

    found = [migrations.status(), migrations.migrate(), migrations.current()]
    untouched = old.dump()
    app = old.module("app").app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answers = [(await client.get("/users")).json(), (await client.post("/users/Bob")).json()]
        answers += [(await client.post("/users/Bob")).json(), (await client.get("/users")).json()]
    old.revision("two", "one", f'op.add_column("{old.name}_users", sa.Column("town", sa.String(50)))')
    found += [migrations.status(), migrations.migrate(), migrations.current()]
    await migrations.database.async_dispose()

    assert lines <= 15
    assert untouched == before
    assert found == [
        *(Status.UP_TO_DATE, MigrateResult.UP_TO_DATE, ("one",)),
        *(Status.UPGRADE_AVAILABLE, MigrateResult.UPGRADED, ("two",)),
    ]
    assert answers == [["Ann"], True, False, ["Ann", "Bob"]]


def test_its_command_goes_on(old: Old, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ``syncdb`` prints what it did."""
    old.move()

    exec(OURS["command"].format(name=old.name), {})  # as the project's own script would

    assert capsys.readouterr().out == "Database up to date.\n"
