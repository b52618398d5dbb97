"""One connection in a transaction of a unit that has a deadline.

Each statement may take what is left. After the deadline it is refused without being sent, and so is the COMMIT of a
write: the client has been told to expect an answer by then. What only read has nothing to lose by its COMMIT, and its
answer is as true as one moment earlier, so that is not refused.

Holds: what is checked before a statement and before COMMIT, and what is said of an error that the deadline caused.
Must not know: units, or how a database is told.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import ExceptionContext

from asgi_sqla.engine import limits
from asgi_sqla.engine.classification import ErrorKind, kind_of
from asgi_sqla.engine.deadlines import Deadline
from asgi_sqla.errors import DeadlineExceededError
from asgi_sqla.session.statements import ROLLBACKS, judged
from asgi_sqla.session.watched import Watched


class Limited(Watched):
    """One connection in the transaction of a session with a deadline."""

    __slots__ = ("_own", "_told")

    _own: bool
    """Whether the application has set a limit of its own in this transaction, which then stays."""
    _told: float | None
    """The seconds that the database was told last in this transaction."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own, self._told = False, None

    @property
    def deadline(self) -> Deadline | None:
        """The deadline that counts now; None once its unit is committing, or has answered."""
        unit = self.session.guard_hooks
        return None if unit is None or self.outcome.prepared else unit._deadline

    def before(self, statement: str) -> None:
        """Refuse a statement after the deadline; otherwise tell the database what is left."""
        deadline = self.deadline
        limit = None if deadline is None else limits.limit_of(self.connection)
        word = judged(statement, self.connection.dialect.name).word
        if deadline is None or word in ROLLBACKS or self.is_asking:
            self._told = None  # ROLLBACK TO undoes what was told since the savepoint
            if limit is not None:
                limit.forget()
            super().before(statement)
            return
        self._refuse_after(deadline, f"{statement[:40]!r} was not sent")
        if limit is not None and not limit.suits(self.connection, statement):
            if self.autocommit:
                self.begin()
            else:  # the application has asked for it, and for nothing that would end with a transaction
                limit = None
        super().before(statement)
        if limit is not None and not self._own:
            self._tell(limit, deadline.left)
            self._own = word == "SET" and limit.setting in statement.lower()

    def look(self, *, asking: bool) -> None:
        """Do what every connection does, and refuse the COMMIT of a write after the deadline."""
        super().look(asking=asking)
        if asking and self.outcome.wrote and (deadline := self.deadline) is not None:
            self._refuse_after(deadline, "COMMIT was not sent, so nothing is kept")

    def instead_of(self, context: ExceptionContext) -> Exception | None:
        """Say of an error of the database that the deadline caused it; return ours for one that has another code."""
        deadline, error = self.deadline, context.sqlalchemy_exception
        if isinstance(context.original_exception, DeadlineExceededError):
            context.is_disconnect = False  # SQLAlchemy takes any TimeoutError for a loss, but nothing was sent
        if deadline is None or error is None or deadline.left > limits.SLACK:
            return None
        kind = kind_of(error)
        if kind is ErrorKind.STATEMENT_TIMEOUT:
            error.add_note(f"the deadline of {deadline.seconds:g} s is over")
        elif kind is ErrorKind.CONTENTION and self.connection.dialect.name == "sqlite":
            # It waited for a lock until then, and not for as long as its own busy timeout says.
            return deadline.exceeded(f"{self.session.guard_unit} waited for a lock")
        return None

    def _tell(self, limit: limits.Limit, left: float) -> None:
        if self._told is None or self._told - left > limits.SLACK or not limit.lasts:
            limit.tell(self.connection, left)
            self._told = left

    def _refuse_after(self, deadline: Deadline, what: str) -> None:
        if deadline.left <= 0:
            raise deadline.exceeded(f"{self.session.guard_unit}: {what}")
