"""The transactions of our sessions: what they need not prepare, and the guard of their ends.

SQLAlchemy prepares each for a rollback, by four weak dictionaries. One that only reads never uses them, nor does its
COMMIT; they are a tenth of all objects that a request holds while it waits for the database.

A thread that outlives its cancelled request may leave its ``with session.begin():`` while the unit ends. SQLAlchemy
would let both use the connection at once. The connection would stay checked out, or return to the pool in a
transaction. So the ends of what ``begin()`` and ``begin_nested()`` return are calls on the session too.

Holds: the classes of transactions, and what is done about a lost savepoint.
Must not know: units, engines, or how a session is guarded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.orm import SessionTransaction, SessionTransactionOrigin
from sqlalchemy.orm.session import SessionTransactionState

_KNOWN = frozenset(
    ("_is_transaction_boundary", "_parent", "_new", "_deleted", "_dirty", "_key_switches", "session", "_flushing")
    + ("flush", "origin", "SessionTransactionOrigin", "BEGIN", "AUTOBEGIN", "weakref", "WeakKeyDictionary")
)
"""All that the code of SQLAlchemy names that prepares a transaction."""
_ACTIVE = SessionTransactionState.ACTIVE


class _OnDemand:
    """A dictionary that is made when it is first asked for; within a flush it is that of the transaction around it."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, one: Any, _owner: type) -> Any:
        if one is None:  # asked of the class
            return self
        around = one.parent
        made: Any = WeakKeyDictionary() if around is None else getattr(around, self._name)
        setattr(one, self._name, made)  # from now on it is found there
        return made


class PlainTransaction(SessionTransaction):
    """A transaction, or the inner one of a flush, that prepares nothing; SQLAlchemy prepares a savepoint."""

    _new: Any = _OnDemand("_new")
    _deleted: Any = _OnDemand("_deleted")
    _dirty: Any = _OnDemand("_dirty")
    _key_switches: Any = _OnDemand("_key_switches")

    def _take_snapshot(self) -> None:
        """Prepare nothing."""

    def _begin(self, nested: bool = False) -> SessionTransaction:
        heard = self.session.dispatch.after_transaction_create
        if nested or heard or TRANSACTION is not PlainTransaction or self._state is not _ACTIVE:
            return super()._begin(nested)
        return PlainTransaction(self.session, SessionTransactionOrigin.SUBTRANSACTION, self)


def is_known() -> bool:
    """Return whether SQLAlchemy prepares those dictionaries and nothing else."""
    code = getattr(getattr(SessionTransaction, "_take_snapshot", None), "__code__", None)
    return code is not None and _KNOWN.issuperset(code.co_names)


TRANSACTION: type[SessionTransaction] = PlainTransaction if is_known() else SessionTransaction
"""The class of a transaction that a session begins by itself."""


def _guarding(name: str) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(SessionTransaction, name)

    @functools.wraps(method)
    def call(self: SessionTransaction, *args: Any, **kwargs: Any) -> Any:
        session: Any = self.session
        outermost = getcurrent() is not session._guard_inside and session._guard_enter()
        try:
            return method(self, *args, **kwargs)
        finally:
            if outermost:
                session._guard_leave()

    return call


class GuardedTransaction(PlainTransaction):
    """A transaction or savepoint that one task or thread at a time may end, and none after the unit's end."""

    commit: Callable[..., Any] = _guarding("commit")
    rollback: Callable[..., Any] = _guarding("rollback")
    close: Callable[..., Any] = _guarding("close")
    prepare: Callable[..., Any] = _guarding("prepare")
    __exit__: Callable[..., Any] = _guarding("__exit__")


def failure_in(savepoint: SessionTransaction | None) -> Exception | None:
    """Return why ``savepoint`` is lost, if a flush in it failed and the application caught the error.

    SQLAlchemy leaves the block of such a savepoint without an exception, and everything else written in it is lost.
    """
    if savepoint is None or savepoint.is_active or savepoint.session.get_nested_transaction() is not savepoint:
        return None
    try:
        savepoint.commit()
    except PendingRollbackError as exc:
        return exc
    return None


def leave_lost(savepoint: SessionTransaction | None, failure: Exception | None, exc: BaseException | None) -> None:
    """Remove everything of a savepoint that ``failure`` has lost, and raise ``failure`` unless there is ``exc``.

    SQLAlchemy rolls objects back when the flush fails, and not again when the savepoint ends. Objects added, changed or
    deleted between the two would be written with the outer transaction.
    """
    if savepoint is None or failure is None:
        return
    session = savepoint.session
    for added in session.new:
        session.expunge(added)
    for changed in session.dirty:
        session.expire(changed)
    for deleted in session.deleted:
        session.add(deleted)
    if exc is None:
        raise failure
