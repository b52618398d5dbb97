"""``Database``: one database, its two kinds of engine and of session, and the defaults of both.

Holds: the one list of its arguments, and how a session is made for the unit that asks.
Must not know: when a transaction ends, or anything of ASGI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Self, TypedDict, Unpack, cast

import anyio
from sqlalchemy import orm
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext import asyncio as orm_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.sql import text

from asgi_sqla.engine.engines import Engines, Role
from asgi_sqla.engine.events import checked_listener
from asgi_sqla.engine.options import Configuration, TransactionMode, check_names, checked
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.session.classes import guarded, guarded_async, session_classes
from asgi_sqla.session.factories import AsyncSessionFactory, SessionFactory
from asgi_sqla.session.guard import GuardedSession, running_loop
from asgi_sqla.session.read_only import ReadOnlySession
from asgi_sqla.unit.context import current, lookup
from asgi_sqla.unit.fences import watch_commits
from asgi_sqla.unit.sessions import UnitSession
from asgi_sqla.unit.unit import OPEN, UnitOfWork


class DatabaseOptions(TypedDict, total=False):
    """What ``Database`` takes beside its URL."""

    engine: Engine | None
    async_engine: AsyncEngine | None
    engine_options: Mapping[str, Any] | None
    async_engine_options: Mapping[str, Any] | None
    session_options: Mapping[str, Any] | None
    read_only_url: str | URL | Sequence[str | URL] | None
    transaction_mode: TransactionMode | None


class Database:
    """One database: its engines, session factories and defaults.

    Engines made from ``url`` are disposed by the middleware at shutdown, async ones also when their event loop ends.

    ``url``: where it is, a string or SQLAlchemy's ``URL``. Both engines are made from it, each on first use: the driver
    named in it is kept where it fits, and the other kind takes one that is installed.
    ``engine``, ``async_engine``: engines of your own, in place of those; they stay their owner's.
    ``engine_options``: a mapping, for ``create_engine()`` and ``create_async_engine()``.
    ``async_engine_options``: a mapping for ``create_async_engine()`` alone; a key in it replaces that of
    ``engine_options``.
    ``session_options``: a mapping for the session classes; ``class_`` and ``sync_session_class`` may name your own, and
    ``expire_on_commit`` is False unless given.
    ``read_only_url``: where read-only units go: a replica, or a sequence of them, asked in turn.
    ``transaction_mode``: how SQLite transactions begin, "deferred" (the default) or "immediate".

    Raises ConfigurationError, or MissingDriverError, at once when an argument is wrong.
    """

    _substituted = False
    _watching = False

    def __init__(self, url: str | URL | None = None, **options: Unpack[DatabaseOptions]) -> None:
        self._prepare()
        self.configure(url, **options)

    def _prepare(self) -> None:
        self._engines: Engines
        self._configuration: Configuration | None = None
        self._reading: dict[Role, Engines] = {}
        self._listeners: list[tuple[str, Callable[..., object]]] = []

    def configure(self, url: str | URL | None = None, **options: Unpack[DatabaseOptions]) -> None:
        """Configure, with the arguments of ``Database``; the same ones again change nothing.

        Raises ConfigurationError for wrong arguments, and for other ones while engines of the
        first are in use: ``dispose()`` those first.
        """
        check_names(options, DatabaseOptions.__annotations__)
        configuration = checked({"url": url, **options})
        classes = session_classes(configuration.session_options)
        if configuration == self._configuration:
            return
        if self._configuration is not None and any(one.in_use for one in (self._engines, *self._reading.values())):
            raise ConfigurationError(
                f"{self} is configured and in use; write another Database(...) for another database, "
                "or dispose() this one first"
            )
        engines = self._make_engines(configuration, configuration.url, "write")
        self._classes = classes
        self._async_class = guarded_async(classes.asynchronous)
        self._guarded: dict[tuple[Role, str | None], type[GuardedSession]] = {}
        self._reading = {}
        self._engines = engines
        self._configuration = configuration
        if self._watching:
            watch_commits(self._engines.watch)

    def __repr__(self) -> str:
        return f"<Database {'not configured' if self._configuration is None else repr(self._engines)}>"

    def __deepcopy__(self, _memo: object) -> Self:
        """Return the database itself: some frameworks copy what a route is given."""
        return self

    def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Refuse what fastapi-sqlalchemy writes: a ``Database`` is no context manager."""
        raise ConfigurationError("db() is no call; open a unit of work: with session_scope(db) as session: ...")

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
        unit: Any = lookup()
        return self._session_of(unit if unit is not None and unit._stage is OPEN else current(), {})

    @property
    def async_session(self) -> AsyncSession:
        """The ``AsyncSession`` of the current unit of work, made on first use.

        Raises NoUnitOfWorkError outside any unit, UnitOfWorkEndedError after its end, and
        WrongEventLoopError in a worker thread, a sync scope, or another event loop.
        """
        unit: Any = lookup()
        return self._async_session_of(unit if unit is not None and unit._stage is OPEN else current(), {})

    @property
    def sessionmaker(self) -> orm.sessionmaker[Session]:
        """A factory of sessions that no unit of work ends, bound when called to ``engine``, or to ``bind=``."""
        self._ready()
        return SessionFactory(self._classes, lambda: self.engine)

    @property
    def async_sessionmaker(self) -> orm_asyncio.async_sessionmaker[AsyncSession]:
        """A factory of sessions that no unit of work ends, bound when called to ``async_engine``, or to ``bind=``."""
        self._ready()
        return AsyncSessionFactory(self._classes, lambda: self.async_engine)

    def get_session(self) -> Session:
        """Return ``session``, for the dependency injection of a framework: it takes no arguments."""
        return self.session

    async def get_async_session(self) -> AsyncSession:
        """Return ``async_session``, for the dependency injection of a framework: it takes no arguments."""
        return self.async_session

    def listen(self, identifier: str, function: Callable[..., object]) -> None:
        """Call ``function`` at an event of every engine: of each event loop, of reading ones, and after ``dispose()``.

        ``identifier`` is the event's name, such as "connect"; ``function`` takes what SQLAlchemy's documentation of
        its engine and pool events says.

        Raises ConfigurationError for what is no such event or cannot be called.
        """
        self._listeners.append(checked_listener(identifier, function))
        for engines in (self._engines, *self._reading.values()) if self.configured else ():
            engines.listen(identifier, function)

    def dispose(self) -> None:
        """Close the idle connections of the sync engine, if it was made by this object. It may be used again."""
        for engines in (self._ready(), *self._reading.values()):
            engines.dispose()

    async def async_dispose(self) -> None:
        """Close the idle connections of both engines made by this object, async ones of the running event loop.

        It takes two seconds for each at most: what does not answer is cut.
        """
        for engines in (self._ready(), *self._reading.values()):
            await engines.dispose_async()

    async def check(self) -> None:
        """Connect, ask for one row, and raise what the driver raises if that fails."""
        engines = self._ready()
        if engines.has_async():
            async with engines.asynchronous().connect() as connection:
                await connection.execute(text("SELECT 1"))
        else:
            await anyio.to_thread.run_sync(_select_one, engines.sync())

    # What follows is for the rooms beside this one and for asgi_sqla.testing.

    def _session_of(self, unit: UnitOfWork, options: Mapping[str, Any]) -> Session:
        """Return the ``Session`` of ``unit``, made on first use with ``options``."""
        sessions = unit._open_sessions()
        held = sessions.sync(self)
        if held is None:
            engines, role = self._engines_for(unit)
            engine = engines.sync()
            if unit.isolation_level is not None:  # on the same pool
                engine = engine.execution_options(isolation_level=unit.isolation_level)
            cls = self._guarded.get((role, unit.isolation_level)) or self._guard(role, unit)
            held = sessions.add(UnitSession(self, cls(bind=engine, **{**self._classes.options, **options})))
        return held.session

    def _async_session_of(self, unit: UnitOfWork, options: Mapping[str, Any]) -> AsyncSession:
        """Return the ``AsyncSession`` of ``unit``, made on first use with ``options``."""
        sessions = unit._open_sessions()
        held = sessions.asynchronous(self)
        if held is None:
            engines, role = self._engines_for(unit)
            of_loop = engines.of_loops.get(running_loop())  # what asynchronous() does, for each request
            engine = engines.asynchronous() if of_loop is None else of_loop.engine
            if unit.isolation_level is not None:
                engine = engine.execution_options(isolation_level=unit.isolation_level)
            cls = self._guarded.get((role, unit.isolation_level)) or self._guard(role, unit)
            made = self._async_class(bind=engine, sync_session_class=cls, **{**self._classes.options, **options})
            held = sessions.add(UnitSession(self, made.sync_session, made))  # type: ignore[arg-type]  # of that class
        return held.async_session  # type: ignore[return-value]  # it was added with one

    def _guard(self, role: Role, unit: UnitOfWork) -> type[GuardedSession]:
        guard = GuardedSession if role == "write" else ReadOnlySession
        made = guarded(self._classes.sync, guard, role == "read", unit.isolation_level)
        return self._guarded.setdefault((role, unit.isolation_level), made)

    def _engines_for(self, unit: UnitOfWork) -> tuple[Engines, Role]:
        """Return the engines for what ``unit`` does, and what that is."""
        if not unit.read_only and self._configuration is not None:
            return self._engines, "write"
        engines = self._ready()
        role: Role = "read" if unit._reads_in_autocommit() else "snapshot"
        if role in self._reading and not self._substituted:
            return self._reading[role], role
        configuration = cast("Configuration", self._configuration)
        urls = configuration.replicas or ((engines.url,) if engines.url is not None else ())
        if self._substituted or not urls:
            return engines, "snapshot"
        made = self._make_engines(configuration, urls[0], role, urls)
        return self._reading.setdefault(role, made), role

    def _make_engines(
        self, configuration: Configuration, url: URL | None, role: Role, replicas: Sequence[URL] = ()
    ) -> Engines:
        writes = role == "write"
        return Engines(
            url,
            options=configuration.engine_options,
            async_options=configuration.async_engine_options,
            engine=configuration.engine if writes else None,
            async_engine=configuration.async_engine if writes else None,
            transaction_mode=configuration.transaction_mode if writes else None,
            role=role,
            replicas=replicas,
            listeners=self._listeners,
        )

    def _watch_commits(self) -> None:
        """Have a unit know of commits on connections that are no session's, which forbid a retry of it."""
        if not self._watching:
            self._watching = True
            if self.configured:
                watch_commits(self._engines.watch)

    def _substitute(self, make: Callable[[Engines], Engines]) -> Callable[[], None]:
        """Have ``make(engines)`` serve in place of the engines, as ``asgi_sqla.testing`` does; return the undo."""
        before = self._ready(), self._substituted

        def undo() -> None:
            self._engines, self._substituted = before

        self._engines, self._substituted = make(before[0]), True
        return undo

    def _dialect(self) -> Any:
        """Return the dialect, or its class; None if there is none yet."""
        if self._configuration is None:
            return None
        given = self._configuration.engine or self._configuration.async_engine
        return given.dialect if given is not None else cast("URL", self._configuration.url).get_dialect()

    def _isolation_level(self) -> str:
        """Return the isolation level that the options of its engines name."""
        options = {} if self._configuration is None else self._configuration.engine_options
        return str(options.get("isolation_level", "")).upper()

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


db: Database = Database.__new__(Database)
"""The ready-made global database: ``db.configure(url)`` tells it which one it is."""
db._prepare()
