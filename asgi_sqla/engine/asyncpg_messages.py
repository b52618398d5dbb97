"""The few messages of PostgreSQL's protocol that are written or read beside asyncpg.

Holds: their bytes. Pure functions.
Must not know: connections, or when a message is sent.
"""

from __future__ import annotations

from functools import cache

COMMIT = b"Q\0\0\0\x0cCOMMIT;\0"
"""The message Query, as asyncpg would send it."""
READY, ERROR, DONE = b"Z", b"E", b"C"
"""The first bytes of the messages that end an answer, refuse a request, and say that it was carried out."""
END = b"Z\0\0\0\x05I"
"""The server's message ReadyForQuery, outside a transaction."""
COMMITTED = b"Z\0\0\0\x05TC\0\0\0\x0bCOMMIT\0" + END
"""How the answer to a statement of a transaction and to the COMMIT after it ends.

A row that ``asgi_sqla.session.lone`` lets be returned cannot contain it: text has no NUL, and no other value there has
a length of 5 or 11.
"""
FATAL = (b"VFATAL\0", b"VPANIC\0")
"""Fields of an error after which the server closes the connection."""


@cache
def begin(isolation_level: str | None, readonly: bool, deferrable: bool) -> bytes:
    """Return what begins a transaction."""
    sql = "BEGIN"
    if isolation_level:
        sql += f" ISOLATION LEVEL {isolation_level.replace('_', ' ').upper()}"
    return unsynced(sql + " READ ONLY" * readonly + " DEFERRABLE" * deferrable)


def unsynced(sql: str) -> bytes:
    """Return the messages Parse, Bind and Execute of ``sql``, without a Sync."""
    return (
        _message(b"P", b"\0" + sql.encode() + b"\0" + b"\0\0")
        + _message(b"B", b"\0\0" + b"\0\0" + b"\0\0" + b"\0\0")
        + _message(b"E", b"\0" + b"\0\0\0\0")
    )


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def fields(body: bytes) -> dict[str, str]:
    """Return the fields of an error by their codes."""
    return {field[:1].decode(): field[1:].decode() for field in body.split(b"\0") if field}
