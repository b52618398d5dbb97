"""Poolers in transaction mode, such as PgBouncer: each transaction may run on another session of the server.

So nothing is set on a session of the server, and nothing is expected of it later. ``statement_cache_size=0`` makes
asyncpg use the unnamed statement, and send its Parse again with each Bind; psycopg prepares nothing. BEGIN still
travels with the first statement: a pooler chooses a session at the first message, and keeps it until the transaction
ends.

Holds: what the switch needs of a ``Database``, what it means for each driver, and which errors a missing one causes.
Must not know: how a connection is made read-only, sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Engine, ExceptionContext

from asgi_sqla.engine.classification import sqlstate_of
from asgi_sqla.engine.showing import hidden, shown
from asgi_sqla.errors import ConfigurationError

_ASYNCPG = {"statement_cache_size": 0, "prepared_statement_cache_size": 0, "prepared_statement_name_func": None}
_PSYCOPG = {"prepare_threshold": None}
_DRIVERS: Mapping[str, Mapping[str, Any]] = {
    "asyncpg": _ASYNCPG,
    "psycopg": _PSYCOPG,
    "psycopg_async": _PSYCOPG,
    "psycopg2": {},  # it prepares nothing
}
"""The arguments of each driver that can be used, by SQLAlchemy's names."""
_OWN = ("async_creator", "creator", "pool")
"""The engine options with which a user makes the connections."""

NOTE = "if the URL leads to a pooler, such as PgBouncer, write Database(url, transaction_pooler=True)"
"""Added to an error that a pooler may have caused."""
_REFUSALS = ("unsupported startup parameter", "RDS Proxy currently doesn")
"""What PgBouncer and RDS Proxy say of the parameter that makes read-only connections."""
_SQLSTATES = frozenset(("26000", "42P05"))
"""A prepared statement that does not exist, or exists already: it is another client's."""


def checked_pooler(arguments: Mapping[str, Any], url: URL | None, replicas: Sequence[URL]) -> bool:
    """Return ``transaction_pooler``; raise ConfigurationError if the other arguments leave us no way to obey it."""
    given = arguments.get("transaction_pooler", False)
    if not isinstance(given, bool):
        raise ConfigurationError(f"transaction_pooler={hidden(given)} is neither True nor False")
    if given and (reason := _obstacle(arguments, url, replicas)) is not None:
        raise ConfigurationError(f"transaction_pooler=True {reason}")
    return given


def _obstacle(arguments: Mapping[str, Any], url: URL | None, replicas: Sequence[URL]) -> str | None:
    own = [f"{name}=..." for name in ("engine", "async_engine") if arguments.get(name) is not None]
    for options in ("engine_options", "async_engine_options"):
        own += [f"{options}={{{name!r}: ...}}" for name in _OWN if name in (arguments.get(options) or {})]
    if own or url is None:
        return f"is for connections that are made from a URL, but {own[0]} brings its own; leave one of them out"
    if url.get_backend_name() != "postgresql":
        return (
            f"is for PostgreSQL, but url={shown(url)}; leave it out, as poolers of other databases keep what a client "
            "sets for that client"
        )
    for one in (url, *replicas):
        driver = one.drivername.partition("+")[2]
        if driver and driver not in _DRIVERS:
            return f"is for psycopg, psycopg2 and asyncpg, but a URL is {shown(one)}; write postgresql+psycopg://"
    return None


def pooled(driver: str) -> Mapping[str, Any]:
    """Return the driver's arguments, which replace a user's."""
    return _DRIVERS[driver]


def name_the_switch(engine: Engine) -> None:
    """Have each error of ``engine`` that a pooler may have caused name the switch."""
    dialect: Any = engine.dialect
    connect = dialect.connect

    def noting(*args: Any, **parameters: Any) -> Any:
        # No event reports what asyncpg raises while it connects, if SQLAlchemy 2.0 does not wrap it.
        try:
            return connect(*args, **parameters)
        except Exception as exc:
            _note(exc, exc)
            raise

    def on_error(context: ExceptionContext) -> None:
        if context.sqlalchemy_exception is not None:
            _note(context.original_exception, context.sqlalchemy_exception)

    dialect.connect = noting
    event.listen(engine, "handle_error", on_error)


def _note(original: BaseException, raised: BaseException) -> None:
    """Add the note to ``raised`` if ``original`` is an error of a pooler."""
    if sqlstate_of(original) in _SQLSTATES or any(refusal in str(original) for refusal in _REFUSALS):
        raised.add_note(NOTE)
