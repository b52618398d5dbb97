"""What a statement does to a transaction, judged by its first words; no server is asked.

Holds: the words of each database, and the judgement of a statement.
Must not know: sessions, connections, or what is decided on the judgement.
"""

from __future__ import annotations

import functools
import re
from enum import Enum
from typing import NamedTuple

from asgi_sqla.engine.drivers import MYSQL


class Effect(Enum):
    """What a statement does to its transaction."""

    NONE = "it runs in the transaction"
    COMMITS = "it commits"
    ROLLS_BACK = "it rolls everything back"
    COMMITS_FIRST = "the database commits before it"
    CALLS = "it calls a procedure, which may commit"
    SETS_SAVEPOINT = "it sets a savepoint"
    RELEASES_SAVEPOINT = "it releases one"


class Statement(NamedTuple):
    """What is known of a statement."""

    word: str
    """Its first word, in capitals; empty if it has none."""
    effect: Effect
    writes: bool
    """Whether it may leave something to commit."""
    name: str = ""
    """The name of its savepoint, in capitals."""
    changes: bool = False
    """Whether its effect may outlast the transaction on the connection, as that of SET does."""


ROLLBACKS: frozenset[str] = frozenset(("ROLLBACK", "ABORT"))
"""The first words of statements that roll back."""
NOTHING = "DO 0"
"""A statement of MySQL and MariaDB that does nothing, and has no result."""

_COMMENTS = r"(?s:--[^\n]*(?:\n|$)|/\*(?!M?!).*?\*/|/\*M?!\d*|\*/)"
"""Comments, and the delimiters of those that MySQL and MariaDB execute."""
_HEAD = 500
"""How many characters of a statement are examined; longer leading comments do not occur."""
_READS = frozenset(
    ("BEGIN", "DESC", "DESCRIBE", "DO", "EXPLAIN", "FETCH", "LOCK", "PRAGMA", "RELEASE", "SAVEPOINT", "SELECT", "SET")
    + ("SHOW", "START", "TABLE", "USE", "VALUES")
)
"""The first words of statements that leave nothing to commit."""
_LEAVES_NOTHING = frozenset(
    ("CLOSE", "DELETE", "DESC", "DESCRIBE", "EXPLAIN", "FETCH", "INSERT", "MERGE", "REPLACE", "SELECT", "SHOW", "TABLE")
    + ("UPDATE", "VALUES", "WITH", "")
)
"""The first words of statements that change rows at most, and not their connection."""
_IN_TRANSACTION = frozenset(("CONSTRAINTS", "LOCAL", "TRANSACTION"))
"""What SET sets for one transaction."""
_COMMITS = frozenset(("COMMIT", "END"))
_COMMITTING = frozenset(
    ("ALTER", "ANALYZE", "BEGIN", "CACHE", "CHECK", "CREATE", "DROP", "FLUSH", "GRANT", "INSTALL", "LOCK", "OPTIMIZE")
    + ("RENAME", "REPAIR", "RESET", "REVOKE", "START", "TRUNCATE", "UNINSTALL", "UNLOCK")
)
"""MySQL and MariaDB commit before these, unless one is about a TEMPORARY table or is BEGIN NOT ATOMIC."""
_COMMITTING_NOT = frozenset(("NOT", "TEMPORARY"))


@functools.lru_cache(1000)
def judged(statement: str, dialect: str) -> Statement:
    """Return what is known of ``statement`` on a database of ``dialect``."""
    words = re.findall(r"\w+", re.sub(_COMMENTS, " ", statement[:_HEAD].upper()))
    first, second = (*words[:2], "", "")[:2]
    reads = first in _READS
    changes = first not in _LEAVES_NOTHING and not (first == "SET" and second in _IN_TRANSACTION)
    changes = changes and statement != NOTHING
    if first in _COMMITS:
        return Statement(first, Effect.COMMITS, writes=False)
    if first in ROLLBACKS:  # ROLLBACK TO a savepoint ends no transaction
        return Statement(first, Effect.NONE if "TO" in words else Effect.ROLLS_BACK, writes=False)
    if first == "SAVEPOINT":
        return Statement(first, Effect.SETS_SAVEPOINT, False, second)
    if first == "RELEASE":
        return Statement(first, Effect.RELEASES_SAVEPOINT, False, words[-1])
    if dialect in MYSQL:
        switches = first == "SET" and "AUTOCOMMIT" in words
        if switches or (first in _COMMITTING and second not in _COMMITTING_NOT):
            return Statement(first, Effect.COMMITS_FIRST, writes=not reads, changes=changes)
        if first == "CALL":
            return Statement(first, Effect.CALLS, writes=True, changes=changes)
    return Statement(first, Effect.NONE, writes=not reads, changes=changes)
