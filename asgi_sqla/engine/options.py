"""The arguments of a ``Database``, checked at once, so that none fails only at the first request.

Holds: which arguments exclude each other, and what ``create_engine()``, the pools and the session classes accept.
Must not know: our engines, sessions, units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AssertionPool, Pool, QueuePool, SingletonThreadPool, StaticPool
from sqlalchemy.util import get_cls_kwargs

from asgi_sqla.engine.arguments import Recipe
from asgi_sqla.engine.given import checked_count, mapping
from asgi_sqla.engine.isolation import with_level
from asgi_sqla.engine.kinds import ENGINE, check_kinds
from asgi_sqla.engine.observers import checked_observers
from asgi_sqla.engine.poolers import checked_pooler
from asgi_sqla.engine.showing import hidden, shown
from asgi_sqla.engine.urls import parse
from asgi_sqla.errors import ConfigurationError

TransactionMode: TypeAlias = Literal["deferred", "immediate"]

_ENGINE = frozenset(
    ("connect_args", "creator", "echo", "echo_pool", "execution_options", "future", "hide_parameters")
    + ("isolation_level", "logging_name", "max_overflow", "plugins", "pool", "pool_logging_name", "pool_pre_ping")
    + ("pool_recycle", "pool_reset_on_return", "pool_use_lifo", "poolclass", "query_cache_size")
)
"""What ``create_engine()`` itself accepts, whatever the dialect."""
_QUEUE = frozenset(("max_overflow", "pool_size", "pool_timeout", "pool_use_lifo"))
INSTEAD = {
    "db_url": 'Database("postgresql://..."), the URL first',
    "db": 'Database("postgresql://..."), the URL first',
    "bind": "engine= or async_engine=",
    **{
        name: f'engine_options={{"{name}": ...}}'
        for name in ("connect_args", "echo", "isolation_level", "max_overflow", "pool_pre_ping", "pool_recycle")
        + ("pool_size", "pool_timeout", "poolclass")
    },
    **{name: f'session_options={{"{name}": ...}}' for name in ("autoflush", "class_", "expire_on_commit")},
}
"""What to write instead of arguments that other libraries have."""


class Configuration(NamedTuple):
    """The checked arguments of one ``Database``."""

    url: URL | None
    engine: Engine | None
    async_engine: AsyncEngine | None
    recipe: Recipe
    session_options: dict[str, Any]
    transaction_mode: TransactionMode | None
    replicas: tuple[URL, ...]
    observers: tuple[Any, ...] = ()

    @property
    def dialect(self) -> Any:
        """The dialect of an engine that was passed in, or the class of the dialect of the URL."""
        given = self.engine or self.async_engine
        return given.dialect if given is not None else cast("URL", self.url).get_dialect()

    @property
    def isolation_level(self) -> str:
        """The isolation level in the engine options; an empty string if there is none."""
        return str(self.recipe.options.get("isolation_level", "")).upper()


def _check_argument_names(given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for a name that is not an argument of ``Database``."""
    for name in given.keys() - known.keys() - {"url"}:
        write = INSTEAD.get(name, f"one of url, {', '.join(known)}")
        raise ConfigurationError(f"{name}= is not an argument of Database; write {write}")


def checked(arguments: Mapping[str, Any], known: Mapping[str, Any]) -> Configuration:
    """Return ``arguments`` as a configuration, or raise ConfigurationError; a missing one counts as None.

    ``known`` are the names that there are besides ``url``.
    """
    _check_argument_names(arguments, known)
    url, engine, async_engine = (arguments.get(name) for name in ("url", "engine", "async_engine"))
    if url is None and engine is None and async_engine is None:
        raise ConfigurationError(
            'url=None: a Database needs a URL, such as Database("sqlite:///app.db"), or engine= or async_engine='
        )
    parsed = None if url is None else parse(url)
    _check_engines(engine, async_engine)
    options = {name: mapping(name, arguments.get(name)) for name in ("engine_options", "async_engine_options")}
    for name, given in options.items():
        if given and parsed is None:
            raise ConfigurationError(f"{name}={hidden(given)} is for engines made from a URL; leave it out")
        if parsed is not None:
            options[name] = checked_engine_options(name, given, parsed)
    mode = arguments.get("transaction_mode")
    _check_mode(mode, parsed)
    session_options = mapping("session_options", arguments.get("session_options"))
    replicas = _replicas(arguments.get("read_only_url"), parsed)
    pipelining = arguments.get("pipelining", True)
    if not isinstance(pipelining, bool):
        raise ConfigurationError(f"pipelining={hidden(pipelining)} is neither True nor False")
    pooler = checked_pooler(arguments, parsed, replicas)
    waiting = _max_waiting(arguments.get("max_waiting"), parsed, options)
    recipe = Recipe(options["engine_options"], options["async_engine_options"], pipelining, pooler, waiting)
    observers = checked_observers(arguments.get("observe"))
    return Configuration(parsed, engine, async_engine, recipe, session_options, mode, replicas, observers)


def _max_waiting(given: Any, url: URL | None, options: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Return ``max_waiting``; raise ConfigurationError if nobody can wait for a connection of ours."""
    if given is None:
        return None
    count = checked_count("max_waiting", given)
    if url is None:
        raise ConfigurationError(f"max_waiting={count} is for engines made from a URL; leave it out")
    for one in options.values():
        pool = type(one["pool"]) if "pool" in one else one.get("poolclass", QueuePool)
        if "pool" in one or not issubclass(pool, QueuePool):
            raise ConfigurationError(
                f"max_waiting={count} is for queue pools, and poolclass={pool.__name__} is none that we make; leave "
                "one of the two out"
            )
    return count


def checked_engine_options(argument: str, options: Mapping[str, Any], url: URL) -> dict[str, Any]:
    """Return ``options``; raise ConfigurationError for what ``create_engine()`` or the pool would refuse later."""
    pool = options.get("poolclass", QueuePool)
    if not isinstance(pool, type) or not issubclass(pool, Pool):
        raise ConfigurationError(
            f"{argument}: poolclass={hidden(pool)} is not a pool class; write one such as QueuePool"
        )
    _check_pool(argument, type(options["pool"]) if "pool" in options else pool)
    _check_names(argument, options, url, pool)
    check_kinds(argument, options, ENGINE)
    spelled = with_level(argument, options, url)
    if "execution_options" in options:
        spelled["execution_options"] = with_level(argument, options["execution_options"], url)
    return spelled


def _check_names(argument: str, options: Mapping[str, Any], url: URL, pool: type[Pool]) -> None:
    known = _ENGINE.union(get_cls_kwargs(url.get_dialect()))
    if issubclass(pool, QueuePool):
        known |= _QUEUE
    if argument == "async_engine_options":
        known |= {"async_creator"}
    unknown = sorted(set(options) - known)
    if unknown and "plugins" not in options and "plugin" not in url.query:  # a plugin has its own options
        write = f"write what create_engine() and {pool.__name__} accept"
        if unknown[0] == "async_creator":
            write = "write it in async_engine_options"
        raise ConfigurationError(f"{argument}: {hidden(unknown[0])} is not accepted; {write}")


def _check_pool(argument: str, pool: type[Pool]) -> None:
    if issubclass(pool, AssertionPool | StaticPool | SingletonThreadPool):
        raise ConfigurationError(
            f"{argument}: poolclass={pool.__name__} has one connection for all concurrent requests: one rollback "
            "undoes the work of all, or the second request fails; leave it out, as "
            'Database("sqlite://") is one database for the whole process without it'
        )


def _check_mode(mode: object, url: URL | None) -> None:
    if mode not in (None, "deferred", "immediate"):
        raise ConfigurationError(f'transaction_mode={hidden(mode)} is not one of "deferred" and "immediate"')
    if mode is not None and (url is None or url.get_backend_name() != "sqlite"):
        raise ConfigurationError(f"transaction_mode={mode!r} is for engines made from a SQLite URL; leave it out")


def _check_engines(engine: Any, async_engine: Any) -> None:
    if engine is not None and not isinstance(engine, Engine):
        raise ConfigurationError(
            f"engine={hidden(engine)} is not a sync Engine; pass what create_engine() returned, "
            "and an AsyncEngine as async_engine="
        )
    if async_engine is not None and not isinstance(async_engine, AsyncEngine):
        raise ConfigurationError(
            f"async_engine={hidden(async_engine)} is not an AsyncEngine; pass what create_async_engine() returned, "
            "and a sync Engine as engine="
        )


def _replicas(given: Any, written: URL | None) -> tuple[URL, ...]:
    """Return the URLs of the replicas, each of the same kind of database as ``written``."""
    if given is None:
        return ()
    many = isinstance(given, Sequence) and not isinstance(given, str | bytes | URL)
    if many and not given:
        raise ConfigurationError(f"read_only_url={given!r} holds no URL; write one, or leave it out")
    urls = tuple(parse(one, "read_only_url") for one in cast("Sequence[Any]", given if many else (given,)))
    for url in urls:
        if written is not None and url.get_backend_name() != written.get_backend_name():
            raise ConfigurationError(
                f"read_only_url={shown(url)} is a different kind of database than url={shown(written)}; "
                "write the URL of a replica"
            )
    return urls
