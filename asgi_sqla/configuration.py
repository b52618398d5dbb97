"""What a ``Database`` was told, checked at once.

Lives here: which arguments go together, and the two session classes they name.
Must not know: engines of ours, sessions, units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from asgi_sqla.errors import ConfigurationError
from asgi_sqla.sqlite import TransactionMode
from asgi_sqla.urls import parse, shown


class SessionClasses(NamedTuple):
    """The classes of both kinds of session, and what else both are made with."""

    sync: type[Session]
    asynchronous: type[AsyncSession]
    options: dict[str, Any]


class Configuration(NamedTuple):
    """The arguments of one ``Database``."""

    url: URL | None
    engine: Engine | None
    async_engine: AsyncEngine | None
    engine_options: dict[str, Any]
    session_options: dict[str, Any]
    transaction_mode: TransactionMode | None
    replicas: tuple[URL, ...]

    @classmethod
    def checked(
        cls,
        *,
        url: str | URL | None,
        engine: Engine | None,
        async_engine: AsyncEngine | None,
        engine_options: Mapping[str, Any] | None,
        session_options: Mapping[str, Any] | None,
        transaction_mode: TransactionMode | None,
        read_only_url: str | URL | Sequence[str | URL] | None,
    ) -> Configuration:
        """Return the configuration, or raise ConfigurationError."""
        if url is None and engine is None and async_engine is None:
            raise ConfigurationError(
                'url=None: a Database needs a URL, such as Database("sqlite:///app.db"), or engine= or async_engine='
            )
        parsed = None if url is None else parse(url)
        _check_engines(engine, async_engine)
        options = _options("engine_options", engine_options)
        if options and parsed is None:
            raise ConfigurationError(f"engine_options={options!r} are for engines made from a URL; leave them out")
        _check_mode(transaction_mode, parsed)
        made = cls(
            parsed,
            engine,
            async_engine,
            options,
            _options("session_options", session_options),
            transaction_mode,
            _replicas(read_only_url, parsed),
        )
        made.session_classes()
        return made

    def session_classes(self) -> SessionClasses:
        """Return the two session classes and what else both are made with."""
        options = dict(self.session_options)
        if options.setdefault("close_resets_only", False) is not False:
            raise ConfigurationError(
                f"session_options: close_resets_only={options['close_resets_only']!r}; leave it out, for a "
                "session that revives itself after its unit has ended leaks a connection"
            )
        if "bind" in options:
            raise ConfigurationError(
                f"session_options: bind={options['bind']!r}; leave it out, and pass engine= or async_engine="
            )
        options.setdefault("expire_on_commit", False)
        given = options.pop("class_", Session)
        if not isinstance(given, type) or not issubclass(given, Session | AsyncSession):
            raise ConfigurationError(
                f"session_options: class_={given!r} is no subclass of Session or AsyncSession; "
                "to give both, write the AsyncSession's as class_ and the Session's as sync_session_class"
            )
        async_class = given if issubclass(given, AsyncSession) else AsyncSession
        fallback = async_class.sync_session_class if issubclass(given, AsyncSession) else given
        sync_class = options.pop("sync_session_class", fallback)
        if not isinstance(sync_class, type) or not issubclass(sync_class, Session):
            raise ConfigurationError(
                f"session_options: sync_session_class={sync_class!r} is no subclass of sqlalchemy.orm.Session"
            )
        return SessionClasses(sync_class, async_class, options)


def _options(argument: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping | None):
        raise ConfigurationError(f'{argument}={given!r} is no mapping; write {argument}={{"name": value}}')
    return dict(given or {})


def _check_mode(mode: object, url: URL | None) -> None:
    if mode not in (None, "deferred", "immediate"):
        raise ConfigurationError(f'transaction_mode={mode!r} is none of "deferred" and "immediate"')
    if mode is not None and (url is None or url.get_backend_name() != "sqlite"):
        raise ConfigurationError(f"transaction_mode={mode!r} is for engines made from a SQLite URL; leave it out")


def _check_engines(engine: Any, async_engine: Any) -> None:
    if engine is not None and not isinstance(engine, Engine):
        raise ConfigurationError(
            f"engine={engine!r} is no sync Engine; pass what create_engine() returned, "
            "and an AsyncEngine as async_engine="
        )
    if async_engine is not None and not isinstance(async_engine, AsyncEngine):
        raise ConfigurationError(
            f"async_engine={async_engine!r} is no AsyncEngine; pass what create_async_engine() returned, "
            "and a sync Engine as engine="
        )


def _replicas(given: str | URL | Sequence[str | URL] | None, written: URL | None) -> tuple[URL, ...]:
    """Return the URLs to read from, each of a database of the same kind as the one written to."""
    if given is None:
        return ()
    urls = tuple(parse(one, "read_only_url") for one in ((given,) if isinstance(given, str | URL) else given))
    for url in urls:
        if written is not None and url.get_backend_name() != written.get_backend_name():
            raise ConfigurationError(
                f"read_only_url={shown(url)} is another kind of database than url={shown(written)}"
            )
    return urls
