"""What our transactions do not prepare: SQLAlchemy's own does the same, whatever is written, undone or kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, SessionTransaction, mapped_column
from sqlalchemy.orm import object_session as session_of
from support.databases import Backend, Item

from asgi_sqla import Database, session_scope
from asgi_sqla.session import guard, transactions


class Base(DeclarativeBase):
    """The tables."""


class Key(Base):
    """A row whose primary key may change."""

    __tablename__ = "key"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


def state(*objects: Any) -> list[tuple[Any, ...]]:
    """Return what SQLAlchemy says of objects, without loading any."""
    said = []
    for one in objects:
        found: Any = one._sa_instance_state
        loaded = {name: value for name, value in found.dict.items() if name != "_sa_instance_state"}
        kinds = found.transient, found.pending, found.persistent, found.deleted, found.detached
        said.append((kinds, found.key and found.key[1], loaded, session_of(one) is not None))
    return said


def added(session: Session) -> Any:
    """Add, flush and roll back."""
    one, two = Key(name="one"), Key(name="two")
    session.add(one)
    session.flush()
    session.add(two)
    session.rollback()
    return state(one, two)


def changed(session: Session) -> Any:
    """Change, flush, change again and roll back."""
    one = session.get_one(Key, "there")
    one.value = 5
    session.flush()
    one.value = 6
    before = state(one)
    session.rollback()
    return before, state(one), one.value


def deleted(session: Session) -> Any:
    """Delete, flush and roll back; and delete and commit."""
    one = session.get_one(Key, "there")
    session.delete(one)
    session.flush()
    before = state(one)
    session.rollback()
    kept = state(one)
    session.delete(session.get_one(Key, "there"))
    session.commit()
    return before, kept, state(one)


def renamed(session: Session) -> Any:
    """Change a primary key, and roll back."""
    one = session.get_one(Key, "there")
    one.name = "elsewhere"
    session.flush()
    before = state(one)
    session.rollback()
    return before, state(one), session.get(Key, "there") is one


def nested(session: Session) -> Any:
    """Keep one savepoint, roll another one back, and then everything."""
    kept, lost, last = Key(name="kept"), Key(name="lost"), Key(name="last")
    there = session.get_one(Key, "there")
    with session.begin_nested():
        session.add(kept)
    savepoint = session.begin_nested()
    session.add(lost)
    there.value = 7
    session.flush()
    savepoint.rollback()
    session.add(last)
    session.flush()
    before = state(kept, lost, last, there)
    session.rollback()
    return before, state(kept, lost, last, there)


def refused(session: Session) -> Any:
    """Let a flush fail, in a savepoint and outside, and go on after each rollback."""
    first, again, third = Key(name="first"), Key(name="there"), Key(name="there")
    session.add(first)
    session.flush()

    def add_again() -> None:
        with session.begin_nested():
            session.add(again)
            session.flush()

    with pytest.raises(IntegrityError):
        add_again()
    before = state(first, again)
    session.add(third)
    with pytest.raises(IntegrityError):
        session.flush()
    with pytest.raises(PendingRollbackError):
        session.get(Key, "there")
    session.rollback()
    return before, state(first, again, third)


def committed(session: Session) -> Any:
    """Commit twice, with what was loaded, added and deleted between."""
    one = Key(name="one")
    session.add(one)
    session.commit()
    before = state(one)
    there = session.get_one(Key, "there")
    session.delete(there)
    session.commit()
    return before, state(one, there), session.scalars(select(Key.name)).all()


def begun(session: Session) -> Any:
    """Begin in words, with a savepoint and a flush inside."""
    one, two = Key(name="one"), Key(name="two")
    with session.begin():
        session.add(one)
        with session.begin_nested():
            session.add(two)
            session.flush()
    before = state(one, two)

    def fail() -> None:
        with session.begin():
            one.value = 3
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    return before, state(one, two), one.value


def heard(session: Session) -> Any:
    """Listen to the begin and the end of each transaction."""
    said: list[Any] = []

    def note(what: str) -> Callable[[Session, SessionTransaction], None]:
        return lambda _session, one: said.append((what, one.nested, one.parent is not None, one.is_active))

    event.listen(session, "after_transaction_create", note("begin"))
    event.listen(session, "after_transaction_end", note("end"))
    session.add(Key(name="one"))
    session.flush()
    with session.begin_nested():
        session.add(Key(name="two"))
    session.commit()
    return said


WORK = (added, changed, deleted, renamed, nested, refused, committed, begun, heard)


@pytest.fixture
def engine(tmp_path: Any) -> Iterator[Engine]:
    """Return an engine of a database with one row."""
    made = create_engine(f"sqlite:///{tmp_path}/keys.db")
    yield made
    made.dispose()


def start_afresh(engine: Engine) -> None:
    """Put the one row back."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Key(name="there"))


@pytest.mark.parametrize("known", [True, False], ids=["known", "another SQLAlchemy"])
@pytest.mark.parametrize("expire", [True, False], ids=["expiring", "keeping"])
@pytest.mark.parametrize("work", WORK)
def test_a_transaction_of_ours_does_what_that_of_sqlalchemy_does(
    engine: Engine, work: Callable[[Session], Any], expire: bool, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each object is in the same state afterwards, on the same rows."""
    start_afresh(engine)
    with Session(engine, expire_on_commit=expire) as session:
        expected = work(session)
    if not known:
        for room in (guard, transactions):
            monkeypatch.setattr(room, "TRANSACTION", SessionTransaction)
    database = Database(str(engine.url), session_options={"expire_on_commit": expire})
    start_afresh(engine)
    with session_scope(database) as own:
        assert type(own._autobegin_t()) is (transactions.PlainTransaction if known else SessionTransaction)
        own.rollback()
        found = work(own)
    database.dispose()
    assert found == expected


def prepared(session: Session) -> set[str]:
    """Return the names of the weak dictionaries that the open transaction has."""
    return {"_new", "_deleted", "_dirty", "_key_switches"}.intersection(vars(session.get_transaction()))


def test_what_only_reads_prepares_nothing(database: Database, backend: Backend) -> None:
    """A unit that reads and commits makes none of the four, and one that writes those that it needs."""
    with session_scope(database) as session:
        session.scalars(select(Item)).all()
        assert prepared(session) == set()
        session.commit()
        session.add(Item(name="new"))
        session.flush()
        assert prepared(session) == {"_new"}
        session.commit()
        session.scalars(select(Item)).one().name = "changed"
        session.flush()
        assert prepared(session) == {"_dirty"}
        session.rollback()


def test_this_sqlalchemy_is_known() -> None:
    """It prepares the four dictionaries, and nothing else, on every version that the tests run with."""
    assert transactions.is_known()
    assert transactions.TRANSACTION is transactions.PlainTransaction


def test_another_sqlalchemy_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that prepares anything else is left alone."""

    def prepare(self: Any) -> None:
        self._something_else = {}

    monkeypatch.setattr(SessionTransaction, "_take_snapshot", prepare)
    assert not transactions.is_known()
    monkeypatch.delattr(SessionTransaction, "_take_snapshot")
    assert not transactions.is_known()
