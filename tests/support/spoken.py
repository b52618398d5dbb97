"""A wire that reads which statements a driver sends, in the protocols of PostgreSQL and of MariaDB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, make_url

from support.databases import Backend
from support.wire import Connection, Wire

CONTROL = ("BEGIN", "START", "COMMIT", "FETCH", "CLOSE", "DEALLOCATE", "SET AUTOCOMMIT")
"""First words of what drivers and SQLAlchemy send by themselves: transactions, and the rows of a cursor."""
COM_QUERY = 3
"""The command of MariaDB that sends a text."""


class Listener:
    """What one driver has said on one connection."""

    def __init__(self) -> None:
        self.rest = b""
        self.started = False
        self.texts: dict[bytes, str] = {}
        """The texts of prepared statements, by their names."""
        self.fresh: str | None = None
        """One that was prepared and not bound yet: it counts already, as the server may refuse it."""


class Spoken(Wire):
    """Keeps the text of every statement: for a prepared one each time that it is bound, or refused."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self._mariadb = url.get_backend_name() in ("mysql", "mariadb")
        self._listeners: dict[Connection, Listener] = {}
        self._said: list[str] = []

    @property
    def statements(self) -> list[str]:
        """Every statement of the application, with those about savepoints."""
        said = [text for text in self._said if not text.upper().startswith(CONTROL)]
        return [text for text in said if text.upper() != "ROLLBACK"]

    def clear(self) -> None:
        """Forget what was said."""
        self._said.clear()

    def hear(self, connection: Connection, data: bytes) -> None:
        """Read messages, as far as they are whole."""
        listener = self._listeners.setdefault(connection, Listener())
        listener.rest += data
        read = self._mariadb_message if self._mariadb else self._postgresql_message
        while read(listener):
            pass

    def _mariadb_message(self, listener: Listener) -> bool:
        head = listener.rest[:4]
        length = int.from_bytes(head[:3], "little")
        if len(head) < 4 or len(listener.rest) < 4 + length:
            return False
        body, listener.rest = listener.rest[4 : 4 + length], listener.rest[4 + length :]
        if head[3] == 0 and body[0] == COM_QUERY:
            self._said.append(body[1:].decode(errors="replace").strip())
        return True

    def _postgresql_message(self, listener: Listener) -> bool:
        skipped = 1 if listener.started else 0  # the first message has no kind
        length = int.from_bytes(listener.rest[skipped : skipped + 4], "big")
        if len(listener.rest) < skipped + 4 or len(listener.rest) < skipped + length:
            return False
        kind, body = listener.rest[:skipped], listener.rest[skipped + 4 : skipped + length]
        listener.rest, listener.started = listener.rest[skipped + length :], True
        parts = body.split(b"\0")
        if kind == b"P":
            listener.texts[parts[0]] = parts[1].decode().strip()
            listener.fresh = listener.texts[parts[0]]
            self._said.append(listener.fresh)
        elif kind == b"B" and listener.fresh == listener.texts[parts[1]]:
            listener.fresh = None
        elif kind == b"B":
            self._said.append(listener.texts[parts[1]])
        elif kind == b"Q":
            self._said.append(parts[0].decode().strip(" \n;"))
        return True


@contextmanager
def spoken(backend: Backend) -> Iterator[tuple[Spoken, str]]:
    """Put such a wire before the server of ``backend``; yield it and its own URL."""
    url = make_url(backend.url)
    wire = Spoken(url)
    query = {key: value for key, value in url.query.items() if key != "host"}
    if backend.is_postgresql:
        query |= {"ssl": "disable"} if "asyncpg" in url.drivername else {"sslmode": "disable", "gssencmode": "disable"}
    wire.start()
    try:
        through = url.set(host="127.0.0.1", port=wire.port, query=query)
        yield wire, through.render_as_string(hide_password=False)
    finally:
        wire.stop()
