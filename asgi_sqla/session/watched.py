"""One connection in a session's transaction: what its driver says, read before each statement and each end.

Holds: the record of a connection.
Must not know: units, or what is decided on an outcome.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.exc import InvalidRequestError

from asgi_sqla.engine import read_only
from asgi_sqla.engine.drivers import DRIVERS, FAILED, IDLE, MYSQL, OPEN, OTHER, UNKNOWN, Word, commits_each, cut
from asgi_sqla.session.guard import GuardedSession
from asgi_sqla.session.outcome import UNDONE, Committed, Outcome
from asgi_sqla.session.statements import NOTHING, ROLLBACKS, Effect, judged

_UNDONE = (
    "the database has rolled back this session's whole transaction after an error; write session.rollback() before "
    "the next statement"
)
_COMMITTED_BY_TEXT = "a textual {} has committed this session's transaction; write session.commit() instead"
_BY_OTHERS = (
    "a statement, or commit() or rollback() on the connection, has ended this session's transaction; write "
    "session.commit() or session.rollback() instead"
)
_ROLLED_BACK = "a {} outside the session has rolled back its transaction; write session.rollback() instead"
_WRITES = frozenset(("INSERT", "UPDATE", "DELETE"))


class Watched:
    """One connection in a session's transaction."""

    __slots__ = (
        *("__weakref__", "_called", "_driver", "_ended_by", "_peek", "_raw", "_risked", "_root", "_savepoint"),
        *("_seen", "_suspect", "_words", "autocommit", "connection", "outcome", "sent", "session", "since"),
    )

    def __init__(self, session: GuardedSession, connection: Connection, outcome: Outcome, *, autocommit: bool) -> None:
        self.session: GuardedSession = session
        self.connection: Connection = connection
        self.outcome: Outcome = outcome
        self._driver = driver = DRIVERS.get(connection.dialect.driver, OTHER)
        self._peek, self._words = driver.peek, driver.words
        self.autocommit: bool = autocommit
        """Whether its statements run without a transaction, as those of most read-only units do."""
        self._raw: Any = None if autocommit else connection.connection.driver_connection
        self._seen = False
        """Whether the driver has said that a transaction is open."""
        self._suspect = False
        """Whether an error may hide what the driver would say."""
        self._ended_by: str | None = None
        """The first word of a textual statement that ends transactions, if one was sent."""
        self._called = False
        """Whether a procedure was called, which may commit and then fail."""
        self._risked = False
        """Whether anything was written before the last statement of unknown effect, such as a CALL."""
        self._savepoint: str | None = None
        """The name of the SAVEPOINT that began the transaction: on SQLite its RELEASE is the COMMIT."""
        self._root = connection.get_transaction()
        """The transaction that SQLAlchemy began; another one means that the connection ended this one."""
        self.sent: bool = False
        self.since: float = monotonic()

    def begin(self) -> None:
        """Begin a transaction, which autocommit has not begun, with the next statement."""
        self.autocommit = self.sent = False
        self._raw = read_only.begin_in_autocommit(self.connection)

    def word(self) -> Word:
        """Return what the driver says now."""
        connection = self.connection
        if self._raw is None or connection.closed or connection.invalidated:
            return UNKNOWN
        try:
            return self._driver.ask(self._raw)
        except Exception:  # a driver may raise for a connection that it has closed
            return UNKNOWN

    def before(self, statement: str) -> None:  # noqa: C901  # called for each statement, where a helper would cost a call
        """Record a statement that is about to be sent; refuse it if its transaction has ended."""
        raw = self._raw
        if raw is not None:
            if self._suspect and not self._driver.begins_with_statement:
                self._ask_by_statement()
            try:
                word = self._words[self._peek(raw)]
            except Exception:  # the driver has closed the connection: the statement itself will fail
                word = UNKNOWN
            if word is OPEN:
                self._seen = True
            elif word is IDLE and self.sent and self.outcome.state is not UNDONE and self._is_over(word):
                self._note_end()
            if self._ended_by is not None and self.outcome.state is not UNDONE:
                self._note_end()
            if self._root is not self.connection.get_transaction():
                self._root = self.connection.get_transaction()
                self._note_end()
            if self.outcome.state is UNDONE:
                self.outcome.refuse()
        if statement[:6] in _WRITES:
            self.outcome.wrote = self._risked = True
            self.outcome.wrote_after = self.session.guard_left
        elif statement[:6] != "SELECT":
            self._note_kind(statement)
        self.sent = True

    def note_error(self, *, ends: bool) -> None:
        """Record an error of a statement; ``ends`` if it rolls everything back."""
        if self._raw is None:
            return
        over = self._is_over(self.word())
        self._ended_by = None  # it failed, or the driver's next word says that it did not
        if ends:
            self.outcome.note_undone(_UNDONE)
        elif self._driver.hidden_by_errors:
            self._suspect = True
        elif over and self.word() is IDLE:
            self._note_end(failed=True)

    def instead_of(self, _context: ExceptionContext) -> Exception | None:
        """Return what to raise instead of an error; None for the error itself."""
        return None

    def note_rollback(self) -> None:
        """Record a ROLLBACK: it undoes the work, unless it is the session's own, which ends this record."""
        self._ended_by = self._ended_by or "ROLLBACK"

    def note_refused(self) -> None:
        """Record that the database refused the COMMIT: the transaction has ended, and nothing of it was kept."""
        self._raw = None

    def look(self, *, asking: bool) -> None:
        """Check whether the transaction that SQLAlchemy assumes still exists."""
        if self.outcome.state is UNDONE or self._is_as_believed():
            return
        if self._suspect and (asking or self._called):
            self._ask_by_statement()
        word = self.word()
        if word is FAILED and asking:
            self._ask_by_statement()  # raises the server's error
        elif self.sent and not self._suspect and (self._is_over(word) or self._is_another()):
            self._note_end()
        elif word is IDLE and self.sent and not self._suspect:
            if commits_each(self.connection):
                self.outcome.note_committed(Committed.APPLICATION)
            elif self.outcome.wrote:  # a procedure that commits
                self.outcome.note_committed(Committed.STATEMENT)

    def _is_as_believed(self) -> bool:
        """Return whether the driver says that the transaction is open, and it is still the same one."""
        if self._raw is None or self._suspect or self._ended_by is not None:
            return False
        try:
            word = self._words[self._peek(self._raw)]
        except Exception:  # the driver has closed the connection
            return False
        return word is OPEN and self.connection.get_transaction() is self._root

    @property
    def sent_commit(self) -> bool:
        """Whether the last statement was a textual COMMIT."""
        return self._ended_by is not None and self._ended_by not in ROLLBACKS

    def cut(self) -> bool:
        """Cut the connection, because its server does not answer; return whether there was one."""
        connection = self.connection
        if connection.closed or connection.invalidated:
            return False
        if self.outcome.committing:
            self.outcome.in_doubt = True
        cut(connection.connection.driver_connection, connection.dialect)
        return True

    @property
    def is_asking(self) -> bool:
        """Whether a statement is the record's own question, and so nothing to record."""
        return self._raw is None and not self.autocommit

    def _ask_by_statement(self) -> None:
        """Learn from the server what an error hid: PostgreSQL refuses any statement in a failed transaction."""
        connection, raw = self.connection, self._raw
        if connection.closed or connection.invalidated:
            return
        self._suspect, self._raw = False, None  # this statement must not be recorded itself
        try:
            if connection.dialect.name in MYSQL:
                connection.exec_driver_sql(NOTHING)  # PyMySQL does not read the flags that end a result
            else:
                connection.execute(select(1))
        finally:
            self._raw = raw
        if (self._seen or self._called) and self.word() is IDLE:
            self._note_end(failed=True)

    def _note_end(self, *, failed: bool = False) -> None:
        by = self._ended_by
        if failed and self._called:
            self.outcome.note_committed(Committed.STATEMENT)
        if failed or by in ROLLBACKS:
            self.outcome.note_undone(_UNDONE if by is None else _ROLLED_BACK.format(by))
        elif by is not None:
            self.outcome.note_committed(Committed.STATEMENT)
            self.outcome.note_undone(_COMMITTED_BY_TEXT.format(by))
        elif self._begins_by_itself() and not self._risked:
            self.outcome.note_committed(Committed.STATEMENT)
            self._seen = self.outcome.wrote = False
        else:
            self.outcome.note_committed(Committed.PERHAPS)
            self.outcome.note_undone(_BY_OTHERS)

    def _note_kind(self, statement: str) -> None:
        """Record what a statement does, judged by its first words."""
        outcome, known = self.outcome, judged(statement, self.connection.dialect.name)
        effect = known.effect
        if known.changes:
            read_only.note_changed(self.connection)
        if effect is Effect.COMMITS or effect is Effect.ROLLS_BACK:
            self._ended_by = known.word
        elif effect is Effect.SETS_SAVEPOINT and self.connection.dialect.name not in MYSQL and self.word() is IDLE:
            self._savepoint = known.name
        elif effect is Effect.RELEASES_SAVEPOINT and known.name == self._savepoint:
            self._risked = False
        elif effect is Effect.COMMITS_FIRST:
            self._refuse_commit_by(known.word)
            outcome.wrote = outcome.wrote or known.writes
            outcome.wrote_after = self.session.guard_left
        elif known.writes:
            self._called = self._called or effect is Effect.CALLS
            self._risked, outcome.wrote = outcome.wrote, True
            outcome.wrote_after = self.session.guard_left

    def _refuse_commit_by(self, first: str) -> None:
        if self.outcome.wrote and self._raw is not None:
            raise InvalidRequestError(
                f"{first}: {self.connection.dialect.name} would first commit what this session has written; "
                "write session.commit() before it, or send it in a session_scope() of its own"
            )

    def _begins_by_itself(self) -> bool:
        """Return whether the work after a committing statement is in a transaction again, which the unit ends."""
        name = self.connection.dialect.name
        return name in MYSQL or (name == "sqlite" and self._raw.isolation_level is not None)

    def _is_over(self, word: Word) -> bool:
        """Return whether the transaction that SQLAlchemy assumes is gone; after AND CHAIN another one is open."""
        if self._ended_by is not None:
            return self._raw is not None
        # The first statement may have begun a transaction that the driver has not reported yet.
        begins = self.sent and self._driver.begins_with_statement
        return word is IDLE and (self._seen or (begins and not commits_each(self.connection)))

    def _is_another(self) -> bool:
        """Return whether commit() or rollback() of the connection has ended the transaction that SQLAlchemy began."""
        connection = self.connection
        return not (connection.closed or connection.invalidated) and connection.get_transaction() is not self._root
