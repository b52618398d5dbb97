"""``SQLAlchemyMiddleware``: frozen configuration around an ASGI application.

Holds: what a user configures, checked at once, and which part of ASGI goes where.
Must not know: how a request, a websocket or a lifespan goes on.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeAlias, cast

from sqlalchemy.engine import URL

from asgi_sqla.asgi.answers import Answers, ErrorResponses
from asgi_sqla.asgi.exchange import KEY, Rules
from asgi_sqla.asgi.lifespan import Lifespan, OnStartup
from asgi_sqla.asgi.request import Request
from asgi_sqla.asgi.retry import replay
from asgi_sqla.asgi.stick import StickBy, stick_of
from asgi_sqla.asgi.verdict import CommitOn, ReadOnly, below_400, read_only_of, verdict_of
from asgi_sqla.asgi.websocket import WebSocket
from asgi_sqla.database import Database, db
from asgi_sqla.engine.callables import is_async, takes
from asgi_sqla.engine.options import checked_count, known_arguments
from asgi_sqla.engine.urls import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.unit.context import note_middleware

Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""Any ASGI 3 application. asgiref's own type does not accept Starlette's, whose scope is another mapping type."""

_INSTEAD = {
    "db": "database=",
    "db_url": "url=, or database=Database(url)",
    "engine": "database=Database(engine=...)",
    "engine_args": "database=Database(url, engine_options=...)",
    "session_args": "database=Database(url, session_options=...)",
}

logger: logging.Logger = logging.getLogger("asgi_sqla")


class SQLAlchemyMiddleware:
    """Give every request of an ASGI 3 application one unit of work, which ends before its response starts.

    The response status decides: below 400 the unit commits, otherwise it rolls back. A COMMIT that fails is answered
    with an error instead of the response. Each websocket message is a unit of work of its own.

    - ``app``: the application to wrap.
    - ``database``: a ``Database``, or a sequence of them, to check at startup and to dispose at shutdown; default: the
      global ``db``. A unit can use any other ``Database`` too.
    - ``url``: a database URL that configures the global ``db``; default: none.
    - ``commit_on``: which responses commit: a container of statuses, or a plain function of the ASGI scope and the
      ``http.response.start`` message that returns a bool; default: statuses below 400.
    - ``error_responses``: a mapping of exception classes and ``ErrorKind`` to a status from 400 to 599 or to an ASGI
      application. It answers a failed COMMIT, and an exception that reaches this middleware. It also replaces a 5xx of
      the application, if a failure of the database was not handled; default: none, so a failed COMMIT is answered 500
      and raised to the server.
    - ``read_only``: which requests only read: a container of HTTP methods in capitals, or a plain function of the ASGI
      scope that returns a bool; default: none.
    - ``stick``: after a request that committed a write, for how many seconds read-only requests of the same client read
      from the primary, not from ``read_only_url``. "wal" uses a replica as soon as it has replayed the write: for
      PostgreSQL, with one server behind each URL. It changes nothing without ``read_only_url``; default: none.
    - ``stick_by``: how a client is recognised: "cookie"; the name of a header that it sends back; or two plain
      functions, ``read(scope)``, which returns the mark or None, and ``write(scope, message, mark)``; default:
      "cookie".
    - ``retries``: how many times a request is retried after a transient error, before anything was sent; default: 0.
    - ``replay_limit``: how many bytes of a request's body are kept for a retry; a larger body is not retried; default:
      1048576 (1 MiB).
    - ``check_on_startup``: True connects to every database first, and a failure fails the startup; default: False.
    - ``on_startup``: an async function without arguments that is awaited next, such as ``migrations.async_migrate``;
      default: none.

    Raises ConfigurationError for a wrong argument, at once, and MissingDriverError if ``url`` needs a driver that is
    not installed. Scopes and messages are those of the ASGI specification, version 3.
    """

    @known_arguments(_INSTEAD)
    def __init__(
        self,
        app: Application,
        database: Database | Sequence[Database] | None = None,
        *,
        url: str | URL | None = None,
        commit_on: CommitOn = below_400,
        error_responses: ErrorResponses | None = None,
        read_only: ReadOnly = (),
        stick: float | Literal["wal"] | None = None,
        stick_by: StickBy = "cookie",
        retries: int = 0,
        replay_limit: int = 2**20,
        check_on_startup: bool = False,
        on_startup: OnStartup | None = None,
    ) -> None:
        _check_application(app)
        if not isinstance(check_on_startup, bool):
            raise ConfigurationError(f"check_on_startup={hidden(check_on_startup)} is neither True nor False")
        self._check_on_startup = check_on_startup
        self._on_startup = _checked_startup(on_startup)
        self._rules = Rules(
            app,
            verdict_of(commit_on),
            Answers(error_responses),
            None if read_only == () else read_only_of(read_only),
            stick_of(stick, stick_by, reads=read_only != ()),
            checked_count("retries", retries),
            checked_count("replay_limit", replay_limit),
            (commit_on, dict(error_responses or {}), read_only, stick, stick_by, retries, replay_limit),
        )
        self._databases = _databases(database, url)  # last, as it configures the global db
        _check_positions(stick, self._databases)
        self._app = app
        self._said = False
        for one in self._databases if retries else ():
            one._watch_commits()
        note_middleware()

    def __repr__(self) -> str:
        return f"SQLAlchemyMiddleware({hidden(self._app)}, {self._databases!r})"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI connection: a request, a websocket or a lifespan; anything else passes through untouched.

        - ``scope``: the ASGI scope.
        - ``receive``: the ASGI ``receive`` callable.
        - ``send``: the ASGI ``send`` callable.
        """
        kind = scope["type"]
        if kind == "http" and KEY not in scope:
            if self._rules.retries:
                await replay(self._rules, scope, receive, send)
            else:
                await Request(self._rules, scope, receive, send).run()
        elif kind == "websocket" and KEY not in scope:
            await WebSocket(self._rules, scope, receive, send).run()
        elif kind == "lifespan":
            lifespan = Lifespan(self._databases, scope, receive, send)
            await lifespan.run(self._app, self._check_on_startup, self._on_startup)
        else:
            if not self._said and KEY in scope:
                self._say_if_ignored(scope[KEY])
            await self._app(scope, receive, send)

    def _say_if_ignored(self, unit: Any) -> None:
        """Log once that the settings of an outer layer apply, if they differ from these."""
        self._said = True
        outer = getattr(unit, "_rules", None)
        if isinstance(outer, Rules) and outer.given != self._rules.given:
            logger.warning("%r is inside another SQLAlchemyMiddleware, whose settings apply: its own are ignored", self)


def _check_application(app: Any) -> None:
    unfit = isinstance(app, Database) or (isinstance(app, type) and not hasattr(app, "__await__"))
    if unfit or not takes(app, "scope", "receive", "send"):
        raise ConfigurationError(
            f"app={hidden(app)} is not an ASGI 3 application, a callable of (scope, receive, send); "
            "write SQLAlchemyMiddleware(app, database), the application first"
        )


def _check_positions(stick: object, databases: Sequence[Database]) -> None:
    for one in databases if stick == "wal" else ():
        if one.configured and not one._reading.has_positions:
            raise ConfigurationError(
                f'stick="wal" is for PostgreSQL, and {one!r} has a replica without WAL positions; write stick=2.0'
            )


def _checked_startup(on_startup: Any) -> OnStartup | None:
    if on_startup is not None and not callable(on_startup):
        raise ConfigurationError(
            f"on_startup={hidden(on_startup)} cannot be called; pass a function to await, such as "
            "migrations.async_migrate"
        )
    plain = inspect.isroutine(on_startup) or (isinstance(on_startup, type) and not hasattr(on_startup, "__await__"))
    if plain and not is_async(on_startup):
        raise ConfigurationError(
            f"on_startup={hidden(on_startup)} is a plain function, but it is awaited; write async def, or "
            "migrations.async_migrate instead of migrations.migrate"
        )
    if on_startup is not None and not takes(on_startup):
        raise ConfigurationError(
            f"on_startup={hidden(on_startup)} cannot be called without arguments; write async def start(): ..."
        )
    return cast("OnStartup | None", on_startup)


def _databases(database: Any, url: str | URL | None) -> tuple[Database, ...]:
    if url is not None:
        if database is not None:
            raise ConfigurationError(
                f"url={hidden(url)} and database={hidden(database)}: url= is for the global db; pass one"
            )
        db.configure(url)
    if database is None:
        return (db,)
    if isinstance(database, Database):
        return (database,)
    if isinstance(database, Sequence) and database and all(isinstance(one, Database) for one in database):
        return tuple(database)
    raise ConfigurationError(
        f"database={hidden(database)} is neither a Database nor a sequence of them; "
        "write SQLAlchemyMiddleware(app, Database(url))"
    )
