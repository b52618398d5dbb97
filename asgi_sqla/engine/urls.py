"""Database URLs: from the one that a user wrote to the one that each kind of engine needs.

Pure: nothing is imported, opened or connected; the caller says what is installed.

Holds: the table of drivers, and the names of options in each driver.
Must not know: engines, event loops, sessions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from asgi_sqla.engine.showing import shown
from asgi_sqla.errors import ConfigurationError, MissingDriverError


class Backend(NamedTuple):
    """The drivers of one kind of database, best first, and the extra that installs both kinds."""

    extra: str
    sync: tuple[str, ...]
    asynchronous: tuple[str, ...]


class Target(NamedTuple):
    """Where one engine connects: its URL, and the arguments that its driver does not take from a URL."""

    url: URL
    connect_args: dict[str, Any]


BACKENDS: Mapping[str, Backend] = {
    "postgresql": Backend("postgresql", ("psycopg", "psycopg2"), ("asyncpg", "psycopg")),
    "cockroachdb": Backend("postgresql", ("psycopg", "psycopg2"), ("asyncpg", "psycopg")),
    "mysql": Backend("mysql", ("mysqldb", "pymysql"), ("asyncmy", "aiomysql")),
    "mariadb": Backend("mysql", ("mysqldb", "pymysql"), ("asyncmy", "aiomysql")),
    "sqlite": Backend("sqlite", ("pysqlite",), ("aiosqlite",)),
    "oracle": Backend("oracle", ("oracledb",), ("oracledb",)),
    "mssql": Backend("mssql", ("pyodbc",), ("aioodbc",)),
}
MODULES = {"mysqldb": "MySQLdb", "pysqlite": "sqlite3"}
"""The modules of the drivers that are not named like their module."""
BROUGHT = frozenset(
    ("aiosqlite", "aioodbc", "asyncmy", "asyncpg", "oracledb", "psycopg", "pymysql", "pyodbc", "pysqlite")
)
"""The drivers that an extra installs, or Python itself."""
PACKAGES = {"mysqldb": "mysqlclient", "psycopg2": "psycopg2-binary"}
"""The packages of other drivers, where they have another name."""

_LIBPQ = ("psycopg", "psycopg2")
_ASYNCPG_NUMBERS = ("command_timeout", "max_cached_statement_lifetime", "timeout")
_ASYNCPG_INTEGERS = ("max_cacheable_statement_size", "statement_cache_size")
_ASYNCPG_KNOWN = frozenset(
    ("gsslib", "host", "krbsrvname", "passfile", "password", "port", "prepared_statement_cache_size")
    + ("service", "ssl", "target_session_attrs", "user")
)
_SETTING = r"(?:-c\s*|--)(?P<name>[\w.]+)=(?P<value>(?:\\.|\S)*)\s*"


def parse(url: str | URL, argument: str = "url") -> URL:
    """Return ``url`` as a SQLAlchemy URL whose dialect exists; ``postgres://`` is accepted.

    Raises ConfigurationError, naming ``argument``, for what is not a URL and for an unknown dialect.
    """
    if hasattr(url, "get_secret_value"):
        raise ConfigurationError(f"{argument} is a {type(url).__name__}; write {argument}.get_secret_value()")
    if hasattr(url, "unicode_string"):  # a DSN of pydantic
        raise ConfigurationError(f"{argument} is a {type(url).__name__}; write str({argument})")
    if hasattr(url, "dialect"):
        wanted = "async_engine" if hasattr(url, "sync_engine") else "engine"
        raise ConfigurationError(f"{argument} is an {type(url).__name__}, not a URL; write Database({wanted}=...)")
    if not url:
        raise ConfigurationError(
            f'{argument}={url!r} is not a database URL; write one such as "sqlite:///app.db" '
            'or "postgresql://user:password@host/name"'
        )
    try:
        parsed = make_url(url)  # raises ArgumentError for other types too
    except (ArgumentError, ValueError):  # the latter for a port that is not a number
        raise ConfigurationError(
            f"{argument} is not a database URL (it is not shown, as it may hold a password); "
            'write one such as "postgresql://user:password@host/name"'
        ) from None
    name, plus, driver = parsed.drivername.partition("+")
    parsed = parsed.set(drivername=("postgresql" if name == "postgres" else name) + plus + driver)
    try:
        parsed.get_dialect()
    except (ArgumentError, ImportError, ValueError):  # the latter for two plus signs
        raise ConfigurationError(
            f"{argument}={shown(parsed)}: SQLAlchemy has no dialect {parsed.drivername!r}; "
            f"write one of {', '.join(sorted(BACKENDS))}, or install its package"
        ) from None
    return parsed


def translate(url: URL, *, asynchronous: bool, installed: Callable[[str], bool]) -> Target:
    """Return where the sync or the async engine of ``url`` connects.

    A driver of the right kind is kept; otherwise it is the best one for which ``installed(module_name)`` is true.
    Raises MissingDriverError if there is none, and ConfigurationError if the chosen driver cannot have an option of the
    URL.
    """
    driver = _driver(url, asynchronous, installed)
    if driver is None:
        return Target(url, {})
    target = url.set(drivername=f"{url.get_backend_name()}+{driver}")
    if driver == "asyncpg":
        return _for_asyncpg(target)
    if driver in _LIBPQ:
        return Target(_for_libpq(target), {})
    return Target(target, {})


def _driver(url: URL, asynchronous: bool, installed: Callable[[str], bool]) -> str | None:
    """Return the name of the driver; None if the URL's own driver is outside the table, and of the right kind."""
    name = url.get_backend_name()
    # psycopg and oracledb serve both kinds under one name; SQLAlchemy has a second name for async.
    given = url.drivername.partition("+")[2].removesuffix("_async")
    backend = BACKENDS.get(name)
    if backend is None or (given and given not in backend.sync + backend.asynchronous):
        if getattr(url.get_dialect(), "is_async", False) is asynchronous:
            return None
        if backend is None:
            raise _no_driver(url, asynchronous)
    candidates = backend.asynchronous if asynchronous else backend.sync
    if given in candidates:
        candidates = (given,)
    for driver in candidates:
        if installed(MODULES.get(driver, driver)):
            return driver
    kind = "async" if asynchronous else "sync"
    brought = any(driver in BROUGHT for driver in candidates)
    write = f"'asgi-sqla[{backend.extra}]'" if brought else PACKAGES.get(candidates[0], candidates[0])
    raise MissingDriverError(
        f"url={shown(url)} needs {' or '.join(candidates)} as its {kind} driver, which is not installed; "
        f"write: pip install {write}"
    )


def _no_driver(url: URL, asynchronous: bool) -> ConfigurationError:
    """Return the error for a dialect outside the table, whose driver is of one kind only."""
    wanted, argument = ("async", "async_engine") if asynchronous else ("sync", "engine")
    return ConfigurationError(
        f"url={shown(url)}: no {wanted} driver is known for {url.drivername!r}; pass {argument}= to Database"
    )


def _for_asyncpg(url: URL) -> Target:
    query = dict(url.query)
    arguments: dict[str, Any] = {}
    settings = _server_settings(url, query)
    if "connect_timeout" in query:
        query["timeout"] = query.pop("connect_timeout")
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    if "ssl" in query:
        query["ssl"] = _ssl_mode(query["ssl"])
    for key in _ASYNCPG_NUMBERS + _ASYNCPG_INTEGERS:
        if key in query:
            arguments[key] = _number(url, key, query.pop(key), int if key in _ASYNCPG_INTEGERS else float)
    if unknown := sorted(query.keys() - _ASYNCPG_KNOWN):
        raise ConfigurationError(
            f"url={shown(url)}: asyncpg does not accept {unknown[0]!r}; leave it out, or install psycopg and "
            "write postgresql+psycopg://, which works for sync and async"
        )
    if settings:
        arguments["server_settings"] = settings
    return Target(url.set(query=query), arguments)


def _server_settings(url: URL, query: dict[str, Any]) -> dict[str, str]:
    """Remove from ``query`` what libpq sends as settings, and return the mapping that asyncpg wants."""
    settings: dict[str, str] = {}
    options = query.pop("options", "")
    found = list(re.finditer(_SETTING, options)) if isinstance(options, str) else []
    if "".join(match.group() for match in found) != options:
        raise ConfigurationError(
            f"url={shown(url)}: options={options!r} cannot be translated for asyncpg; write only '-c name=value' in it"
        )
    settings.update((match["name"], re.sub(r"\\(.)", r"\1", match["value"])) for match in found)
    if "application_name" in query:
        settings["application_name"] = query.pop("application_name")
    return settings


def _number(url: URL, key: str, value: object, kind: type[float]) -> float:
    try:
        return kind(str(value))
    except ValueError:
        raise ConfigurationError(
            f"url={shown(url)}: {key}={value!r} is not a number; write seconds or a size"
        ) from None


def _ssl_mode(value: Any) -> Any:
    return {"true": "require", "false": "disable"}.get(str(value).lower(), value)


def _for_libpq(url: URL) -> URL:
    query = dict(url.query)
    if "ssl" in query:
        query["sslmode"] = _ssl_mode(query.pop("ssl"))
    if "timeout" in query:
        # libpq takes whole seconds, and 0 means forever.
        query["connect_timeout"] = str(max(1, round(_number(url, "timeout", query.pop("timeout"), float))))
    if "command_timeout" in query:
        seconds = _number(url, "command_timeout", query.pop("command_timeout"), float)
        query["options"] = f"{query.get('options', '')} -c statement_timeout={round(seconds * 1000)}".strip()
    # libpq has no use for the sizes of asyncpg's statement caches.
    for key in ("prepared_statement_cache_size", "max_cached_statement_lifetime", *_ASYNCPG_INTEGERS):
        query.pop(key, None)
    return url.set(query=query)
