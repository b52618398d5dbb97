"""``Database``: one database, its two kinds of engine and of session, and the defaults of both.

Holds: the one list of its arguments, and how a session is made for the unit that asks.
Must not know: when a transaction ends, or anything of ASGI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypedDict, Unpack, cast

from sqlalchemy import orm
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext import asyncio as sa_async
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from asgi_sqla.errors import ConfigurationError
from asgi_sqla.session.classes import A_co, S_co, guarded, guarded_async, session_classes
from asgi_sqla.session.guard import GuardedSession, running_loop
from asgi_sqla.session.observed import events_for, guard_for
from asgi_sqla.unit.context import current, injected, lookup
from asgi_sqla.unit.sessions import UnitSession
from asgi_sqla.unit.stage import OPEN
from asgi_sqla.unit.unit import UnitOfWork

if TYPE_CHECKING:
    from asgi_sqla.engine.engines import Engines
    from asgi_sqla.engine.options import Configuration, TransactionMode
    from asgi_sqla.engine.pools import PoolStatus, Role
    from asgi_sqla.engine.readers import FollowingEngines, Readers
    from asgi_sqla.session.holders import Holder


class DatabaseOptions(TypedDict, total=False):
    """The arguments of ``Database`` besides its URL."""

    engine: Engine | None
    async_engine: AsyncEngine | None
    engine_options: Mapping[str, Any] | None
    async_engine_options: Mapping[str, Any] | None
    session_options: Mapping[str, Any] | None
    read_only_url: str | URL | Sequence[str | URL] | None
    transaction_mode: TransactionMode | None
    pipelining: bool
    transaction_pooler: bool
    max_waiting: int | None
    observe: Sequence[Callable[[Any], object]] | None


class Database(Generic[S_co, A_co]):
    """One database: its engines, its sessions and their defaults.

    Both engines are made from the URL, each on first use, an async one for each event loop. The middleware disposes
    them at shutdown; an async engine also ends with its event loop. An engine that you pass in stays yours.

    - ``url``: a database URL, as a string or as SQLAlchemy's ``URL``. The driver in it is used where it fits; the other
      kind of engine uses a driver that is installed.
    - ``engine``: a sync engine of your own, instead of one made from the URL; default: none.
    - ``async_engine``: an async engine of your own, instead of those made from the URL; default: none.
    - ``engine_options``: a mapping for ``create_engine()`` and ``create_async_engine()``, such as ``pool_size``;
      default: none.
    - ``async_engine_options``: a mapping for ``create_async_engine()`` alone; a key in it replaces the one in
      ``engine_options``; default: none.
    - ``session_options``: a mapping for the session classes. ``class_`` and ``sync_session_class`` choose your own
      classes; default: ``expire_on_commit`` is False.
    - ``read_only_url``: the URL of a replica for read-only units, or a sequence of URLs, used in turn; default: none.
    - ``transaction_mode``: how SQLite transactions begin: "deferred" or "immediate"; default: "deferred".
    - ``pipelining``: whether BEGIN travels with the first statement, on engines made from a PostgreSQL URL for psycopg
      and asyncpg. With aiosqlite, whether a statement takes one turn of its thread; default: True.
    - ``transaction_pooler``: whether the PostgreSQL URLs lead to PgBouncer, RDS Proxy or another pooler in transaction
      mode. Then no prepared statement outlives its transaction, whatever the options of the driver say; asyncpg takes
      one more round trip for each statement, psycopg none. In a read-only unit any statement but a SELECT runs in a
      read-only transaction, as no session of the server is set to refuse writes; default: False.
    - ``max_waiting``: how many tasks and threads may wait for a connection of one pool. The next one gets a
      PoolExhaustedError at once; default: no limit, so each waits for the pool's ``pool_timeout``.
    - ``observe``: a sequence of plain functions, each called with the ``Report`` of every unit that used this database,
      after its end, such as those of ``asgi_sqla.observe``; default: none.

    To type checkers its sessions are SQLAlchemy's. With other classes write them in brackets, as for SQLModel:
    ``db: Database[Session, AsyncSession] = Database(url, session_options=...)``.

    Raises ConfigurationError for a wrong argument, and MissingDriverError if no driver is installed; both at once.
    """

    _substituted = _watching = False
    _added: tuple[Callable[[Any], object], ...] = ()
    """Its observers besides those of its configuration."""

    def __init__(self, url: str | URL | None = None, **options: Unpack[DatabaseOptions]) -> None:
        self._prepare()
        self.configure(url, **options)

    def _prepare(self) -> None:
        self._engines: Engines
        self._configuration: Configuration | None = None
        self._reading: Readers
        self._listeners: list[tuple[str, Callable[..., object]]] = []

    def configure(self, url: str | URL | None = None, **options: Unpack[DatabaseOptions]) -> None:
        """Configure this object, with the arguments of ``Database``; the same arguments again change nothing.

        - ``url``: a database URL, as a string or as SQLAlchemy's ``URL``.
        - ``**options``: the other arguments of ``Database``, by name.

        Raises ConfigurationError for a wrong argument, and for different arguments while an engine is in use: call
        ``dispose()`` first.
        """
        from asgi_sqla.engine.options import checked
        from asgi_sqla.engine.readers import Readers

        configuration = checked({"url": url, **options}, DatabaseOptions.__annotations__)
        classes = session_classes(configuration.session_options)
        if configuration == self._configuration:
            return
        if self._configuration is not None and any(one.in_use for one in (self._engines, *self._reading.values())):
            raise ConfigurationError(
                f"{self} is configured and in use; write another Database(...) for another database, "
                "or dispose() this one first"
            )
        self._engines = self._make_engines(configuration, configuration.url, "write")
        self._classes, self._async_class = classes, guarded_async(classes.asynchronous)
        self._guarded: dict[tuple[Role, str | None], type[GuardedSession]] = {}
        self._reading = Readers(self._engines, configuration)
        self._configuration = configuration
        if self._watching:
            self._watch_commits(again=True)

    def __repr__(self) -> str:
        return f"<Database {'not configured' if self._configuration is None else repr(self._engines)}>"

    def __deepcopy__(self, _memo: object) -> Self:
        """Return the database itself: some frameworks copy what a route is given."""
        return self

    def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Refuse what fastapi-sqlalchemy writes: a ``Database`` is not a context manager."""
        raise ConfigurationError("a Database is not callable; write: with session_scope(db) as session: ...")

    @property
    def configured(self) -> bool:
        """Whether ``configure()`` or the constructor has been given a database."""
        return self._configuration is not None

    @property
    def engine(self) -> Engine:
        """The sync engine, made on first use.

        Raises ConfigurationError if there is no sync driver for the URL, or if this object is not configured.
        """
        return self._ready().sync()

    @property
    def async_engine(self) -> AsyncEngine:
        """The async engine of the running event loop, made on first use.

        Raises WrongEventLoopError where no asyncio event loop is running, and ConfigurationError if there is no async
        driver for the URL, or if this object is not configured.
        """
        return self._ready().asynchronous()

    @property
    def session(self) -> S_co:
        """The ``Session`` of the current unit of work, made on first use.

        The unit commits or rolls back and closes it. On an event loop each statement blocks every request, which is a
        BlockingSessionWarning; use ``async_session`` there.

        Raises NoUnitOfWorkError outside any unit, and UnitOfWorkEndedError after the unit has ended.
        """
        unit = (found := lookup()) and (found._made or found)
        return self._session_of(unit if unit is not None and unit._stage is OPEN else current(), {})

    @property
    def async_session(self) -> A_co:
        """The ``AsyncSession`` of the current unit of work, made on first use.

        The unit commits or rolls back and closes it.

        Raises NoUnitOfWorkError outside any unit, UnitOfWorkEndedError after the unit has ended, and
        WrongEventLoopError in a worker thread, in a sync scope, or on another event loop.
        """
        unit = (found := lookup()) and (found._made or found)
        return self._async_session_of(unit if unit is not None and unit._stage is OPEN else current(), {})

    @property
    def sessionmaker(self) -> orm.sessionmaker[S_co]:
        """A factory of sessions that you commit and close yourself; each is bound to ``engine``, or to ``bind=``.

        Raises ConfigurationError if this object is not configured.
        """
        from asgi_sqla.session.factories import SessionFactory

        self._ready()
        return cast("orm.sessionmaker[S_co]", SessionFactory(self._classes, lambda: self.engine))

    @property
    def async_sessionmaker(self) -> sa_async.async_sessionmaker[A_co]:
        """A factory of sessions that you commit and close yourself; each is bound to ``async_engine``, or to ``bind=``.

        Raises ConfigurationError if this object is not configured.
        """
        from asgi_sqla.session.factories import AsyncSessionFactory

        self._ready()
        return cast("sa_async.async_sessionmaker[A_co]", AsyncSessionFactory(self._classes, lambda: self.async_engine))

    def get_session(self) -> S_co:
        """Return ``session``, for dependency injection: ``Depends(db.get_session)``. It takes no arguments.

        Raises what ``session`` raises.
        """
        return self._session_of(injected(), {})

    async def get_async_session(self) -> A_co:
        """Return ``async_session``, for dependency injection: ``Depends(db.get_async_session)``. It takes no arguments.

        Raises what ``async_session`` raises.
        """
        return self._async_session_of(injected(), {})

    # Some frameworks inject by the type that a function returns.
    get_session.__annotations__["return"], get_async_session.__annotations__["return"] = orm.Session, AsyncSession

    def listen(self, identifier: str, function: Callable[..., object]) -> None:
        """Call ``function`` at an event of every engine: of each event loop, for reading, and made after ``dispose()``.

        - ``identifier``: the name of one of SQLAlchemy's engine, pool or dialect events, such as "connect".
        - ``function``: a plain function, which takes what SQLAlchemy's documentation of the event says.

        Raises ConfigurationError for an unknown event, and for a function that is async or takes other arguments.
        """
        from asgi_sqla.engine.events import checked_listener

        self._listeners.append(checked_listener(identifier, function))
        for engines in (self._engines, *self._reading.values()) if self.configured else ():
            engines.listen(identifier, function)

    def dispose(self) -> None:
        """Close the idle connections of the sync engines made by this object; the next use makes new ones.

        Raises ConfigurationError if this object is not configured.
        """
        for engines in (self._ready(), *self._reading.values()):
            engines.dispose()

    async def async_dispose(self) -> None:
        """Close the idle connections of the engines made by this object: sync, and async of the running event loop.

        It takes at most two seconds per engine; connections that do not answer are cut.

        Raises ConfigurationError if this object is not configured.
        """
        for engines in (self._ready(), *self._reading.values()):
            await engines.dispose_async()

    async def check(self) -> None:
        """Connect to the database and run ``SELECT 1``, on the async engine if there is a driver for it.

        Raises what the driver raises if that fails, and ConfigurationError if this object is not configured.
        """
        from asgi_sqla.engine.probe import probe

        await probe(self._ready())

    def pools(self) -> list[PoolStatus]:
        """Return the numbers of every queue pool: of each role, of each kind of session and of each event loop.

        Raises ConfigurationError if this object is not configured.
        """
        return [status for engines in (self._ready(), *self._reading.values()) for status in engines.pools()]

    def holders(self) -> list[Holder]:
        """Return the units that hold a connection, the longest first, one entry for each connection.

        Raises ConfigurationError if this object is not configured.
        """
        from asgi_sqla.session.holders import holders

        every = (self._ready(), *self._reading.values())
        return holders(*(engine.pool for engines in every for engine in engines.existing()))

    # The other rooms and asgi_sqla.testing use what follows.

    def _session_of(self, unit: UnitOfWork, options: Mapping[str, Any]) -> S_co:
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
        return held.session  # type: ignore[return-value]  # it was made of that class

    def _async_session_of(self, unit: UnitOfWork, options: Mapping[str, Any]) -> A_co:
        """Return the ``AsyncSession`` of ``unit``, made on first use with ``options``."""
        sessions = unit._open_sessions()
        held = sessions.asynchronous(self)
        if held is None:
            engines, role = self._engines_for(unit)
            of_loop = engines.of_loops.get(running_loop())  # asynchronous() does the same, but slower
            engine = engines.asynchronous() if of_loop is None else of_loop.engine
            if unit.isolation_level is not None:
                engine = engine.execution_options(isolation_level=unit.isolation_level)
            cls = self._guarded.get((role, unit.isolation_level)) or self._guard(role, unit)
            made = self._async_class(bind=engine, sync_session_class=cls, **{**self._classes.options, **options})
            held = sessions.add(UnitSession(self, made.sync_session, made))  # type: ignore[arg-type]  # of that class
        return held.async_session  # type: ignore[return-value]  # it was added with one

    def _guard(self, role: Role, unit: UnitOfWork) -> type[GuardedSession]:
        made = guarded(self._classes.sync, guard_for(role, self), role == "read", unit.isolation_level)
        return self._guarded.setdefault((role, unit.isolation_level), made)

    def _engines_for(self, unit: UnitOfWork) -> tuple[Engines | FollowingEngines, Role]:
        """Return the engines for the work of ``unit``, and their role."""
        if not unit.read_only and self._configuration is not None:
            return self._engines, "write"
        self._ready()
        role: Role = "snapshot" if unit._needs_transactions() else "read"
        after = unit._after
        if role in self._reading and after is None and not self._substituted:
            return self._reading[role], role
        if self._substituted:
            return self._engines, "snapshot"
        key = self._reading.key
        position = None if after is None or key is None else after.position(key)
        return self._reading.of(role, position, self._make_engines)

    def _make_engines(
        self, configuration: Configuration, url: URL | None, role: Role, replicas: Sequence[URL] = ()
    ) -> Engines:
        from asgi_sqla.engine.engines import Engines

        writes = role == "write"
        return Engines(
            url, configuration.recipe, engine=configuration.engine if writes else None, role=role, replicas=replicas,
            async_engine=configuration.async_engine if writes else None, watchers=events_for(self, configuration),
            transaction_mode=configuration.transaction_mode if writes else None, listeners=self._listeners,
        )  # fmt: skip

    @property
    def _mark_key(self) -> str | None:
        """Its key in marks; None if nothing reads from a replica."""
        return None if self._configuration is None or self._substituted else self._reading.key

    async def _position(self) -> int | None:
        return await self._reading.position()

    def _watch_commits(self, *, again: bool = False) -> None:
        """Let units notice commits on connections outside their sessions, which forbid a retry."""
        if self.configured and (again or not self._watching):
            from asgi_sqla.unit.fences import watch_commits

            watch_commits(self._engines.watch)
        self._watching = True

    def _substitute(self, make: Callable[[Engines], Engines]) -> Callable[[], None]:
        """Use ``make(engines)`` instead of the engines, for ``asgi_sqla.testing``; return what undoes it."""
        before = self._ready(), self._substituted

        def undo() -> None:
            self._engines, self._substituted = before

        self._engines, self._substituted = make(before[0]), True
        return undo

    def _dialect(self) -> Any:
        """Return the dialect or its class; None before this object is configured."""
        return None if self._configuration is None else self._configuration.dialect

    def _isolation_level(self) -> str:
        """Return the isolation level in the engine options; an empty string if there is none."""
        return "" if self._configuration is None else self._configuration.isolation_level

    def _ready(self) -> Engines:
        if self._configuration is None:
            raise ConfigurationError(
                'the global db is not configured; write db.configure("sqlite:///app.db"), or '
                'SQLAlchemyMiddleware(app, url="sqlite:///app.db")'
            )
        return self._engines


db: Database = Database.__new__(Database)
"""The ready-made global database: ``db.configure(url)`` says which one it is."""
db._prepare()
