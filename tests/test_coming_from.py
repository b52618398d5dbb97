"""Coming from older systems: the example of each documentation, rewritten as the README says."""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import click
import httpx
import pytest
from click.testing import CliRunner
from fastapi import Depends, FastAPI
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from pydantic_settings import BaseSettings
from sqlalchemy import Unicode, UnicodeText, column, select, table, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Mapped, mapped_column
from support.servers import Server

import asgi_sqla
from asgi_sqla import Database, SQLAlchemyMiddleware, cli, migrations, models, session_scope, settings
from asgi_sqla import db as global_db
from asgi_sqla.cli import syncdb
from asgi_sqla.migrations import MigrateResult, Migrations, Status, exists_in_db, is_sqlite, scaffold
from asgi_sqla.models import Base, NotFoundError, get_or_create, update_or_create
from asgi_sqla.settings import migrations_from


class Person(Base):
    __tablename__ = "coming_from_person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Unicode(254), index=True, unique=True)
    full_name: Mapped[str | None] = mapped_column(Unicode(254))
    timezone: Mapped[str | None] = mapped_column(Unicode(127))


class Todo(Base):
    __tablename__ = "coming_from_todo"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(UnicodeText)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Return the URL of a SQLite file with the tables and one person."""
    database = Database(f"sqlite:///{tmp_path / 'app.db'}")
    Base.metadata.create_all(database.engine)
    with session_scope(database) as session:
        session.add(Person(name="foo"))
    yield f"sqlite:///{tmp_path / 'app.db'}"
    database.dispose()


@pytest.fixture
def db() -> Iterator[Database]:
    """Return the global database, and restore it after the test."""
    before = dict(vars(global_db))
    yield global_db
    global_db.dispose()
    vars(global_db).clear()
    vars(global_db).update(before)


@contextmanager
def served(app: Any) -> Iterator[httpx.Client]:
    """Serve ``app`` on a real server, and yield a client of it."""
    with Server(app) as server, httpx.Client(base_url=server.url) as client:
        yield client


# FastAPI-SQLAlchemy


def test_fastapi_sqlalchemy(url: str, db: Database) -> None:
    """DBSessionMiddleware, db.session in a route, and db() outside a route have replacements."""
    app = FastAPI()
    app.add_middleware(SQLAlchemyMiddleware, url=url)

    @app.get("/users")
    def get_users() -> list[str]:
        return [user.name for user in db.session.query(Person).all()]

    with served(app) as client:
        assert client.get("/users").json() == ["foo"]

    with session_scope():
        assert db.session.query(Person).count() == 1


def test_fastapi_sqlalchemy_without_commit_on_exit(url: str, db: Database) -> None:
    """Its default keeps only what the handler commits; a commit_on that is never true does the same."""
    app = FastAPI()
    app.add_middleware(SQLAlchemyMiddleware, url=url, commit_on=())

    @app.post("/users")
    def add_user(name: str, keep: bool) -> None:
        db.session.add(Person(name=name))
        if keep:
            db.session.commit()

    with served(app) as client:
        client.post("/users", params={"name": "kept", "keep": True})
        client.post("/users", params={"name": "lost", "keep": False})

    with session_scope() as session:
        assert list(session.scalars(select(Person.name).order_by(Person.name))) == ["foo", "kept"]


# fastapi-async-sqlalchemy


def test_fastapi_async_sqlalchemy(url: str, db: Database) -> None:
    """The session in a route, a context inside a route, and one outside have replacements."""
    people = table("coming_from_person", column("name"))
    at_start: list[Any] = []

    async def get_db_fetch() -> list[Any]:
        async with session_scope():
            return [row.name for row in await db.async_session.execute(people.select())]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        at_start.extend(await get_db_fetch())
        yield

    app = FastAPI(lifespan=lifespan)
    db.configure(url, engine_options={"echo": False, "pool_pre_ping": True})
    app.add_middleware(SQLAlchemyMiddleware)

    @app.get("/")
    async def get_files() -> list[str]:
        result = await db.async_session.execute(people.select())
        return [row.name for row in result.fetchall()]

    @app.get("/db_context")
    async def db_context() -> list[str]:
        return await get_db_fetch()

    with served(app) as client:
        assert client.get("/").json() == ["foo"]
        assert client.get("/db_context").json() == ["foo"]
    assert at_start == ["foo"]


def test_fastapi_async_sqlalchemy_with_several_databases(url: str) -> None:
    """Each pair of middleware and proxy becomes a Database, all in one middleware."""
    first_db, second_db = Database(url), Database("sqlite://")
    app = FastAPI()
    app.add_middleware(SQLAlchemyMiddleware, database=(first_db, second_db))

    @app.get("/first-db-files")
    async def first() -> Any:
        return await first_db.async_session.scalar(text("SELECT count(*) FROM coming_from_person"))

    @app.get("/second-db-files")
    async def second() -> Any:
        return await second_db.async_session.scalar(text("SELECT count(*) FROM sqlite_master"))

    with served(app) as client:
        assert (client.get("/first-db-files").json(), client.get("/second-db-files").json()) == (1, 0)


def test_fastapi_async_sqlalchemy_with_concurrent_queries(url: str, db: Database) -> None:
    """multi_sessions becomes a scope in each task."""
    app = FastAPI()
    app.add_middleware(SQLAlchemyMiddleware, url=url)

    @app.get("/concurrent-queries")
    async def parallel_select() -> list[int]:
        async def execute_query(number: int) -> int:
            async with session_scope() as session:
                return int((await session.execute(text(f"SELECT {number}"))).scalar_one())

        return await asyncio.gather(*[execute_query(number) for number in range(1, 7)])

    with served(app) as client:
        assert client.get("/concurrent-queries").json() == [1, 2, 3, 4, 5, 6]


def test_fastapi_async_sqlalchemy_orm(url: str, db: Database) -> None:
    """A session begins on first use, and a commit in the handler may stay or go."""
    app = FastAPI()
    app.add_middleware(SQLAlchemyMiddleware, url=url)

    @app.post("/todo")
    async def create_todo(commit: bool) -> None:
        db.async_session.add(Todo(text="write"))
        if commit:
            await db.async_session.commit()

    with served(app) as client:
        codes = [client.post("/todo", params={"commit": commit}).status_code for commit in (True, False)]

    with session_scope() as session:
        assert (codes, session.query(Todo).count()) == ([200, 200], 2)


# sqlalchemy-helpers


@pytest.fixture
def location(tmp_path: Path) -> Path:
    """Return a migrations directory without a revision."""
    scaffold(tmp_path / "migrations", "app.database:migrations")
    env = f"from {__name__} import env\n\nenv()  # calls run_env()\n"
    (tmp_path / "migrations" / "env.py").write_text(env)
    return tmp_path / "migrations"


def env() -> None:
    """Run Alembic's environment without an application module."""
    from asgi_sqla.migrations import run_env

    run_env(Database("sqlite://"), Base.metadata)


def test_sqlalchemy_helpers_manager_and_queries(tmp_path: Path, location: Path) -> None:
    """DatabaseManager, sync, the query functions and the model methods have replacements."""
    db = Database(f"sqlite:///{tmp_path / 'new.db'}")
    manager = Migrations(db, location, metadata=Base)
    assert manager.migrate() == MigrateResult.CREATED
    assert manager.status() == Status.UP_TO_DATE

    with session_scope(db) as session:
        user, created = get_or_create(session, Person, name="foo")
        assert created
        user, created = Person.get_or_create(session, name="foo")
        assert not created
        user, created = update_or_create(session, Person, name="foo", defaults={"full_name": "Foo"})
        assert (created, user.full_name) == (False, "Foo")
        assert session.scalars(select(Person).filter_by(name="foo")).one() is user
        assert Person.get_one(session, name="foo") is user
        assert Person.get_by_pk(session, user.id) is user
    assert exists_in_db(db.engine, "coming_from_person", "full_name")
    assert is_sqlite(db.engine)
    db.dispose()


def test_sqlalchemy_helpers_with_fastapi(tmp_path: Path, location: Path) -> None:
    """Settings in its layout, syncdb, the session as a dependency, a 404 and a readiness check have replacements."""

    class SQLAlchemyModel(BaseModel):
        url: str = f"sqlite:///{tmp_path / 'new.db'}"

    class AlembicModel(BaseModel):
        migrations_path: Path = location

    class Settings(BaseSettings):
        sqlalchemy: SQLAlchemyModel = SQLAlchemyModel()
        alembic: AlembicModel = AlembicModel()

    migrations = migrations_from(Settings(), metadata=Base)
    db = migrations.database

    @click.command("syncdb")
    def syncdb_command() -> None:
        syncdb(migrations)

    assert CliRunner().invoke(syncdb_command, standalone_mode=False).stdout == "Database created.\n"

    app = FastAPI()
    app.add_middleware(SQLAlchemyMiddleware, database=db, error_responses={NotFoundError: 404})

    @app.post("/user/{name}")
    async def add_user(name: str, db_session: Annotated[AsyncSession, Depends(db.get_async_session)]) -> bool:
        return (await Person.get_or_create(db_session, name=name))[1]

    @app.get("/user/{name}")
    async def get_user(name: str, db_session: Annotated[AsyncSession, Depends(db.get_async_session)]) -> dict[str, Any]:
        user = await Person.first_or_404(db_session, name=name)
        return {"id": user.id, "name": user.name}

    @app.get("/ready")
    async def readiness() -> str:
        return (await migrations.async_status()).value

    with served(app) as client:
        assert [client.post("/user/foo").json() for _ in range(2)] == [True, False]
        assert client.get("/user/foo").json() == {"id": 1, "name": "foo"}
        assert client.get("/user/bar").status_code == 404
        assert client.get("/ready").json() == "up to date"


# FastAPI's Depends with yield


class Made(BaseModel):
    """An application, and what it has to be asked for."""

    model_config = {"arbitrary_types_allowed": True}
    app: Any
    database: Database


def made(url: str, *, ours: bool) -> Made:
    """Return the same handlers, with a dependency of the user that commits or with ours."""
    database = Database(url)
    api = FastAPI()
    factory: async_sessionmaker[AsyncSession] = database.async_sessionmaker

    async def theirs() -> AsyncIterator[AsyncSession]:
        async with factory() as session:
            yield session
            await session.commit()

    given = database.get_async_session if ours else theirs

    @api.post("/users", status_code=201)
    async def add_user(name: str, session: Annotated[AsyncSession, Depends(given)], status: int = 201) -> Response:
        session.add(Person(name=name))
        return Response(status_code=status)

    @api.get("/body")
    async def body(session: Annotated[AsyncSession, Depends(given)]) -> Response:
        await session.execute(select(Person))

        async def parts() -> AsyncIterator[str]:
            yield str(sum(pool.out for pool in database.pools()))

        return StreamingResponse(parts())

    return Made(app=SQLAlchemyMiddleware(api, database) if ours else api, database=database)


@pytest.mark.parametrize("ours", [False, True], ids=["their dependency", "our middleware"])
def test_a_dependency_with_yield_commits_after_its_answer(url: str, ours: bool) -> None:
    """What its client is told is not what becomes of its rows, and a connection is out while a body is sent."""
    it = made(url, ours=ours)
    with served(it.app) as client:
        out = client.get("/body").text
        twice = [client.post("/users", params={"name": "Ann"}).status_code for _ in range(2)]
        refused = client.post("/users", params={"name": "Bob", "status": 422}).status_code

    with session_scope(it.database) as session:
        names = list(session.scalars(select(Person.name).order_by(Person.name)))
    it.database.dispose()
    assert (twice, refused) == ([201, 500] if ours else [201, 201], 422)
    assert (names, out) == (["Ann", "foo"] if ours else ["Ann", "Bob", "foo"], "0" if ours else "1")


# The table


def test_what_the_table_says_to_write_is_there() -> None:
    """Each name on the right is public, a keyword of something public, or a word of the example."""
    readme = (Path(__file__).parent.parent / "README.rst").read_text()
    _, _, table = readme.partition("\nComing from\n")
    right = [
        line[43:] for line in table.partition("\nWhen something goes wrong\n")[0].splitlines() if line[41:43] == "  "
    ]
    written = {
        name for line in right for code in re.findall("``(.+?)``", line) for name in re.findall(r"[A-Za-z_]\w*", code)
    }
    public = {name for room in (asgi_sqla, cli, migrations, models, settings) for name in dir(room)}
    members = {name for kind in (Database, Migrations, MigrateResult, Status) for name in dir(kind)}
    keywords = {name for call in (SQLAlchemyMiddleware, session_scope) for name in inspect.signature(call).parameters}
    keywords |= asgi_sqla.database.DatabaseOptions.__annotations__.keys()
    example = {"User", "Model", "first", "second", "uri", "location", "filters", "py", "env"}
    of_others = {
        "DeclarativeBase",
        "Depends",
        "asgi_sqla",
        "True",
        "False",
        "commit",
        "range",
        "with",
        "await",
        "add_middleware",
    }
    assert len(written) > 30
    assert written - public - members - keywords - example - of_others == set()
