"""What ``begin()`` and ``begin_nested()`` of our sessions return: their ends are calls on the session too.

A thread that outlives its cancelled request may leave its ``with session.begin():`` while the unit ends. SQLAlchemy
would let both use the connection at once. The connection would stay checked out, or return to the pool in a
transaction.

Holds: the guard of a transaction's ends, and what is done about a lost savepoint.
Must not know: units, engines, or how a session is guarded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.orm import SessionTransaction


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


class GuardedTransaction(SessionTransaction):
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
