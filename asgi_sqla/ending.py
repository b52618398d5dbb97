"""How a unit of work ends: the only room that commits, rolls back or closes a session.

Lives here: the order of events, written once as plain functions for sync and async code alike;
nothing is swallowed, and no step is left out because one before it failed.
Must not know: where a step runs, or what a unit is beside its sessions.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from asgi_sqla.errors import SessionInUseError, UnitOfWorkDoomedError, UnitOfWorkEndedError
from asgi_sqla.guard import OWN_SCOPE, GuardedSession
from asgi_sqla.steps import Step, Work

logger: logging.Logger = logging.getLogger("asgi_sqla")


class Ending(NamedTuple):
    """What is known when a unit is to end: its sessions, the verdict, and what speaks against a commit."""

    unit: object
    works: tuple[Work, ...]
    commit: bool
    doom: BaseException | None

    def settle(self, step: Step) -> None:
        """Commit every open transaction in the order of first use, or roll every one back, each as a ``step``."""
        active = self._active()
        committed: list[Work] = []
        failure: Exception | None = None
        if self.commit:
            try:
                self._object(active)
                for work in active:
                    step(_commit, work)
                    committed.append(work)
            except Exception as exc:
                failure = exc
        if len(committed) < len(active):
            self._roll_back(active[len(committed) :], step)
        if failure is not None:
            if committed:
                failure.add_note(self._partial(committed, active))
            raise failure

    def _roll_back(self, works: list[Work], step: Step) -> None:
        for work in works:
            try:
                step(_roll_back, work)
            except UnitOfWorkEndedError:  # whoever is in a call on it rolls it back
                continue
            except Exception as exc:
                logger.exception("%s: ROLLBACK failed on %r", self.unit, work.source)
                if isinstance(exc, SessionInUseError):  # or it would be committed with what follows the response
                    step(_end, work)

    def close(self, cause: BaseException | None, step: Step) -> None:
        """Settle, then close every session for good, whatever happened before."""
        failures: list[Exception] = []
        active = self._active()
        in_use = self._in_use(active)  # asked now, for its call may return while the others are ended
        if active or self.doom is not None:
            try:
                self.settle(step)
            except Exception as exc:
                failures.append(exc)
        for work in self.works:
            try:
                if work.session.in_transaction():
                    step(_end, work)
                elif not _end(work.session):
                    in_use = True
            except Exception as exc:
                failures.append(exc)
        if in_use or failures:
            self._tell(failures, in_use, cause)

    def _tell(self, failures: list[Exception], in_use: bool, cause: BaseException | None) -> None:
        """Raise the first failure, unless the unit ends with ``cause`` anyway; log whatever that would hide."""
        raised = failures[0] if failures and cause is None else None
        for failure in failures:
            if failure is not raised:
                logger.error("%s: close failed", self.unit, exc_info=failure)
        if in_use and not isinstance(raised, SessionInUseError):
            logger.error("%s", self._still_in_use())
            if cause is not None:
                cause.add_note(self._still_in_use())
        if raised is not None:
            raise raised

    def _object(self, active: list[Work]) -> None:
        """Raise if the unit must not commit."""
        if self.doom is not None:
            raise UnitOfWorkDoomedError(
                f"{self.unit} was to commit, but a scope that had joined it ended with an exception: {self.doom!r}"
            ) from self.doom
        if self._in_use(active):
            raise SessionInUseError(self._still_in_use())

    def _active(self) -> list[Work]:
        return [work for work in self.works if work.session.in_transaction()]

    def _in_use(self, works: list[Work]) -> bool:
        for work in works:  # noqa: SIM110  # twice in each unit, and any() takes longer
            if work.session.guard_in_use:
                return True
        return False

    def _still_in_use(self) -> str:
        return (
            f"{self.unit}: a task or thread was still using a session of it at its end, so its work is rolled back "
            "when that call returns; wait for what you start (asyncio.TaskGroup does), or have it open its own: "
            f"{OWN_SCOPE}"
        )

    def _partial(self, committed: list[Work], active: list[Work]) -> str:
        done = ", ".join(repr(work.source) for work in committed)
        lost = ", ".join(repr(work.source) for work in active[len(committed) :])
        return f"{self.unit}: COMMIT failed; these had been committed: {done}; these are rolled back: {lost}"


def _commit(session: GuardedSession) -> None:
    session.guard_close_streams()
    session.commit()


def _roll_back(session: GuardedSession) -> None:
    """Roll back; a connection on which that fails is in doubt, and leaves the pool."""
    try:
        session.guard_close_streams()
        session.rollback()
    except (SessionInUseError, UnitOfWorkEndedError):  # whoever uses it ends it
        raise
    except BaseException:
        session.invalidate()
        raise


def _end(session: GuardedSession) -> bool:
    """Close for good now; or have it done by whoever is in a call, when that returns, and say False."""
    return session.guard_end(_close)


def _close(session: GuardedSession) -> None:
    try:
        if session.in_transaction():
            _roll_back(session)
    except Exception:
        logger.exception("ROLLBACK failed on a session whose unit of work has ended")
    finally:
        session.close()
