"""``Database``: one database, its two kinds of engine and of session, and the defaults of both.

Lives here: what a user configures, checked at once; the global ``db``.
Must not know: when a transaction ends, or anything of ASGI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anyio import to_thread
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.sql import text

from asgi_sqla.engines import Engines, Role
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.guard import GuardedSession, guarded
from asgi_sqla.reading import BorrowedReadOnlySession, ReadOnlySession, restore_on_return
from asgi_sqla.sessions import Manner
from asgi_sqla.sqlite import TransactionMode
from asgi_sqla.unit import current_unit
from asgi_sqla.urls import parse


class Database:
    """One database: its engines, session factories and defaults.

    From ``url`` both engines are made, each on first use: the driver named in it is kept where it
    fits, and the other kind takes one that is installed. Engines made here are disposed by the
    middleware at shutdown, async ones also when their event loop ends; ``engine`` and
    ``async_engine`` are their owner's. ``engine_options`` go to ``create_engine`` and
    ``create_async_engine``, ``session_options`` to the session classes (``class_`` and
    ``sync_session_class`` may name the user's own); ``expire_on_commit`` is False unless given.
    ``read_only_url`` is where read-only units go: a replica, or a sequence of them, asked in turn.
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
        read_only_url: str | URL | Sequence[str | URL] | None = None,
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
            read_only_url=read_only_url,
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
        read_only_url: str | URL | Sequence[str | URL] | None = None,
    ) -> None:
        """Configure, with the arguments of ``Database``; the same ones again change nothing.

        Raises ConfigurationError for wrong arguments, and for other ones while engines of the
        first are in use: ``dispose()`` those first.
        """
        arguments: dict[str, Any] = {
            "url": url,
            "engine": engine,
            "async_engine": async_engine,
            "engine_options": dict(engine_options or {}),
            "session_options": dict(session_options or {}),
            "transaction_mode": transaction_mode,
            "read_only_url": read_only_url,
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
        classes = _session_classes(arguments["session_options"])
        self._replicas = _read_only_urls(read_only_url, engines.url)
        self._engines = engines
        self._reading: dict[Role, Engines] = {}
        self._sync_class, self._async_class, self._options = classes
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
        engines, guard = self._of(manner.role)
        engine = engines.sync()
        if manner.isolation_level is not None:
            engine = engine.execution_options(isolation_level=manner.isolation_level)
        if guard is BorrowedReadOnlySession:
            restore_on_return(engine)
        return guarded(self._sync_class, guard)(bind=engine, **{**self._options, **options})

    def make_async_session(self, manner: Manner, options: Mapping[str, Any]) -> AsyncSession:
        """Return a new ``AsyncSession`` for a unit of work; yours is ``async_session``."""
        engines, guard = self._of(manner.role)
        engine = engines.asynchronous()
        if manner.isolation_level is not None:
            engine = engine.execution_options(isolation_level=manner.isolation_level)
        if guard is BorrowedReadOnlySession:
            restore_on_return(engine.sync_engine)
        sync_class = guarded(self._sync_class, guard)
        return self._async_class(bind=engine, sync_session_class=sync_class, **{**self._options, **options})

    def get_session(self) -> Session:
        """Return ``session``, for the dependency injection of a framework: it takes no arguments."""
        return self.session

    async def get_async_session(self) -> AsyncSession:
        """Return ``async_session``, for the dependency injection of a framework: it takes no arguments."""
        return self.async_session

    def dispose(self) -> None:
        """Close the idle connections of the sync engine, if it was made here. It may be used again."""
        for engines in (self._ready(), *self._reading.values()):
            engines.dispose()

    async def async_dispose(self) -> None:
        """Close the idle connections of both engines made here, async ones of the running event loop."""
        for engines in (self._ready(), *self._reading.values()):
            await engines.dispose_async()

    async def check(self) -> None:
        """Connect, ask for one row, and raise what the driver raises if that fails."""
        engines = self._ready()
        if engines.has_async():
            async with engines.asynchronous().connect() as connection:
                await connection.execute(text("SELECT 1"))
        else:
            await to_thread.run_sync(_select_one, engines.sync())

    def _of(self, role: Role) -> tuple[Engines, type[GuardedSession]]:
        """Return the engines for ``role``, and how their sessions are guarded."""
        engines = self._ready()
        if role == "write":
            return engines, GuardedSession
        if engines.url is None and not self._replicas:
            return engines, BorrowedReadOnlySession
        if role not in self._reading:
            made = Engines(
                (self._replicas or (engines.url,))[0],
                engine=None,
                async_engine=None,
                options=(self._arguments or {})["engine_options"],
                transaction_mode=None,
                role=role,
                replicas=self._replicas,
            )
            self._reading.setdefault(role, made)
        return self._reading[role], ReadOnlySession

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
    if arguments["transaction_mode"] not in (None, "deferred", "immediate"):
        raise ConfigurationError(
            f'transaction_mode={arguments["transaction_mode"]!r} is none of "deferred" and "immediate"'
        )


def _read_only_urls(given: str | URL | Sequence[str | URL] | None, written: URL | None) -> tuple[URL, ...]:
    """Return the replicas, each a database of the same kind."""
    if given is None:
        return ()
    urls = tuple(parse(one, "read_only_url") for one in ((given,) if isinstance(given, str | URL) else given))
    for url in urls:
        if written is not None and url.get_backend_name() != written.get_backend_name():
            raise ConfigurationError(f"read_only_url={url!r} is another kind of database than url={written!r}")
    return urls


def _session_classes(options: dict[str, Any]) -> tuple[type[Session], type[AsyncSession], dict[str, Any]]:
    """Return the two session classes and what else both are made with."""
    options = dict(options)
    if options.setdefault("close_resets_only", False) is not False:
        raise ConfigurationError(
            f"session_options: close_resets_only={options['close_resets_only']!r}; leave it out, for a "
            "session that revives itself after its unit has ended leaks a connection"
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
    return sync_class, async_class, options


db = Database._unconfigured()
"""The ready-made global database: ``db.configure(url)`` tells it which one it is."""
