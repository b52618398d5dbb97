"""One connection in a session's transaction: what its driver says of it, asked before each statement and each end.

Holds: the record of a connection, and what a statement does to a transaction by its first words.
Must not know: units, or what is decided on an outcome.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from asgi_sqla.engine.drivers import DRIVERS, FAILED, IDLE, OPEN, OTHER, UNKNOWN, Word, cut
from asgi_sqla.session.outcome import UNDONE, Committed, Outcome

_MYSQL = frozenset(("mysql", "mariadb"))
_UNDONE = (
    "the database has rolled back this session's whole transaction after an error; write session.rollback(), and "
    "begin again"
)
_BY_TEXT = "a textual {} has rolled back this session's transaction; write session.rollback() instead"
_WRITES = frozenset(("INSERT", "UPDATE", "DELETE"))
_FIRST_WORDS = re.compile(r"(?:\s+|--[^\n]*\n|/\*.*?\*/)*\(*\s*(\w+)(?:\s+(\w+))?", re.DOTALL)
_READS = frozenset(
    ("BEGIN", "DESC", "DESCRIBE", "EXPLAIN", "FETCH", "LOCK", "PRAGMA", "RELEASE", "SAVEPOINT", "SELECT", "SET")
    + ("SHOW", "START", "TABLE", "USE", "VALUES")
)
"""The first words of statements that leave nothing to commit."""
_COMMITS = frozenset(("COMMIT", "END"))
_ROLLS_BACK = frozenset(("ROLLBACK", "ABORT"))
_COMMITTING_DDL = frozenset(("ALTER", "CREATE", "DROP", "GRANT", "RENAME", "REVOKE", "TRUNCATE"))
"""Statements before which MySQL and MariaDB commit, unless they are about a TEMPORARY table."""


class Watched:
    """One connection in a session's transaction."""

    __slots__ = ("__weakref__", "_driver", "_ended_by", "_peek", "_raw", "_root", "_seen", "_suspect", "_words") + (
        "connection",
        "outcome",
        "sent",
        "session",
    )

    def __init__(self, session: Session, connection: Connection, outcome: Outcome, *, autocommit: bool) -> None:
        self.session: Session = session
        self.connection: Connection = connection
        self.outcome: Outcome = outcome
        driver = DRIVERS.get(connection.dialect.driver, OTHER)
        self._driver = driver
        self._peek = driver.peek
        self._words = driver.words
        self._raw: Any = None if autocommit else connection.connection.driver_connection
        self._seen = False
        """Whether the driver has said that a transaction is open."""
        self._suspect = False
        """Whether an error may hide what the driver would say."""
        self._ended_by: str | None = None
        """The word of a textual statement that ends transactions, if one was sent."""
        self._root = connection.get_transaction()
        """What SQLAlchemy began; another one means that somebody ended this one on the connection."""
        self.sent: bool = False

    def word(self) -> Word:
        """Return what the driver says now."""
        connection = self.connection
        if self._raw is None or connection.closed or connection.invalidated:
            return UNKNOWN
        try:
            return self._driver.ask(self._raw)
        except Exception:  # a driver may refuse to say anything of a connection that it has closed
            return UNKNOWN

    def before(self, statement: str) -> None:
        """Take note of a statement that is about to be sent; refuse it where the transaction it counts on is over."""
        raw = self._raw
        if raw is not None:
            if self._suspect and not self._driver.begins_with_statement:
                self._ask_by_statement()
            word = self._words[self._peek(raw)]
            if word is OPEN:
                self._seen = True
            elif word is IDLE and self.outcome.state is not UNDONE and (self._seen or self._has_begun()):
                self._note_end()
            if self._root is not self.connection.get_transaction():
                self._root = self.connection.get_transaction()
                self._note_end()
            if self.outcome.state is UNDONE:
                self.outcome.refuse()
        if statement[:6] in _WRITES:
            self.outcome.wrote = True
        elif statement[:6] != "SELECT":
            self._note_kind(statement)
        self.sent = True

    def note_error(self, *, ends: bool) -> None:
        """Take note of an error of a statement; ``ends`` says that it rolls everything back."""
        if self._raw is None:
            return
        if ends:
            self.outcome.note_undone(_UNDONE)
        elif self._driver.hidden_by_errors:
            self._suspect = True
        elif self._seen and self.word() is IDLE:
            self._note_end(failed=True)

    def note_refused(self) -> None:
        """Take note that the database has refused the COMMIT: the transaction is over, and nothing of it was kept."""
        self._raw = None

    def look(self, *, asking: bool) -> None:
        """Find out whether the transaction that SQLAlchemy believes in is still there."""
        if self.outcome.state is UNDONE:
            return
        if self._suspect and asking:
            self._ask_by_statement()
        word = self.word()
        if word is FAILED and asking:
            self._ask_by_statement()  # raises what the server says of it
        elif word is IDLE and self.sent and not self._suspect:
            if self._seen or self._ended_by is not None or self._has_begun():
                self._note_end()
            elif self._commits_each():
                self.outcome.note_committed(Committed.APPLICATION)

    def cut(self) -> bool:
        """Cut the connection, as its server does not answer; return whether there was one."""
        connection = self.connection
        if connection.closed or connection.invalidated:
            return False
        if self.outcome.committing:
            self.outcome.in_doubt = True
        cut(connection.connection.driver_connection, connection.dialect)
        return True

    def _ask_by_statement(self) -> None:
        """Have the server say what an error hid: PostgreSQL refuses any statement in a failed transaction."""
        connection, raw = self.connection, self._raw
        if connection.closed or connection.invalidated:
            return
        self._suspect, self._raw = False, None  # this statement itself is not one to take note of
        try:
            if connection.dialect.name in _MYSQL:
                connection.exec_driver_sql("DO 0")  # PyMySQL does not read the flags that end a result
            else:
                connection.execute(select(1))
        finally:
            self._raw = raw
        if self._seen and self.word() is IDLE:
            self._note_end(failed=True)

    def _note_end(self, *, failed: bool = False) -> None:
        by = self._ended_by
        if failed or by in _ROLLS_BACK:
            self.outcome.note_undone(_UNDONE if by is None else _BY_TEXT.format(by))
            return
        self.outcome.note_committed(Committed.STATEMENT)
        if by is None and self._begins_by_itself():
            self._seen = False
            return
        what = "a statement, or commit() on its connection," if by is None else f"a textual {by}"
        self.outcome.note_undone(f"{what} has committed this session's transaction; write session.commit() instead")

    def _note_kind(self, statement: str) -> None:
        """Take note of what a statement does, by its first words."""
        words = _FIRST_WORDS.match(statement)
        first, second = ("", "") if words is None else (words[1].upper(), (words[2] or "").upper())
        if first in _COMMITS or (first in _ROLLS_BACK and second != "TO"):
            self._ended_by = first
        elif first in _COMMITTING_DDL and second != "TEMPORARY" and self.connection.dialect.name in _MYSQL:
            self._refuse_commit_by(first)
            self.outcome.wrote = True
        elif first not in _READS and first not in _ROLLS_BACK:
            self.outcome.wrote = True

    def _refuse_commit_by(self, first: str) -> None:
        if self.outcome.wrote and self._raw is not None:
            raise InvalidRequestError(
                f"{first}: {self.connection.dialect.name} would first commit what this session has written; "
                "write session.commit() before it, or send it in a session_scope() of its own"
            )

    def _begins_by_itself(self) -> bool:
        """Whether what follows a commit by a statement is in a transaction again, so that the unit ends that."""
        name = self.connection.dialect.name
        return name in _MYSQL or (name == "sqlite" and self._raw.isolation_level is not None)

    def _has_begun(self) -> bool:
        """Whether a statement that was sent has begun a transaction, which no driver has had occasion to say."""
        return self.sent and self._driver.begins_with_statement and not self._commits_each()

    def _commits_each(self) -> bool:
        """Whether an idle driver means autocommit: on MySQL, and in sqlite3's own mode, reads open no transaction."""
        if self._driver.begins_with_statement:
            return self.connection.dialect.detect_autocommit_setting(self.connection.connection.dbapi_connection)  # type: ignore[arg-type]  # it is there, as it is not closed
        if self.connection.dialect.name in _MYSQL:
            return bool(self._raw.get_autocommit())
        return self._raw.isolation_level is None
