"""Where a lookup runs: in the session that was passed, or in the unit's.

Holds: what each kind of session returns: a value, or an awaitable of it.
Must not know: what is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from asgi_sqla.database import Database, db
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError

SyncSession: TypeAlias = Session | scoped_session[Any]
AnyAsyncSession: TypeAlias = AsyncSession | async_scoped_session[Any]


def split(arguments: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Return the session at the start of ``arguments``, or None, and the rest."""
    first = arguments[0] if arguments else None
    if isinstance(first, Session | AsyncSession):
        return first, arguments[1:]
    if isinstance(first, scoped_session | async_scoped_session):
        return first(), arguments[1:]
    return None, arguments


def ask(body: Callable[..., Any], session: Any, model: type[Any], *arguments: Any) -> Any:
    """Return ``body(session, model, *arguments)``, or with an AsyncSession an awaitable of it."""
    if isinstance(session, AsyncSession):
        return session.run_sync(body, model, *arguments)
    if session is None:
        session = _database_of(model).session
    return body(session, model, *arguments)


def merged(model: object, filters: Sequence[Any], attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the filters of a call: its keyword arguments, added to the mapping before them."""
    if not filters:
        return attributes
    if len(filters) != 1 or not isinstance(filters[0], Mapping):
        raise ConfigurationError(
            f"{model!r} was called with {hidden(filters)}; write filters as keyword arguments, name='foo', or as "
            "one mapping, {'name': 'foo'}, after the session if you pass one"
        )
    return {**filters[0], **attributes}


def the_only(model: object, arguments: Sequence[Any]) -> Any:
    """Return the primary key of a call."""
    if len(arguments) != 1:
        raise ConfigurationError(
            f"{model!r} was called with the primary key {hidden(arguments)}; pass one value, or one tuple for a "
            "composite key, after the session if you pass one"
        )
    return arguments[0]


def _database_of(model: type[Any]) -> Database:
    database = getattr(model, "__database__", db)
    if not isinstance(database, Database):
        raise ConfigurationError(f"{model.__name__}.__database__={hidden(database)} is not a Database")
    return database
