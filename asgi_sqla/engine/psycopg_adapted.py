"""What SQLAlchemy asks psycopg for and could know: a rollback of nothing, a cursor entered, columns described before.

Holds: the adapters of async connections that our engines give to SQLAlchemy, and the described columns; imported only
with such an engine.
Must not know: what travels, engines, sessions.
"""

from __future__ import annotations

from typing import Any

from psycopg import Column
from sqlalchemy.dialects.postgresql import psycopg as sqlalchemy_psycopg

_adapters: Any = sqlalchemy_psycopg  # much of it has no types

FIRST_OF_USERS = 16_384
"""The first OID that PostgreSQL gives to a type that is not built in; of those psycopg may learn more at any time."""
MOST = 1_000
"""Descriptions that are kept."""
_ENTERS = hasattr(_adapters.AsyncAdapt_psycopg_cursor, "_aenter_cursor")
"""Whether SQLAlchemy enters a cursor, as from 2.1 on."""
_described: dict[tuple[Any, ...], list[Column]] = {}


class _Cursor(_adapters.AsyncAdapt_psycopg_cursor):  # type: ignore[misc]  # no types
    __slots__ = ()

    def _aenter_cursor(self, cursor: Any) -> Any:
        return cursor  # psycopg's own returns itself, at the price of a coroutine and two switches of greenlets


class _Adapted(_adapters.AsyncAdapt_psycopg_connection):  # type: ignore[misc]  # no types
    __slots__ = ()

    def cursor(self, name: str | None = None, /) -> Any:
        return super().cursor(name) if name or not _ENTERS else _Cursor(self)

    def rollback(self) -> None:
        if not self._connection.rolls_back_nothing():
            super().rollback()


def adapt(adapted: Any) -> None:
    """Make SQLAlchemy's adapter of one of our connections one of ours; one of another kind stays what it is."""
    if type(adapted) is _adapters.AsyncAdapt_psycopg_connection:
        adapted.__class__ = _Adapted


def described(cursor: Any, result: Any) -> list[Column]:
    """Return the columns of a result, which has some; of types that cannot change they are made once."""
    key = tuple(
        [
            (result.fname(index), result.ftype(index), result.fmod(index), result.fsize(index))
            for index in range(result.nfields)
        ]
    )
    found = _described.get(key)
    if found is None:
        found = [Column(cursor, index) for index in range(result.nfields)]
        if all(name and name.isascii() and oid < FIRST_OF_USERS for name, oid, _, _ in key):
            if len(_described) >= MOST:
                _described.clear()
            _described[key] = found
    return list(found)
