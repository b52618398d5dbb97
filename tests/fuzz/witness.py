"""The witness: another connection that sees what was kept, and the rules of its judgement."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, ForeignKey, String, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.databases import Backend

from fuzz.ledger import Fate, Write

PATIENCE = 5.0
"""Seconds for what was cut or cancelled to be gone from the pool, and from the server."""
TELLING = ("committed", "in doubt", "lost during commit")
"""What a line of the log, or the note on an exception, says if rows are kept under a failure."""


class Base(DeclarativeBase):
    """The tables of the fuzzer."""


class Owner(Base):
    """The parent of an entry; there is none."""

    __tablename__ = "fuzz_owner"
    id: Mapped[int] = mapped_column(primary_key=True)


class Entry(Base):
    """A row. COMMIT notices a missing owner. Names may be duplicates, so that a retry could write twice."""

    __tablename__ = "fuzz_entry"
    id: Mapped[int] = mapped_column(primary_key=True)
    program: Mapped[int] = mapped_column(index=True)
    attempt: Mapped[int]
    name: Mapped[str] = mapped_column(String(40))
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("fuzz_owner.id", deferrable=True, initially="DEFERRED"))


TAKEN = -1
"""The primary key of a row that is always there, so that another of the same key fails."""


@dataclass
class Findings:
    """The findings, as lines to read; without a line every promise was kept."""

    lies: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    out: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lies or self.twice or self.out or self.idle)

    def __str__(self) -> str:
        return "\n".join(
            f"  {kind}: {line}"
            for kind, lines in (("lie", self.lies), ("twice", self.twice), ("out", self.out), ("idle", self.idle))
            for line in lines
        )


class Log(logging.Handler):
    """Keeps what the package logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def sentences(self) -> Iterator[str]:
        """Yield every message, and the notes of the exceptions logged with it."""
        for record in self.records:
            yield record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                yield from notes(record.exc_info[1])


def notes(exc: BaseException | None) -> Iterator[str]:
    """Yield the notes of an exception, and of those that it came from."""
    seen: set[int] = set()
    waiting = [exc]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield from getattr(one, "__notes__", ())
        waiting += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]


def is_told(sentences: Iterable[str]) -> bool:
    """Return whether a text says that rows are kept, or may be."""
    return any(word in sentence.lower() for sentence in sentences for word in TELLING)


class Witness:
    """A separate connection to the database under test."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.engine: Engine = create_engine(backend.witness.url, isolation_level="AUTOCOMMIT")
        Base.metadata.create_all(self.engine)
        self.connection = self.engine.connect()
        self.connection.execute(text("DELETE FROM fuzz_entry"))
        self.connection.execute(
            text("INSERT INTO fuzz_entry (id, program, attempt, name) VALUES (:id, -1, 0, 'taken')"), {"id": TAKEN}
        )

    def close(self) -> None:
        """Leave the database."""
        self.connection.close()
        self.engine.dispose()

    def terminate(self, pid: int) -> None:
        """Terminate a connection of PostgreSQL, and wait until it is gone."""
        self.connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    def rows(self, program: int) -> Counter[tuple[str, int]]:
        """Return what is kept of a program: how often each name of each attempt."""
        query = text("SELECT name, attempt FROM fuzz_entry WHERE program = :program")
        return Counter((name, attempt) for name, attempt in self.connection.execute(query, {"program": program}))

    def idle(self) -> int:
        """Return how many connections are idle in a transaction, after those that are closing have closed."""
        if not self.backend.is_postgresql:
            return 0
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND state LIKE 'idle in transaction%'"
        )
        return settled(lambda: int(self.connection.execute(query).scalar_one()))


def settled(count: Callable[[], int]) -> int:
    """Return ``count()`` once it is 0, or its value after a while."""
    deadline = time.monotonic() + PATIENCE
    while (counted := count()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return counted


@dataclass(frozen=True)
class Called:
    """A callback that was called, and what was pending when it was registered."""

    moment: str
    number: int
    pending: tuple[Write, ...]
    innermost: tuple[Write, ...]
    """Those of the innermost savepoint, if a single session was in a transaction."""


def judge_rows(rows: Counter[tuple[str, int]], writes: list[Write], attempts: int, told: bool) -> Findings:
    """Compare what is kept with what the application and its client were told."""
    found = Findings()
    for write in writes:
        kept = rows[write.name, write.attempt]
        if write.thread is not None and write.thread.left:
            continue  # it was cancelled and went on: whatever it did came before or after the verdict
        if kept and write.attempt < attempts:
            found.twice.append(f"{write} is there, though there were {attempts} attempts")
        elif write.fate in (Fate.PROMISED, Fate.KEPT) and not kept:
            found.lies.append(f"{write} is missing: {write.fate.value}")
        elif kept and _is_wrong(write, told=told):
            found.lies.append(f"{write} is there: {write.fate.value}")
    for (name, attempt), kept in rows.items():
        if kept > 1:
            found.twice.append(f"{name} of attempt {attempt} is there {kept} times")
    return found


def _is_wrong(write: Write, *, told: bool) -> bool:
    """Return whether a kept row should not exist."""
    if write.tried:  # the application's own commit: it has its exception, and decides itself
        return False
    if write.fate is Fate.DROPPED:  # after a start that was cancelled, the rollback may have come too late
        return not write.offered
    return write.fate is Fate.REFUSED and not told


def judge_callback(rows: Counter[tuple[str, int]], called: Called, told: bool) -> list[str]:
    """Return what is wrong with the call of a callback."""
    lies = []
    for write in called.pending:
        kept = rows[write.name, write.attempt]
        if write.thread is not None and write.thread.left:
            continue  # as above
        if called.moment == "commit" and not kept and write.fate is not Fate.UNKNOWN:
            lies.append(f"on_commit of step {called.number} was called, but {write} is missing")
        # Of two sessions one may have been committed before the other failed; and what the application, or a lost
        # connection, has committed is told elsewhere.
        own = write.tried or write.offered or write.fate in (Fate.KEPT, Fate.UNKNOWN)
        if called.moment == "rollback" and kept and write in called.innermost and not own and not told:
            lies.append(f"on_rollback of step {called.number} was called, but {write} is there")
    return lies


def values(program: int, write: Write, *, orphan: bool) -> dict[str, Any]:
    """Return the columns of a row."""
    return {
        "program": program,
        "attempt": write.attempt,
        "name": write.name,
        "owner_id": 404 if orphan else None,
    }
