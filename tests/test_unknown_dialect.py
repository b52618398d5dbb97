"""An unknown database and driver: SQLAlchemy's word is trusted, and the promises are kept."""

# The blocks that raise are the scopes under test, so they hold more than one statement.
# ruff: noqa: PT012

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import insert, text
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from support.databases import Backend, Item

from asgi_sqla import ConfigurationError, Database, ReadOnlyError, session_scope


class UnheardDialect(SQLiteDialect_pysqlite):
    """SQLite under another name, which does not say which isolation levels it has."""

    name = "unheard"
    driver = "of"
    supports_statement_cache = True

    def get_isolation_level_values(self, dbapi_conn: Any) -> Any:
        """Know none without a connection, which SQLAlchemy allows."""
        if dbapi_conn is None:
            raise NotImplementedError
        return super().get_isolation_level_values(dbapi_conn)  # type: ignore[no-untyped-call]  # nor is it in SQLAlchemy


@pytest.fixture
def unheard(sqlite: Backend, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Return a database of that dialect."""
    monkeypatch.setitem(registry.impls, "unheard.of", lambda: UnheardDialect)
    database = Database(sqlite.url.replace("sqlite:", "unheard+of:"))
    yield database
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # it is a queue
    database.dispose()


def test_it_commits_and_rolls_back(unheard: Database, sqlite: Backend) -> None:
    """It behaves like any other database."""
    with session_scope(unheard) as session:
        session.add(Item(name="a"))
    with pytest.raises(IntegrityError), session_scope(unheard) as session:
        session.add(Item(name="b"))
        session.flush()
        session.execute(text("INSERT INTO item (name) VALUES ('a')"))
    assert sqlite.names() == ["a"]


@pytest.mark.parametrize("isolation_level", [None, "serializable"], ids=["autocommit", "snapshot"])
def test_a_scope_that_reads_refuses_to_flush(unheard: Database, sqlite: Backend, isolation_level: str | None) -> None:
    """Nothing is known that makes its transactions read-only, so only the session refuses."""
    reading = session_scope(unheard, read_only=True, isolation_level=isolation_level)
    with pytest.raises(ReadOnlyError), reading as session:
        assert session.scalar(text("SELECT 1")) == 1
        session.add(Item(name="a"))
        session.flush()
    assert sqlite.names() == []


def test_an_engine_of_it_that_was_handed_in_refuses_to_flush(unheard: Database, sqlite: Backend) -> None:
    """Its owner writes through it too, so its connections cannot be opened read-only."""
    database = Database(engine=unheard.engine)
    with pytest.raises(ReadOnlyError), session_scope(database, read_only=True) as session:
        assert session.scalar(text("SELECT 1")) == 1
        session.add(Item(name="a"))
        session.flush()
    assert sqlite.names() == []


def test_its_isolation_levels_are_not_checked(unheard: Database, sqlite: Backend) -> None:
    """A level that cannot be checked is passed on, and SQLAlchemy refuses a wrong one."""
    with session_scope(unheard, isolation_level="serializable") as session:
        session.add(Item(name="a"))
    with pytest.raises(ConfigurationError, match="isolation_level"):
        session_scope(unheard, isolation_level="")
    assert sqlite.names() == ["a"]


@pytest.mark.parametrize(("end", "kept"), [("COMMIT", ["a"]), ("ROLLBACK", [])])
def test_a_textual_end_is_noticed(unheard: Database, sqlite: Backend, end: str, kept: list[str]) -> None:
    """It is judged by its words, whatever the driver says."""
    with pytest.raises(PendingRollbackError), session_scope(unheard) as session:
        session.execute(insert(Item).values(name="a"))
        session.execute(text(end))
        session.execute(insert(Item).values(name="in autocommit"))
    assert sqlite.names() == kept
