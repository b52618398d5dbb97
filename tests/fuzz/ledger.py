"""What the application was told of each row that it wrote: the model beside the database.

It knows what the application did and saw, and nothing of the package. A row is wanted from the end of its statement
until the application rolls it back itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Fate(Enum):
    """What the application, or its client, may rely on."""

    UNKNOWN = "its statement did not return, or nobody can tell: nothing is checked"
    WANTED = "its statement returned, and nothing has been decided since"
    KEPT = "the application committed it itself: it must be there"
    DROPPED = "the application rolled it back: it must not be there"
    PROMISED = "the client was told that all went well: it must be there"
    REFUSED = "the client was told of a failure: it must not be there, unless the log says so"


@dataclass(eq=False)
class Thread:
    """A worker thread in which a part of the program runs."""

    left: bool = False
    """Whether its task was cancelled and left it running: it may do its work at any time."""


@dataclass(eq=False)
class Write:
    """One row that the application tried to write."""

    name: str
    attempt: int
    thread: Thread | None = None
    entry: Any = None
    """The object, for what is added to a session and not yet flushed."""
    raw: bool = False
    """Whether it was sent outside SQLAlchemy."""
    fate: Fate = Fate.UNKNOWN
    tried: bool = False
    """Whether the application tried to commit it itself, and was told that this had failed."""
    offered: bool = False
    """Whether a response was started that would have committed it, and was cancelled."""

    def __str__(self) -> str:
        return f"{self.name} of attempt {self.attempt} ({self.fate.name})"


class Savepoint:
    """An open savepoint, and the writes since it began."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.writes: list[Write] = []


class Transaction:
    """The pending writes of one session."""

    def __init__(self) -> None:
        self.savepoints: list[Savepoint] = [Savepoint(None)]

    @property
    def writes(self) -> list[Write]:
        """Everything that is pending."""
        return [write for savepoint in self.savepoints for write in savepoint.writes]

    def take(self) -> list[Write]:
        """Return everything that is pending, and start again."""
        writes, self.savepoints = self.writes, [Savepoint(None)]
        return writes

    def close(self, savepoint: Savepoint, fate: Fate) -> None:
        """Record that ``savepoint`` was released, which keeps its writes wanted, or that it was not."""
        if savepoint not in self.savepoints:
            return
        position = self.savepoints.index(savepoint)
        writes = [write for each in self.savepoints[position:] for write in each.writes]
        del self.savepoints[position:]
        if fate is Fate.WANTED:
            self.savepoints[-1].writes += writes
        else:
            decide(writes, fate)


def decide(writes: list[Write], fate: Fate) -> None:
    """Record the fate of ``writes`` whose fate is not known yet."""
    for write in writes:
        if write.fate is Fate.WANTED:
            write.fate = fate


class Ledger:
    """The writes of one unit of work, in either of its sessions."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.transactions = {"sync": Transaction(), "async": Transaction()}
        self.writes: list[Write] = []
        """Everything it tried to write since the last verdict."""
        self.lost: list[Write] = []
        """What close(), reset(), invalidate() or expunge_all() discarded: it must not be reported as committed."""
        self.rollback_only = False
        self.troubled = False
        """Whether any exception was seen: then a COMMIT that returns may have been answered with ROLLBACK."""
        self.everything: list[Write] = []

    def attempt_write(self, name: str, thread: Thread | None, **more: Any) -> Write:
        """Record that a row is about to be written."""
        write = Write(name, self.attempt, thread, **more)
        self.writes.append(write)
        self.everything.append(write)
        return write

    def wrote(self, write: Write, session: str) -> None:
        """Record that its statement has returned."""
        write.fate = Fate.WANTED
        self.transactions[session].savepoints[-1].writes.append(write)

    @property
    def pending(self) -> list[Write]:
        """Everything that is wanted in either session."""
        return [write for transaction in self.transactions.values() for write in transaction.writes]

    def roll_back(self, session: str) -> list[Write]:
        """Record that the application asks for a rollback; return the writes that it concerns."""
        writes = self.transactions[session].take()
        decide(writes, Fate.DROPPED)
        return writes

    def discard(self, session: str) -> None:
        """Record that a session was closed with its pending writes."""
        for write in self.transactions[session].take():
            if write.raw:
                # Nobody but the driver knew of that one, so nobody can know that close() threw it away.
                write.fate = Fate.UNKNOWN
            else:
                self.lost.append(write)

    def expunge(self, session: str, unflushed: set[int]) -> None:
        """Record that the session has expunged the objects with these identities."""
        for savepoint in self.transactions[session].savepoints:
            self.lost += [write for write in savepoint.writes if id(write.entry) in unflushed]
            savepoint.writes = [write for write in savepoint.writes if id(write.entry) not in unflushed]

    def kept(self, session: str, unflushed: set[int]) -> None:
        """Record that the application has committed, except objects that were not flushed."""
        self._doubt_unknown()
        outside = self.transactions[session].savepoints[0].writes
        for write in self.transactions[session].take():
            if id(write.entry) in unflushed and write not in outside:
                write.fate = Fate.UNKNOWN  # the end of its savepoint, which is not followed any more, decides
            elif id(write.entry) in unflushed:
                self.transactions[session].savepoints[-1].writes.append(write)
            elif write.fate is Fate.WANTED:
                write.fate = Fate.KEPT

    def tried(self, session: str) -> None:
        """Record that a commit by the application has failed: its rows are wanted, and it may end its savepoints."""
        self._doubt_unknown()
        for write in self.transactions[session].writes:
            write.tried = True

    def _doubt_unknown(self) -> None:
        """Record that a commit of the application may have kept writes of unknown fate."""
        for write in self.writes:
            write.tried = write.tried or write.fate is Fate.UNKNOWN

    def settle(self, *, promised: bool) -> None:
        """Record what the client, or the caller, was told."""
        fate = Fate.PROMISED if promised and not self.rollback_only else Fate.REFUSED
        for transaction in self.transactions.values():
            transaction.take()
        for write in self.writes:
            if write.fate is Fate.WANTED or (write.fate is Fate.UNKNOWN and fate is Fate.REFUSED and not write.raw):
                write.fate = fate
        self.writes, self.lost = [], []
