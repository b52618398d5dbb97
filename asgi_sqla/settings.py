"""A ``Database`` and its ``Migrations`` from settings: pydantic's, a mapping, or environment variables.

- ``DatabaseSettings``: the settings of one database, for pydantic-settings.
- ``database_from``: returns the ``Database`` of settings.
- ``migrations_from``: returns the ``Migrations`` of settings.

Holds: the names of the settings, and the arguments that they become.
Must not know: what is done with the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from asgi_sqla.database import Database, DatabaseOptions
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError, needing

with needing("settings", "asgi_sqla.settings"):
    from pydantic import BaseModel, SecretStr, ValidationError
    from pydantic_settings import BaseSettings, SettingsConfigDict

if TYPE_CHECKING:
    from sqlalchemy import MetaData

    from asgi_sqla.migrations import Migrations

LOCATION = "migrations"
"""The directory of the migrations if the settings do not name one."""

_OF_DATABASE = frozenset(("url", *DatabaseOptions.__annotations__)) - {"engine", "async_engine"}


_PARTS = ("sqlalchemy", "database", "alembic")
"""The parts that settings may have."""


class DatabaseSettings(BaseSettings):
    """The settings of one database, from ``DATABASE_URL`` and other variables that begin with ``DATABASE_``.

    Variables of the environment count before those in a file ``.env`` of the current directory.

    As a field of your own settings class it is read as pydantic reads nested settings. A field left out leaves
    SQLAlchemy's default.

    - ``url``: the database URL; required.
    - ``echo``: True logs every statement, "debug" its rows too.
    - ``isolation_level``: SQLAlchemy's name of a level, in any case.
    - ``max_overflow``: how many connections a pool may open beyond ``pool_size``.
    - ``pool_pre_ping``: True tests a pooled connection before each use.
    - ``pool_recycle``: seconds after which a pooled connection is replaced.
    - ``pool_size``: how many connections a pool keeps.
    - ``pool_timeout``: seconds to wait for a connection of the pool.
    - ``read_only_url``: the URL of a replica for read-only units.
    - ``engine_options``: all other options of the engines, in the environment as JSON.
    - ``session_options``: options of the sessions, in the environment as JSON.
    - ``transaction_mode``: how SQLite transactions begin: "deferred" or "immediate".
    - ``pipelining``: False sends BEGIN to PostgreSQL before the first statement, not with it.
    - ``transaction_pooler``: True if the URLs lead to a pooler in transaction mode, such as PgBouncer.
    - ``max_waiting``: how many may wait for a connection of one pool; the next one gets an error at once.
    - ``migrations_path``: the directory of the migrations.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix="DATABASE_", env_file=".env", extra="ignore", hide_input_in_errors=True
    )

    url: SecretStr
    echo: bool | Literal["debug"] | None = None
    isolation_level: str | None = None
    max_overflow: int | None = None
    pool_pre_ping: bool | None = None
    pool_recycle: int | None = None
    pool_size: int | None = None
    pool_timeout: float | None = None
    read_only_url: SecretStr | None = None
    engine_options: dict[str, Any] | None = None
    session_options: dict[str, Any] | None = None
    transaction_mode: Literal["deferred", "immediate"] | None = None
    pipelining: bool | None = None
    transaction_pooler: bool | None = None
    max_waiting: int | None = None
    migrations_path: Path | None = None


def database_from(settings: Mapping[str, Any] | BaseModel | None = None) -> Database:
    """Return the ``Database`` that ``settings`` describe.

    - ``settings``: pydantic settings, a mapping, or None for the environment. ``url`` and the other arguments of
      ``Database`` are taken by name, and every other name is an option of the engines. They may be in a part called
      ``sqlalchemy`` or ``database``, or be written "sqlalchemy.url"; default: None.

    Raises ConfigurationError if there is no ``url``, or a value is wrong.
    """
    plain = _plain(settings)
    arguments = _part(plain, "database" if "database" in plain else "sqlalchemy")
    arguments.pop("migrations_path", None)
    if not arguments.get("url"):
        names = [name if name.isidentifier() else hidden(name) for name in sorted(arguments)]
        raise ConfigurationError(
            f"the settings have no url, only {', '.join(names) or 'nothing'}; "
            'write {"url": "sqlite:///app.db"}, or {"sqlalchemy": {"url": ...}}'
        )
    options = arguments.pop("engine_options", None) or {}
    if not isinstance(options, Mapping):
        raise ConfigurationError(f'engine_options={hidden(options)} is not a mapping; write {{"pool_size": 5}}')
    options = dict(options)
    options.update({name: arguments.pop(name) for name in sorted(arguments.keys() - _OF_DATABASE)})
    return Database(**arguments, engine_options=options)


def migrations_from(
    settings: Mapping[str, Any] | BaseModel | None = None,
    *,
    database: Database | None = None,
    metadata: MetaData | type[Any] | None = None,
) -> Migrations:
    """Return the ``Migrations`` that ``settings`` describe.

    - ``settings``: as for ``database_from``; ``migrations_path`` or ``alembic.migrations_path`` is the directory of the
      scripts, "migrations" if it is left out; default: None.
    - ``database``: the ``Database`` to migrate; default: the one that ``settings`` describe.
    - ``metadata``: the ``MetaData`` of the models, or their base class; default: none.

    Raises what ``database_from`` and ``Migrations`` raise.
    """
    from asgi_sqla.migrations import Migrations  # of another extra, which only this function needs

    plain = _plain(settings)
    parts = (_part(plain, "alembic"), plain, plain.get("database") or {})
    location = next((part["migrations_path"] for part in parts if part.get("migrations_path")), LOCATION)
    return Migrations(database or database_from(settings), location, metadata=metadata)


def _plain(settings: Mapping[str, Any] | BaseModel | None) -> dict[str, Any]:
    """Return the settings as nested mappings of plain values, without None values."""
    settings = _from_environment() if settings is None else _fields(settings)
    if not isinstance(settings, Mapping):
        raise ConfigurationError(
            f"settings={hidden(settings)} are neither pydantic settings nor a mapping, nor None; "
            'write {"url": "sqlite:///app.db"}'
        )
    plain: dict[str, Any] = {}
    for key, value in settings.items():
        if not isinstance(key, str):
            raise ConfigurationError(f"settings: the name {hidden(key)} is not a string; write it in quotes")
        part, dot, name = key.partition(".")
        if dot:
            plain.setdefault(part, {})[name] = _value(name, value)
        elif value is not None:
            plain[key] = _value(key, value)
    return plain


def _fields(settings: Any) -> Any:
    """Return the fields of pydantic settings; of a subclass of ours, not those that are for its author."""
    if not isinstance(settings, BaseModel):
        return settings
    ours = isinstance(settings, DatabaseSettings)
    names = DatabaseSettings.model_fields if ours else type(settings).model_fields
    return {name: getattr(settings, name) for name in names}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, BaseModel | Mapping) and name in _PARTS:
        return _plain(value)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value) if hasattr(value, "unicode_string") else value  # a URL of pydantic


def _part(plain: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the part of this name, or everything if the settings have no parts."""
    if name in plain:
        part = plain[name]
        if not isinstance(part, Mapping):
            raise ConfigurationError(
                f'settings: {name}={hidden(part)} is not a mapping; write {{"{name}": {{"url": "sqlite:///app.db"}}}}'
            )
        return dict(part)
    return {} if name == "alembic" else {key: value for key, value in plain.items() if key != "alembic"}


def _from_environment() -> Any:
    try:
        return _fields(DatabaseSettings())  # type: ignore[call-arg]  # the url comes from the environment
    except ValidationError as exc:
        wrong = "; ".join(f"DATABASE_{'_'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in exc.errors())
        file = Path(".env").resolve()
        also = f"and in {file}" if file.is_file() else f"(there is no {file})"
        raise ConfigurationError(f"no database is described in the environment {also}: {wrong}") from None
