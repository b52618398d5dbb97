"""``Database``: one database, its two kinds of engine and of session, and the defaults of both.

Lives here: what a user configures, checked at once; the global ``db``.
Must not know: when a transaction ends, or anything of ASGI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyio import to_thread
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.sql import text

from asgi_sqla.engines import Engines
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.guard import GuardedSession, guarded
from asgi_sqla.sessions import Manner
from asgi_sqla.sqlite import TransactionMode
from asgi_sqla.unit import current_unit


class Database:
    """One database: its engines, session factories and defaults.

    From ``url`` both engines are made, each on first use: the driver named in it is kept where it
    fits, and the other kind takes one that is installed. Engines made here are disposed by the
    middleware at shutdown, async ones also when their event loop ends; ``engine`` and
    ``async_engine`` are their owner's. ``engine_options`` go to ``create_engine`` and
    ``create_async_engine``, ``session_options`` to the session classes (``class_`` and
    ``sync_session_class`` may name the user's own); ``expire_on_commit`` is False unless given.
    ``transaction_mode`` is how SQLite transactions begin, "deferred" (the default) or "immediate".

    Raises ConfigurationError, or MissingDriverError, at once when an argument is wrong.
    """

    def __init__(
        self,
        url: str | URL | None = None,
        *,
        engine: Engine | None = None,
        async_engine: AsyncEngine | None = None,
        engine_options: Mapping[str, Any] | None = None,
        session_options: Mapping[str, Any] | None = None,
        transaction_mode: TransactionMode | None = None,
    ) -> None:
        self._engines: Engines
        self._arguments: dict[str, Any] | None = None
        self.configure(
            url,
            engine=engine,
            async_engine=async_engine,
            engine_options=engine_options,
            session_options=session_options,
            transaction_mode=transaction_mode,
        )

    @classmethod
    def _unconfigured(cls) -> Database:
        database = cls.__new__(cls)
        database._arguments = None
        return database

    def configure(
        self,
        url: str | URL | None = None,
        *,
        engine: Engine | None = None,
        async_engine: AsyncEngine | None = None,
        engine_options: Mapping[str, Any] | None = None,
        session_options: Mapping[str, Any] | None = None,
        transaction_mode: TransactionMode | None = None,
    ) -> None:
        """Configure, with the arguments of ``Database``; the same ones again change nothing.

        Raises ConfigurationError for wrong arguments, and for other ones while engines of the
        first are in use: ``dispose()`` those first.
        """
        arguments: dict[str, Any] = {
            "url": url,
            "engine": engine,
            "async_engine": async_engine,
            "engine_options": _options("engine_options", engine_options),
            "session_options": _options("session_options", session_options),
            "transaction_mode": transaction_mode,
        }
        if arguments == self._arguments:
            return
        if self._arguments is not None and self._engines.in_use:
            raise ConfigurationError(
                f"{self} is configured and in use; write another Database(...) for another database, "
                "or dispose() this one first"
            )
        _check(arguments)
        engines = Engines(
            url,
            engine=engine,
            async_engine=async_engine,
            options=arguments["engine_options"],
            transaction_mode=transaction_mode,
        )
        self._engines = engines
        self._sync_class, self._async_class, self._options = _session_classes(arguments["session_options"])
        self._arguments = arguments

    def __repr__(self) -> str:
        return f"<Database {'not configured' if self._arguments is None else repr(self._engines)}>"

    @property
    def configured(self) -> bool:
        """Whether it was told which database it is."""
        return self._arguments is not None

    @property
    def engine(self) -> Engine:
        """The sync engine, made on first use."""
        return self._ready().sync()

    @property
    def async_engine(self) -> AsyncEngine:
        """The async engine of the running event loop, made on first use; WrongEventLoopError without a loop."""
        return self._ready().asynchronous()

    @property
    def session(self) -> Session:
        """The ``Session`` of the current unit of work, made on first use.

        Raises NoUnitOfWorkError outside any unit, UnitOfWorkEndedError after its end.
        """
        return current_unit().session(self)

    @property
    def async_session(self) -> AsyncSession:
        """The ``AsyncSession`` of the current unit of work, made on first use.

        Raises NoUnitOfWorkError outside any unit, UnitOfWorkEndedError after its end, and
        WrongEventLoopError in a worker thread, a sync scope, or another event loop.
        """
        return current_unit().async_session(self)

    def make_session(self, manner: Manner, options: Mapping[str, Any]) -> GuardedSession:
        """Return a new ``Session`` for a unit of work; yours is ``session``."""
        engine = self._ready().sync()
        if manner.isolation_level is not None:
            engine = engine.execution_options(isolation_level=manner.isolation_level)
        return self._sync_class(bind=engine, **{**self._options, **options})

    def make_async_session(self, manner: Manner, options: Mapping[str, Any]) -> AsyncSession:
        """Return a new ``AsyncSession`` for a unit of work; yours is ``async_session``."""
        engine = self._ready().asynchronous()
        if manner.isolation_level is not None:
            engine = engine.execution_options(isolation_level=manner.isolation_level)
        return self._async_class(bind=engine, sync_session_class=self._sync_class, **{**self._options, **options})

    def dispose(self) -> None:
        """Close the idle connections of the sync engine, if it was made here. It may be used again."""
        self._ready().dispose()

    async def async_dispose(self) -> None:
        """Close the idle connections of both engines made here, async ones of the running event loop."""
        await self._ready().dispose_async()

    async def check(self) -> None:
        """Connect, ask for one row, and raise what the driver raises if that fails."""
        engines = self._ready()
        if engines.has_async():
            async with engines.asynchronous().connect() as connection:
                await connection.execute(text("SELECT 1"))
        else:
            await to_thread.run_sync(_select_one, engines.sync())

    def _ready(self) -> Engines:
        if self._arguments is None:
            raise ConfigurationError(
                'the global db is not configured; write db.configure("sqlite:///app.db"), or '
                'SQLAlchemyMiddleware(app, url="sqlite:///app.db")'
            )
        return self._engines


def _select_one(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


def _options(argument: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping | None):
        raise ConfigurationError(f'{argument}={given!r} is no mapping; write {argument}={{"name": value}}')
    return dict(given or {})


def _check(arguments: dict[str, Any]) -> None:
    engine, async_engine = arguments["engine"], arguments["async_engine"]
    if arguments["url"] is None and engine is None and async_engine is None:
        raise ConfigurationError(
            'url=None: a Database needs a URL, such as Database("sqlite:///app.db"), or engine= or async_engine='
        )
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
    if arguments["engine_options"] and arguments["url"] is None:
        given = arguments["engine_options"]
        raise ConfigurationError(f"engine_options={given!r} are for engines made from a URL; leave them out")
    if arguments["transaction_mode"] not in (None, "deferred", "immediate"):
        raise ConfigurationError(
            f'transaction_mode={arguments["transaction_mode"]!r} is none of "deferred" and "immediate"'
        )


def _session_classes(options: dict[str, Any]) -> tuple[type[GuardedSession], type[AsyncSession], dict[str, Any]]:
    """Return the two session classes and what else both are made with."""
    options = dict(options)
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
    return guarded(sync_class), async_class, options


db = Database._unconfigured()
"""The ready-made global database: ``db.configure(url)`` tells it which one it is."""
