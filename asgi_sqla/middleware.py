"""``SQLAlchemyMiddleware``: frozen configuration around an ASGI application.

Lives here: what a user configures, checked at once, and which part of ASGI goes where.
Must not know: how a request, a conversation or a lifespan goes on.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from sqlalchemy.engine import URL

from asgi_sqla.answers import Answers, ErrorResponses
from asgi_sqla.database import Database, db
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.exchange import KEY, Rules
from asgi_sqla.http import Request
from asgi_sqla.lifespan import Lifespan, OnStartup
from asgi_sqla.replay import replay
from asgi_sqla.verdict import CommitOn, ReadOnly, below_400, read_only_of, verdict_of
from asgi_sqla.websocket import Conversation

Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""Any ASGI 3 application. asgiref's own type would refuse Starlette's, which has other mappings in it."""


class SQLAlchemyMiddleware:
    """Gives every request of an ASGI 3 application one unit of work, ended before its response starts.

    ``database`` is a ``Database`` or a sequence of them: those it checks at start-up and disposes at
    shutdown, for a unit serves any. Left out, it is the global ``db``, which ``url`` configures.
    ``commit_on`` says which responses commit: a container of statuses, or a callable of the ASGI
    scope and the start message that returns a bool; below 400 if left out. ``error_responses`` maps
    exception classes to a status from 400 to 599, or to an ASGI application, for the answer to a
    failed COMMIT and to an exception that reaches this middleware; otherwise a failed COMMIT is
    answered 500 and raised on. ``read_only`` says which requests only read: a set of HTTP methods, or
    a callable of the ASGI scope. ``retries`` is how often a request is begun again that a passing
    failure of the database stopped before anything was sent; its body is kept for that up to
    ``replay_limit`` bytes. ``check_on_startup`` connects to every database first, and
    ``on_startup`` is awaited next, such as ``migrations.async_sync``: what fails there fails the start.

    Raises ConfigurationError when an argument is wrong, at once.
    """

    def __init__(
        self,
        app: Application,
        database: Database | Sequence[Database] | None = None,
        *,
        url: str | URL | None = None,
        commit_on: CommitOn = below_400,
        error_responses: ErrorResponses | None = None,
        read_only: ReadOnly = (),
        retries: int = 0,
        replay_limit: int = 2**20,
        check_on_startup: bool = False,
        on_startup: OnStartup | None = None,
    ) -> None:
        _check_application(app)
        self._databases = _databases(database, url)
        self._check_on_startup = check_on_startup
        if on_startup is not None and not callable(on_startup):
            raise ConfigurationError(
                f"on_startup={on_startup!r} cannot be called; pass a function to await, such as migrations.async_sync"
            )
        self._on_startup = on_startup
        self._rules = Rules(
            app,
            verdict_of(commit_on),
            Answers(error_responses),
            read_only_of(read_only),
            _count("retries", retries),
            _count("replay_limit", replay_limit),
        )
        self._app = app

    def __repr__(self) -> str:
        return f"SQLAlchemyMiddleware({self._app!r}, {self._databases!r})"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI connection."""
        kind = scope["type"]
        if kind == "http" and KEY not in scope:
            if self._rules.retries:
                await replay(self._rules, scope, receive, send)
            else:
                await Request(self._rules, scope, receive, send).run()
        elif kind == "websocket" and KEY not in scope:
            await Conversation(self._rules, scope, receive, send).run()
        elif kind == "lifespan":
            lifespan = Lifespan(self._databases, scope, receive, send)
            await lifespan.run(self._app, self._check_on_startup, self._on_startup)
        else:
            await self._app(scope, receive, send)


def _count(argument: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"{argument}={value!r} is no count; write a whole number from 0")
    return value


def _check_application(app: Any) -> None:
    try:
        if isinstance(app, type) and not hasattr(app, "__await__"):
            raise TypeError
        inspect.signature(app).bind("scope", "receive", "send")
    except TypeError:
        raise ConfigurationError(
            f"app={app!r} is no ASGI 3 application, a callable of (scope, receive, send); "
            "write SQLAlchemyMiddleware(app, database), the application first"
        ) from None
    except ValueError:
        return  # a callable, but one that does not tell its parameters


def _databases(database: Any, url: str | URL | None) -> tuple[Database, ...]:
    if url is not None:
        if database is not None:
            raise ConfigurationError(f"url={url!r} and database={database!r}: url= is for the global db; pass one")
        db.configure(url)
    if database is None:
        return (db,)
    if isinstance(database, Database):
        return (database,)
    if isinstance(database, Sequence) and database and all(isinstance(one, Database) for one in database):
        return tuple(database)
    raise ConfigurationError(
        f"database={_shown(database)} is neither a Database nor a sequence of them; "
        "write SQLAlchemyMiddleware(app, Database(url))"
    )


def _shown(database: object) -> str:
    return "a URL, which may hold a password," if isinstance(database, str) else repr(database)
