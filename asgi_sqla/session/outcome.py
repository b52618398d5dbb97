"""The outcome: the one record of a session's transaction, and the basis of every decision.

It trusts three sources, in this order: what the driver says that the server last said; what SQLAlchemy's events say;
what our own code did. So it finds what no event reports. SQLite, or MariaDB at a lock timeout, has rolled everything
back by itself. A textual COMMIT or a DDL statement has ended the transaction. A statement has failed outside
SQLAlchemy.

Holds: the record of a session.
Must not know: sessions, units, or the source of its news: ``listeners`` and ``watched`` bring it.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeAlias, cast
from weakref import WeakSet

from sqlalchemy.engine import Connection
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.orm import SessionTransaction

from asgi_sqla.engine.classification import came_from_pool
from asgi_sqla.engine.deadlines import Deadline
from asgi_sqla.engine.drivers import Word
from asgi_sqla.errors import DiscardedWorkError
from asgi_sqla.session.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from asgi_sqla.engine.pipelining import Ahead

_CANCELLED = (
    "a statement of this session was cancelled, which closed its connection and lost its transaction; let the "
    "cancellation leave the handler, or write session.rollback() to go on. GraphQL cancels resolvers when another one "
    "fails; let each open its own session_scope()"
)


class State(Enum):
    """Whether anything forbids committing what a session did since its transaction began."""

    SOUND = "nothing does"
    FAILED = "a statement has failed, and nothing was rolled back since"
    UNDONE = "the database, or a statement of the application, has ended the transaction"
    DISCARDED = "the application has discarded work without a commit or a rollback"


SOUND, FAILED, UNDONE, DISCARDED = State.SOUND, State.FAILED, State.UNDONE, State.DISCARDED


class Committed(Enum):
    """Who committed; in the log the values follow the words "some of its work"."""

    UNIT = "had already been committed by the unit of work at its end"
    APPLICATION = "had already been committed by the application, or because its engine commits each statement"
    STATEMENT = (
        "had already been committed by a statement that ends transactions: a textual COMMIT, or on some databases DDL "
        "or a procedure"
    )
    PERHAPS = "may already have been committed: something has ended its transaction without the session"


Fate: TypeAlias = Literal["commit", "rollback", "in doubt"]
"""How a transaction ended."""


if TYPE_CHECKING:

    class Fates(Protocol):
        """What is notified of the fate of a transaction or savepoint."""

        def note(self, fate: Fate, ended: SessionTransaction) -> None:
            """Record it."""

    class Hooks(Protocol):
        """The part of a unit of work that follows the transactions of its sessions."""

        @property
        def _hears_begin(self) -> bool:
            """Whether it must be notified of each transaction."""
            ...

        @property
        def _callbacks(self) -> Fates | None:
            """Its callbacks, if there are any."""
            ...

        def _is_settling(self) -> bool:
            """Return whether its transactions are ending before it does."""
            ...

        @property
        def _deadline(self) -> Deadline | None:
            """When its statements must have ended; None if nothing bounds them."""
            ...

        @property
        def _begin_hooks(self) -> Sequence[object]:
            """What it calls when a transaction begins."""
            ...

        def _begun(self, connection: Connection) -> None:
            """Record that a transaction has begun on ``connection``."""

    class Recording(Protocol):
        """What is told of the statements and connections of a session."""

        def begun(self, watched: object, connection: Connection) -> None:
            """Record that the session has a connection."""

        def send(
            self, watched: object, context: Any, execute: Callable[..., object], cursor: Any, text: str, given: object
        ) -> None:
            """Send a statement ``text``, and what is ``given`` with it, by ``execute``."""

        def end(self, watched: object, word: str) -> None:
            """Record a COMMIT or ROLLBACK that is about to be sent."""

        def ended(self, watched: object, error: BaseException) -> None:
            """Record that a COMMIT or ROLLBACK has failed."""

    class Connected(Protocol):
        """One connection in the transaction."""

        connection: Connection
        """SQLAlchemy's connection."""

        @property
        def sent(self) -> bool:
            """Whether a statement was sent on it."""
            ...

        def word(self) -> Word:
            """Return what the driver says now."""
            ...

        def look(self, *, asking: bool) -> None:
            """Check whether the transaction still exists."""

        def cut(self) -> bool:
            """Cut the connection; return whether there was one."""
            ...


class Outcome:
    """The record of one session's transaction, and of those before it."""

    # Defaults on the class, so that most of them are never set.
    state: State = SOUND
    committed: Committed | None = None
    """Whether anything was committed, and by whom. Never unset."""
    in_doubt: bool = False
    """Whether a COMMIT was sent and its answer never came. Never unset."""
    rolled_back: bool = False
    """Whether a whole transaction was rolled back, for any reason."""
    committing: bool = False
    """Whether the session is in its COMMIT."""
    wrote_after: float = -1.0
    """When the call before the last write had returned, so that it is known which call wrote."""
    at_end: bool = False
    """Whether it is its unit that commits, so that nothing of the application's follows the flush."""
    travelled: Ahead | None = None
    """What COMMIT was sent with, and the last statement of the unit."""
    done_early: bool = False
    """Whether that was carried out, although the session is not in its COMMIT yet."""
    prepared: bool = False
    """Whether its unit has begun to commit, so that no deadline may come between the COMMITs of several databases."""
    wrote: bool = False
    """Whether the open transaction has sent anything but reads."""
    kept: bool = False
    """Whether a write was committed since its unit last looked."""
    error: Exception | None = None
    """The first transient error of the database, or else the last error."""
    ended_by_error: bool = False
    """Whether the unit rolled back, and nothing had been rolled back since the last error."""
    told_in_use: bool = False
    """Whether the log has said that it was in use when its unit ended."""
    connections: tuple[Connected, ...] = ()
    streams: Collection[Any] = ()
    """Executions whose rows are still on the server; weak, so that forgotten ones are dropped."""
    _why: str = ""
    _discarded: str = ""
    """The message about discarded work, unless an end of the unit has rolled back since."""

    @property
    def unhandled(self) -> bool:
        """Whether nothing was rolled back since the last error."""
        return self.ended_by_error or self.state in (FAILED, UNDONE)

    @property
    def travels(self) -> bool:
        """Whether COMMIT was sent with the last statement, and its answer is not known."""
        return self.travelled is not None and self.travelled.commit_sent

    def objection(self) -> Exception:
        """Return why the session's work must not be committed: it was undone or discarded."""
        if self.state is DISCARDED:
            return DiscardedWorkError(self._discarded)
        return self.error or PendingRollbackError(self._why)

    def refuse(self) -> NoReturn:
        """Raise, because the transaction of the next statement has ended."""
        why = self._why if self.error is None else f"{self._why}; the error was {self.error!r}"
        raise PendingRollbackError(why) from self.error

    def note_error(self, error: Exception) -> None:
        """Record an error of the database."""
        if self.error is None or not is_transient(self.error):
            self.error = error
        if self.state is SOUND:
            self.state = FAILED

    def note_unconnected(self, error: Exception) -> None:
        """Record the error of a call if it got no connection, because no event of a connection reports that."""
        if error is not self.error and came_from_pool(error):
            self.committing = False  # COMMIT flushes first, and so was not sent
            self.note_error(error)

    def note_undone(self, why: str) -> None:
        """Record that the transaction has ended, although nothing ended it through the session."""
        self.state = UNDONE
        self._why = why

    def note_cancelled(self) -> None:
        """Record that a statement was cancelled, and its connection closed with all that its transaction had done."""
        if self.state is SOUND:  # the errors before were handled, and are not why
            self.error = None
        self.note_undone(_CANCELLED)

    def note_discarded(self, call: str, what: str) -> None:
        """Record that ``call`` of the application discarded ``what``."""
        self.state = DISCARDED
        self._discarded = (
            f"session.{call}() discarded work that was neither committed nor rolled back ({what}); leave the session "
            "open, as its unit of work ends it, or write session.rollback() first if you meant to discard the work"
        )

    def forgive(self) -> None:
        """Record that the unit rolls back, so discarded work is no error: no client is told that it was done."""
        self.ended_by_error = self.unhandled
        if self._discarded:
            self._discarded, self.rolled_back = "", True
            self.state = SOUND if self.state is DISCARDED else self.state

    def note_stream(self, context: Any) -> None:
        """Record an execution whose rows are fetched in parts, because no call on the session reports that."""
        if not self.streams:
            self.streams = WeakSet()
        cast("WeakSet[Any]", self.streams).add(context)

    def note_committed(self, by: Committed) -> None:
        """Record that something was committed."""
        self.committed = self.committed or by
        self.kept = self.kept or self.wrote or by is not Committed.APPLICATION

    def note_rollback(self, *, whole: bool, handled: bool = True) -> None:
        """Record that a savepoint, or the ``whole`` transaction, was rolled back; ``handled`` if the user did it."""
        self.committing = False
        if handled and (self.state is FAILED or (whole and self.state is UNDONE)):
            self.state = DISCARDED if self._discarded else SOUND
        if whole:
            if self.done_early:  # SQLAlchemy has refused what the server returned
                self.note_committed(Committed.UNIT)
            self.rolled_back = True
            self.forget_transaction()

    def check(self, *, prepared: bool = False) -> None:
        """Raise why the open transaction must not be committed, if a driver, a deadline or this record forbids it.

        If it is ``prepared``, no deadline forbids it from then on.
        """
        for one in self.connections:
            one.look(asking=True)
        if self.state is UNDONE or self.state is DISCARDED:
            raise self.objection()
        self.prepared = self.prepared or prepared

    def look(self, *, asking: bool = False) -> None:
        """Ask every driver whether its transaction still exists; ``asking`` may send a statement."""
        for one in self.connections:
            one.look(asking=asking)

    def forget_transaction(self) -> None:
        """Record that the transaction has ended."""
        self.committing = self.wrote = self.prepared = self.done_early = False
        self.connections, self.travelled = (), None
