"""Transactions that tell the record of their session when a COMMIT or ROLLBACK is about to be sent.

SQLAlchemy has events for that. But one listener of an engine makes each of its connections ask for every other event
too, before and after each statement: a tenth of a request. A connection of another class costs as much, as all code of
SQLAlchemy has learned what the usual one looks like; few lines of it look at a transaction.

Holds: the classes of such transactions.
Must not know: what is recorded.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection, RootTransaction, TwoPhaseTransaction

from asgi_sqla.session.listeners import watched_of


class TellingTransaction(RootTransaction):
    """A transaction of an observed session; in these methods SQLAlchemy sends its ends."""

    __slots__ = ()

    def _connection_commit_impl(self) -> None:
        _tell(self.connection, "COMMIT")
        super()._connection_commit_impl()

    def _connection_rollback_impl(self) -> None:
        _tell(self.connection, "ROLLBACK")
        super()._connection_rollback_impl()


class TellingTwoPhase(TellingTransaction, TwoPhaseTransaction):
    """The same in two phases."""

    __slots__ = ()

    def prepare(self) -> None:
        """Tell, and prepare."""
        if self.is_active:
            _tell(self.connection, "PREPARE")
        super().prepare()


TELLING: dict[type[Any], type[Any]] = {RootTransaction: TellingTransaction, TwoPhaseTransaction: TellingTwoPhase}
"""By the class that a transaction has otherwise."""


def _tell(connection: Connection, word: str) -> None:
    watched = watched_of(connection)
    if watched is not None and watched.session.guard_record is not None:
        watched.session.guard_record.end(watched, word)
