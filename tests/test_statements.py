"""What a statement does to its transaction is judged by its first words."""

from __future__ import annotations

import pytest

from asgi_sqla.session.statements import Effect, judged

EVERYWHERE = [
    ("SELECT 1", Effect.NONE, False),
    ("INSERT INTO item VALUES (1)", Effect.NONE, True),
    ("WITH gone AS (DELETE FROM item RETURNING id) SELECT id FROM gone", Effect.NONE, True),
    ("", Effect.NONE, True),
    ("commit", Effect.COMMITS, False),
    ("END TRANSACTION", Effect.COMMITS, False),
    ("/* now */ ROLLBACK -- it", Effect.ROLLS_BACK, False),
    ("ABORT", Effect.ROLLS_BACK, False),
    ("ROLLBACK TO SAVEPOINT one", Effect.NONE, False),
    ("SAVEPOINT one", Effect.SETS_SAVEPOINT, False),
    ("RELEASE SAVEPOINT one", Effect.RELEASES_SAVEPOINT, False),
]
"""Statements that have the same effect on every database, and whether each may leave something to commit."""
OTHERS = [
    ("CREATE TABLE item (id INTEGER)", Effect.NONE, True),
    ("CALL tidy()", Effect.NONE, True),
    ("SET autocommit = 1", Effect.NONE, False),
    ("BEGIN", Effect.NONE, False),
]
"""Those of which MySQL and MariaDB are of another opinion, elsewhere."""
MYSQL = [
    ("CREATE TABLE item (id INTEGER)", Effect.COMMITS_FIRST, True),
    ("/*!50000 DROP TABLE item */", Effect.COMMITS_FIRST, True),
    ("CREATE TEMPORARY TABLE item (id INTEGER)", Effect.NONE, True),
    ("CALL tidy()", Effect.CALLS, True),
    ("SET autocommit = 1", Effect.COMMITS_FIRST, False),
    ("SET NAMES utf8mb4", Effect.NONE, False),
    ("BEGIN", Effect.COMMITS_FIRST, False),
    ("BEGIN NOT ATOMIC SELECT 1; END", Effect.NONE, False),
]
CASES = (
    [(dialect, *case) for dialect in ("postgresql", "sqlite", "mysql", "mariadb") for case in EVERYWHERE]
    + [(dialect, *case) for dialect in ("postgresql", "sqlite") for case in OTHERS]
    + [(dialect, *case) for dialect in ("mysql", "mariadb") for case in MYSQL]
)


@pytest.mark.parametrize(("dialect", "statement", "effect", "writes"), CASES)
def test_a_statement_is_judged_by_its_first_words(dialect: str, statement: str, effect: Effect, writes: bool) -> None:
    """MySQL and MariaDB commit before some statements, and know procedures that commit."""
    known = judged(statement, dialect)
    assert (known.effect, known.writes) == (effect, writes)
