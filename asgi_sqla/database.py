"""``Database``: one database, its two kinds of engine and of session, and the defaults of both.

Lives here: what a user configures, checked at once; the global ``db``.
Must not know: when a transaction ends, or anything of ASGI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import anyio
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.sql import text

from asgi_sqla.configuration import Configuration
from asgi_sqla.context import current
from asgi_sqla.engines import Engines, Role
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.guard import GuardedSession
from asgi_sqla.reading import BorrowedReadOnlySession, ReadOnlySession, restore_on_return
from asgi_sqla.sessions import Manner
from asgi_sqla.sqlite import TransactionMode
from asgi_sqla.unit import UnitOfWork
from asgi_sqla.watching import guarded


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

    _substituted = False

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
        self._configuration: Configuration | None = None
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
        database._configuration = None
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
        configuration = Configuration.checked(
            url=url,
            engine=engine,
            async_engine=async_engine,
            engine_options=engine_options,
            session_options=session_options,
            transaction_mode=transaction_mode,
            read_only_url=read_only_url,
        )
        if configuration == self._configuration:
            return
        if self._configuration is not None and any(one.in_use for one in (self._engines, *self._reading.values())):
            raise ConfigurationError(
                f"{self} is configured and in use; write another Database(...) for another database, "
                "or dispose() this one first"
            )
        engines = Engines(
            configuration.url,
            engine=engine,
            async_engine=async_engine,
            options=configuration.engine_options,
            transaction_mode=transaction_mode,
        )
        self._classes = configuration.session_classes()
        self._reading: dict[Role, Engines] = {}
        self._engines = engines
        self._configuration = configuration

    def __repr__(self) -> str:
        return f"<Database {'not configured' if self._configuration is None else repr(self._engines)}>"

    def __deepcopy__(self, _memo: object) -> Self:
        """Return the database itself: some frameworks copy what a route is given."""
        return self

    @property
    def configured(self) -> bool:
        """Whether it was told which database it is."""
        return self._configuration is not None

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
        unit: UnitOfWork = current()
        return unit.session(self)

    @property
    def async_session(self) -> AsyncSession:
        """The ``AsyncSession`` of the current unit of work, made on first use.

        Raises NoUnitOfWorkError outside any unit, UnitOfWorkEndedError after its end, and
        WrongEventLoopError in a worker thread, a sync scope, or another event loop.
        """
        unit: UnitOfWork = current()
        return unit.async_session(self)

    def make_session(self, manner: Manner, options: Mapping[str, Any]) -> GuardedSession:
        """Return a new ``Session`` for a unit of work; yours is ``session``."""
        engines, guard = self._of(manner.role)
        engine = engines.sync()
        if manner.isolation_level is not None:  # on the same pool
            engine = engine.execution_options(isolation_level=manner.isolation_level)
        if guard is BorrowedReadOnlySession:
            restore_on_return(engine)
        return guarded(self._classes.sync, guard)(bind=engine, **{**self._classes.options, **options})

    def make_async_session(self, manner: Manner, options: Mapping[str, Any]) -> AsyncSession:
        """Return a new ``AsyncSession`` for a unit of work; yours is ``async_session``."""
        engines, guard = self._of(manner.role)
        engine = engines.asynchronous()
        if manner.isolation_level is not None:
            engine = engine.execution_options(isolation_level=manner.isolation_level)
        if guard is BorrowedReadOnlySession:
            restore_on_return(engine.sync_engine)
        sync_class = guarded(self._classes.sync, guard)
        return self._classes.asynchronous(
            bind=engine, sync_session_class=sync_class, **{**self._classes.options, **options}
        )

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

    def substitute(self, make: Callable[[Engines], Engines]) -> Callable[[], None]:
        """Have ``make(engines)`` serve in place of the engines, as ``asgi_sqla.testing`` does; return the undo."""
        before = self._ready(), self._substituted

        def undo() -> None:
            self._engines, self._substituted = before

        self._engines, self._substituted = make(before[0]), True
        return undo

    async def check(self) -> None:
        """Connect, ask for one row, and raise what the driver raises if that fails."""
        engines = self._ready()
        if engines.has_async():
            async with engines.asynchronous().connect() as connection:
                await connection.execute(text("SELECT 1"))
        else:
            await anyio.to_thread.run_sync(_select_one, engines.sync())

    def _of(self, role: Role) -> tuple[Engines, type[GuardedSession]]:
        """Return the engines for ``role``, and how their sessions are guarded."""
        engines = self._ready()
        if role == "write":
            return engines, GuardedSession
        if role in self._reading and not self._substituted:
            return self._reading[role], ReadOnlySession
        configuration = cast("Configuration", self._configuration)
        urls = configuration.replicas or ((engines.url,) if engines.url is not None else ())
        if self._substituted or not urls:
            return engines, BorrowedReadOnlySession
        made = Engines(urls[0], options=configuration.engine_options, role=role, replicas=urls)
        return self._reading.setdefault(role, made), ReadOnlySession

    def _ready(self) -> Engines:
        if self._configuration is None:
            raise ConfigurationError(
                'the global db is not configured; write db.configure("sqlite:///app.db"), or '
                'SQLAlchemyMiddleware(app, url="sqlite:///app.db")'
            )
        return self._engines


def _select_one(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


db: Database = Database._unconfigured()
"""The ready-made global database: ``db.configure(url)`` tells it which one it is."""
