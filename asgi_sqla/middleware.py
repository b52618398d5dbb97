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
from asgi_sqla.asgi.arrival import Serving
from asgi_sqla.asgi.exchange import KEY, Rules
from asgi_sqla.asgi.kinds import DeadlineOf, OnStartup, StickBy
from asgi_sqla.asgi.verdict import (
    CommitOn,
    CommitParts,
    ReadOnly,
    below_400,
    event_streams,
    parts_of,
    read_only_of,
    verdict_of,
)
from asgi_sqla.database import Database, db
from asgi_sqla.engine.callables import is_async, takes
from asgi_sqla.engine.given import checked_count, known_arguments
from asgi_sqla.engine.showing import hidden
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


class SQLAlchemyMiddleware(Serving):
    """Give every request of an ASGI 3 application one unit of work, which ends before its response starts.

    The response status decides: below 400 the unit commits, otherwise it rolls back. A COMMIT that fails is answered
    with an error instead of the response. Each websocket message is a unit of work of its own.

    - ``app``: the application to wrap.
    - ``database``: a ``Database``, or a sequence of them, to check at startup and to dispose at shutdown; default: the
      global ``db``. A unit can use any other ``Database`` too.
    - ``url``: a database URL that configures the global ``db``; default: none.
    - ``commit_on``: which responses commit: a container of statuses, or a plain function of the ASGI scope and the
      ``http.response.start`` message that returns a bool; default: statuses below 400.
    - ``commit_parts``: which responses are answers in parts: a plain function of the ASGI scope and the
      ``http.response.start`` message that returns a bool, or ``()`` for none. Before each part of their body what is
      open is committed; default: event streams (``text/event-stream``).
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
    - ``deadline``: for how many seconds the statements of a request may run, from its arrival until its response
      starts; or a plain function of the ASGI scope that returns seconds or None. The database stops a statement at the
      deadline, later ones raise DeadlineExceededError, and what was written is not committed. A handler is not
      cancelled. All ``retries`` share the deadline. Each websocket message has its own; default: none.
    - ``cancel_on_disconnect``: True cancels an application whose client has gone before the response started, and its
      statements in the server, and rolls back. A COMMIT that has begun is not cancelled; default: False.
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
        commit_parts: CommitParts = event_streams,
        error_responses: ErrorResponses | None = None,
        read_only: ReadOnly = (),
        stick: float | Literal["wal"] | None = None,
        stick_by: StickBy = "cookie",
        retries: int = 0,
        replay_limit: int = 2**20,
        deadline: DeadlineOf | None = None,
        cancel_on_disconnect: bool = False,
        check_on_startup: bool = False,
        on_startup: OnStartup | None = None,
    ) -> None:
        _check_application(app)
        self._check_on_startup = _checked_switch("check_on_startup", check_on_startup)
        self._on_startup = _checked_startup(on_startup)
        given: dict[str, Any] = {"commit_on": commit_on, "commit_parts": commit_parts, "read_only": read_only}
        given |= {"stick": stick, "stick_by": stick_by, "retries": retries, "replay_limit": replay_limit}
        given |= {"deadline": deadline, "cancel_on_disconnect": cancel_on_disconnect}
        self._rules = Rules(
            _until_disconnect(app) if _checked_switch("cancel_on_disconnect", cancel_on_disconnect) else app,
            verdict_of(commit_on),
            Answers(error_responses),
            None if read_only == () else read_only_of(read_only),
            _stick_of(stick, stick_by, reads=read_only != ()),
            parts_of(commit_parts),
            checked_count("retries", retries),
            checked_count("replay_limit", replay_limit),
            _deadline_from(deadline),
            given | {"error_responses": dict(error_responses or {})},
        )
        self._databases = _databases(database, url)  # last, as it configures the global db
        _check_positions(stick, self._databases)
        self._serve = _server(retries, deadline)
        self._app, self._runs = app, self._rules.app
        self._said = self._lives = False
        for one in self._databases if retries else ():
            one._watch_commits()
        note_middleware()

    def __repr__(self) -> str:
        return f"SQLAlchemyMiddleware({hidden(self._app)}, {self._databases!r})"

    async def _serve_other(self, scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if kind == "websocket" and KEY not in scope:
            from asgi_sqla.asgi.websocket import WebSocket

            await WebSocket(self._rules, scope, receive, send).run()
        elif kind == "lifespan":
            from asgi_sqla.asgi.lifespan import Lifespan

            self._lives = True
            lifespan = Lifespan(self._databases, scope, receive, send)
            await lifespan.run(self._app, self._check_on_startup, self._on_startup)
        else:
            if not self._said and KEY in scope:
                self._say_if_ignored(scope[KEY])
            await self._app(scope, receive, send)

    def _say_if_ignored(self, unit: Any) -> None:
        """Log once what is ignored, if an outer layer has other settings: a request has one unit, and one verdict."""
        outer = getattr(unit, "_rules", None)
        if outer is None:  # it has ended
            return
        self._said = True
        ignored = [f"{name}=" for name, value in self._rules.given.items() if value != outer.given[name]]
        if not self._lives:  # most frameworks pass no lifespan on to what is mounted in them
            ignored += ["check_on_startup="] * self._check_on_startup + ["on_startup="] * (self._on_startup is not None)
        if ignored:
            logger.warning(
                "%r is inside another SQLAlchemyMiddleware, whose settings apply, so its own are ignored: %s. Give "
                "them to the outer one, as functions of the ASGI scope, or mount the applications beside each other",
                self,
                ", ".join(ignored),
            )


def _check_application(app: Any) -> None:
    unfit = isinstance(app, Database) or (isinstance(app, type) and not hasattr(app, "__await__"))
    if unfit or not takes(app, "scope", "receive", "send"):
        raise ConfigurationError(
            f"app={hidden(app)} is not an ASGI 3 application, a callable of (scope, receive, send); "
            "write SQLAlchemyMiddleware(app, database), the application first"
        )


def _checked_switch(name: str, given: Any) -> bool:
    if not isinstance(given, bool):
        raise ConfigurationError(f"{name}={hidden(given)} is neither True nor False")
    return given


# Only who asks for what follows pays for the import.


def _stick_of(stick: object, stick_by: object, *, reads: bool) -> Any:
    if stick is None and stick_by == "cookie":
        return None
    from asgi_sqla.asgi.stick import stick_of

    return stick_of(stick, stick_by, reads=reads)


def _deadline_from(deadline: object) -> Any:
    if deadline is None:
        return None
    from asgi_sqla.asgi.deadline import deadline_from

    return deadline_from(deadline)


def _server(retries: int, deadline: object) -> Any:
    """Return what serves a request that has retries or a deadline."""
    if deadline is not None:
        from asgi_sqla.asgi.deadline import serve

        return serve
    if retries:
        from asgi_sqla.asgi.retry import replay

        return replay
    return None


def _until_disconnect(app: Application) -> Application:
    from asgi_sqla.asgi.disconnect import UntilDisconnect

    return UntilDisconnect(app)


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
