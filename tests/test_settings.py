"""Settings: a Database and Migrations from pydantic's, a mapping, or the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import AnyUrl, BaseModel, Field, PostgresDsn, SecretStr, create_model
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url, text
from sqlalchemy.pool import NullPool

from asgi_sqla import ConfigurationError, Database
from asgi_sqla.models import Base
from asgi_sqla.settings import DatabaseSettings, database_from, migrations_from


class SQLAlchemyPart(BaseModel):
    """The part of the engine, under the name of sqlalchemy-helpers."""

    url: str = "sqlite:///parts.db"
    echo: bool = False


class AlembicPart(BaseModel):
    """The part of the migrations, under the name of sqlalchemy-helpers."""

    migrations_path: Path = Path("app/migrations")


class Parts(BaseModel):
    """Settings in two parts."""

    sqlalchemy: SQLAlchemyPart = SQLAlchemyPart()
    alembic: AlembicPart = AlembicPart()


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "sqlite:///shop.db", "poolclass": NullPool},
        {"url": make_url("sqlite:///shop.db"), "engine_options": {"poolclass": NullPool}},
        {"url": SecretStr("sqlite:///shop.db"), "poolclass": NullPool, "echo": None},
        {"url": AnyUrl("sqlite:///shop.db"), "poolclass": NullPool},
        {"sqlalchemy": {"url": "sqlite:///shop.db", "poolclass": NullPool}, "title": "My shop"},
        {"sqlalchemy.url": "sqlite:///shop.db", "sqlalchemy.poolclass": NullPool, "alembic.migrations_path": "m"},
    ],
    ids=["flat", "options", "secret", "pydantic-url", "parts", "dotted"],
)
def test_a_database_from_a_mapping(settings: dict[str, Any]) -> None:
    """It may be flat, in parts, or dotted; other names are options of the engines."""
    database = database_from(settings)

    assert repr(database) == "<Database sqlite:///shop.db>"
    assert isinstance(database.engine.pool, NullPool)


def test_arguments_of_database_are_taken_by_their_names(tmp_path: Path) -> None:
    """They are not passed to the engine."""
    database = database_from({"url": f"sqlite:///{tmp_path / 'shop.db'}", "transaction_mode": "immediate"})

    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    database.dispose()


def test_a_password_survives() -> None:
    """This holds for a URL object too, whose text hides it."""
    for url in ("postgresql://me:secret@h/d", make_url("postgresql://me:secret@h/d")):
        assert database_from({"url": url}).engine.url.password == "secret"


def test_settings_in_parts_are_understood() -> None:
    """This is the layout of sqlalchemy-helpers."""
    migrations = migrations_from(Parts(), metadata=Base)

    assert repr(migrations.database) == "<Database sqlite:///parts.db>"
    assert (migrations.location, migrations.metadata) == (Path("app/migrations"), Base.metadata)


@pytest.mark.parametrize(
    ("settings", "location"),
    [
        ({"url": "sqlite://"}, "migrations"),
        ({"url": "sqlite://", "migrations_path": "a"}, "a"),
        ({"url": "sqlite://", "alembic": {"migrations_path": "b"}}, "b"),
        ({"sqlalchemy": {"url": "sqlite://"}, "alembic": {}}, "migrations"),
    ],
)
def test_where_the_migrations_are(settings: dict[str, Any], location: str) -> None:
    """The default is a directory called migrations."""
    assert migrations_from(settings).location == Path(location)


def test_migrations_of_a_database_that_is_made_already() -> None:
    """The settings need no url then."""
    database = Database("sqlite://")

    assert migrations_from({"migrations_path": "a"}, database=database).database is database


def test_a_database_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """DATABASE_URL and prefixed options are read, each with its type; other names are ignored."""
    for name, value in {
        "URL": "postgresql://me:secret@h/d",
        "POOL_SIZE": "7",
        "POOL_TIMEOUT": "2.5",
        "POOL_PRE_PING": "true",
        "ENGINE_OPTIONS": '{"pool_use_lifo": true}',
        "READ_ONLY_URL": "postgresql://me:secret@replica/d",
        "MIGRATIONS_PATH": "app/migrations",
        "HOST": "h",
    }.items():
        monkeypatch.setenv(f"DATABASE_{name}", value)

    migrations = migrations_from()
    pool: Any = migrations.database.engine.pool
    assert (pool.size(), pool.timeout(), pool._pre_ping, pool._pool.use_lifo) == (7, 2.5, True, True)
    assert (migrations.database.engine.url.password, migrations.location) == ("secret", Path("app/migrations"))


def test_settings_of_ones_own_may_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are nested as pydantic nests settings, and secret when they are printed."""

    class Settings(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="SHOP_", env_nested_delimiter="__")
        database: DatabaseSettings

    monkeypatch.setenv("SHOP_DATABASE__URL", "postgresql://me:secret@h/d")
    monkeypatch.setenv("SHOP_DATABASE__POOL_SIZE", "3")
    settings = Settings()  # type: ignore[call-arg]

    assert "secret" not in repr(settings)
    assert database_from(settings.database).engine.url.password == "secret"


def test_what_is_missing_or_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error shows no password."""
    with pytest.raises(ConfigurationError, match="the settings have no url, only echo"):
        database_from({"echo": True})
    with pytest.raises(ConfigurationError, match="neither pydantic settings nor a mapping"):
        database_from("sqlite://")  # type: ignore[arg-type]
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(ConfigurationError, match="DATABASE_URL: Field required"):
        database_from()
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret@h/d")
    monkeypatch.setenv("DATABASE_POOL_SIZE", "many")
    with pytest.raises(ConfigurationError, match="DATABASE_POOL_SIZE: Input should be a valid integer") as caught:
        database_from()
    assert "secret" not in str(caught.value)


# A file of the project


ENV = 'DATABASE_URL=postgresql://me:secret@h/d\nDATABASE_POOL_SIZE=3\nDATABASE_SESSION_OPTIONS={"autoflush": false}\n'


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current directory, and an environment without a database."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("DATABASE_")]:
        monkeypatch.delenv(name)
    return tmp_path


def test_the_file_env_is_read(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment counts before it."""
    (in_folder / ".env").write_text(ENV)
    monkeypatch.setenv("DATABASE_POOL_SIZE", "4")

    database = database_from()
    pool: Any = database.engine.pool
    assert (database.engine.url.password, pool.size()) == ("secret", 4)
    assert database.sessionmaker().autoflush is False


def test_what_is_missing_says_where_it_was_looked_for(in_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"\(there is no {in_folder}/\.env\): DATABASE_URL: Field required"):
        database_from()
    (in_folder / ".env").write_text("DATABASE_ECHO=true\n")
    with pytest.raises(ConfigurationError, match=rf"and in {in_folder}/\.env: DATABASE_URL: Field required"):
        database_from()


def test_one_file_for_all_settings(in_folder: Path) -> None:
    """The part ``database`` of your own settings is understood, and their other fields are yours."""

    class Settings(BaseSettings):
        model_config = SettingsConfigDict(
            env_file=".env", env_nested_delimiter="_", env_nested_max_split=1, extra="ignore"
        )
        database: DatabaseSettings = Field(default_factory=lambda: DatabaseSettings())  # type: ignore[call-arg]
        mail_from: str = "shop@example.com"

    (in_folder / ".env").write_text(ENV + "MAIL_FROM=me@example.com\nDATABASE_MIGRATIONS_PATH=shop/migrations\n")
    settings = Settings()

    migrations = migrations_from(settings)
    pool: Any = database_from(settings).engine.pool
    assert (settings.mail_from, pool.size(), migrations.location) == ("me@example.com", 3, Path("shop/migrations"))


def test_a_subclass_may_have_fields_of_its_own(in_folder: Path) -> None:
    class Settings(DatabaseSettings):
        mail_from: str = "shop@example.com"

    (in_folder / ".env").write_text(ENV)

    pool: Any = database_from(Settings()).engine.pool  # type: ignore[call-arg]
    assert pool.size() == 3


@pytest.mark.parametrize("kind", [PostgresDsn, SecretStr, str])
def test_a_url_of_any_type(kind: Any) -> None:
    """Pydantic's URLs and secrets are taken as they are."""
    settings = create_model("Settings", url=(kind, ...))(url="postgresql://me:secret@h/d")

    assert database_from(settings).engine.url.password == "secret"
