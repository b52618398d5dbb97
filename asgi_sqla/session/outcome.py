"""The outcome: the one record of what is known of a session's transaction, from which every decision is taken.

It believes, in this order: what the driver says that the server last said; what SQLAlchemy's events say; what our
own code did. So it finds what no event tells of: that SQLite, or MariaDB at a lock timeout, rolled everything back
by itself; that a textual COMMIT, or a DDL statement, ended the transaction; that a statement failed past SQLAlchemy.

Holds: the record of a session.
Must not know: sessions, units, or where its news comes from: ``listeners`` and ``watched`` bring it.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeAlias, cast
from weakref import WeakSet

from sqlalchemy.engine import Connection
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.orm import SessionTransaction

from asgi_sqla.engine.drivers import Word
from asgi_sqla.errors import DiscardedWorkError
from asgi_sqla.session.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Collection


class State(Enum):
    """Whether anything speaks against committing what a session did since it last began."""

    SOUND = "nothing does"
    FAILED = "a statement failed, and nothing was rolled back since"
    UNDONE = "the database, or a statement of the application's, has ended the transaction"
    DISCARDED = "the application has thrown work away without a commit or a rollback"


SOUND, FAILED, UNDONE, DISCARDED = State.SOUND, State.FAILED, State.UNDONE, State.DISCARDED


class Committed(Enum):
    """Who committed; the values are said of "work of it"."""

    UNIT = "had been committed before, by the unit of work, at its end"
    APPLICATION = "had been committed before, by the application, or because its engine commits each statement"
    STATEMENT = (
        "had been committed before, by a statement that ends transactions: a textual COMMIT, or on some databases DDL "
        "or a procedure"
    )
    PERHAPS = "may have been committed before: something has ended its transaction past the session"


Fate: TypeAlias = Literal["commit", "rollback", "in doubt"]
"""What became of a transaction."""


class Fates(Protocol):
    """Who is told what became of a transaction or savepoint."""

    def note(self, fate: Fate, ended: SessionTransaction) -> None:
        """Take note of it."""


class Hooks(Protocol):
    """What a unit of work does when its sessions begin, commit or roll back."""

    @property
    def _hears_begin(self) -> bool:
        """Whether it is to be told of each transaction."""
        ...

    @property
    def _callbacks(self) -> Fates | None:
        """Its callbacks, if there are any."""
        ...

    def _begun(self, connection: Connection) -> None:
        """Take note that a transaction has begun on ``connection``."""


class Connected(Protocol):
    """One connection in the transaction."""

    connection: Connection
    """SQLAlchemy's."""

    @property
    def sent(self) -> bool:
        """Whether any statement was sent on it."""
        ...

    def word(self) -> Word:
        """Return what the driver says now."""
        ...

    def look(self, *, asking: bool) -> None:
        """Find out whether the transaction is still there."""

    def cut(self) -> bool:
        """Cut the connection; return whether there was one."""
        ...


class Outcome:
    """What is known of one session's transaction, and of those before it."""

    # Defaults of the class, so that most of them are never set.
    state: State = SOUND
    committed: Committed | None = None
    """Whether anything is in the database for good, and by whom. Never unset."""
    in_doubt: bool = False
    """Whether a COMMIT was sent whose answer never came. Never unset."""
    rolled_back: bool = False
    """Whether a whole transaction was rolled back, by whomever."""
    committing: bool = False
    """Whether the session is in its COMMIT."""
    wrote: bool = False
    """Whether the open transaction has sent anything but reads."""
    error: Exception | None = None
    """The first transient error of the database, or else the last error: what follows that is its consequence."""
    connections: tuple[Connected, ...] = ()
    streams: Collection[Any] = ()
    """Executions whose rows were left on the server; what nobody reads any more is not kept."""
    _why: str = ""
    _discarded: str = ""
    """What the application threw away, if no end of the unit has rolled back since."""

    @property
    def unhandled(self) -> bool:
        """Whether nothing was rolled back since the last error."""
        return self.state in (FAILED, UNDONE)

    def objection(self) -> Exception:
        """Return why what the session did must not be committed, as it was undone or discarded."""
        if self.state is DISCARDED:
            return DiscardedWorkError(self._discarded)
        return self.error or PendingRollbackError(self._why)

    def refuse(self) -> NoReturn:
        """Raise, as the transaction that the next statement counts on is over."""
        why = self._why if self.error is None else f"{self._why}; the error was {self.error!r}"
        raise PendingRollbackError(why) from self.error

    def note_error(self, error: Exception) -> None:
        """Take note of an error of the database."""
        if self.error is None or not is_transient(self.error):
            self.error = error
        if self.state is SOUND:
            self.state = FAILED

    def note_undone(self, why: str) -> None:
        """Take note that the transaction is over, though nobody ended it through the session."""
        self.state = UNDONE
        self._why = why

    def note_discarded(self, call: str, what: str) -> None:
        """Take note that ``call`` of the application's threw ``what`` away."""
        self.state = DISCARDED
        self._discarded = (
            f"session.{call}() threw away work that was neither committed nor rolled back ({what}); leave the session "
            "to its unit of work, which ends it, or write session.rollback() before if that was meant"
        )

    def forgive(self) -> None:
        """Take note that the unit rolls back, so that it tells nobody of done work that was thrown away."""
        if self._discarded:
            self._discarded, self.rolled_back = "", True
            self.state = SOUND if self.state is DISCARDED else self.state

    def note_stream(self, context: Any) -> None:
        """Take note of an execution whose rows are fetched in parts, which no call on the session tells of."""
        if not self.streams:
            self.streams = WeakSet()
        cast("WeakSet[Any]", self.streams).add(context)

    def note_committed(self, by: Committed) -> None:
        """Take note that something is in the database for good."""
        self.committed = self.committed or by

    def note_rollback(self, *, whole: bool, handled: bool = True) -> None:
        """Take note that a savepoint, or the ``whole`` transaction, was rolled back; ``handled`` by who used it."""
        self.committing = False
        if handled and (self.state is FAILED or (whole and self.state is UNDONE)):
            self.state = DISCARDED if self._discarded else SOUND
        if whole:
            self.rolled_back = True
            self.forget_transaction()

    def check(self) -> None:
        """Raise why the open transaction must not be committed, if every driver and this record do not let it."""
        for one in self.connections:
            one.look(asking=True)
        if self.state is UNDONE or self.state is DISCARDED:
            raise self.objection()

    def look(self, *, asking: bool = False) -> None:
        """Find out from every driver whether its transaction is still there; ``asking`` may send a statement."""
        for one in self.connections:
            one.look(asking=asking)

    def forget_transaction(self) -> None:
        """Take note that the transaction is over."""
        self.committing = self.wrote = False
        self.connections = ()
