"""The unit of work: everything that one request, one socket message or one job does to its databases.

Holds: ``UnitOfWork``, the sessions and callbacks that it gives out, and the order of its end.
Must not know: ASGI, HTTP statuses, how a database is configured, or in which thread or task an end runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CoroutineType
from typing import TYPE_CHECKING

from sqlalchemy.engine import Connection

from asgi_sqla.engine.moment import moment
from asgi_sqla.errors import ended
from asgi_sqla.session.outcome import DISCARDED
from asgi_sqla.unit.callbacks import (
    Callback,
    Callbacks,
    Moment,
    call_hook,
    check_callback,
    check_hook,
    fate_of,
    hook_too_late,
    run,
    run_async,
)
from asgi_sqla.unit.cancellation import FINE, Finished, begun, finish, to_completion
from asgi_sqla.unit.commit import End, end_idle
from asgi_sqla.unit.deadline import Timed
from asgi_sqla.unit.observed import Observed
from asgi_sqla.unit.places import inline
from asgi_sqla.unit.sessions import NONE, Sessions
from asgi_sqla.unit.stage import ENDED, ENDING, OPEN, Staged
from asgi_sqla.unit.written import Written

if TYPE_CHECKING:
    from asgi_sqla.unit.marks import Mark


class UnitOfWork(Staged, Observed, Timed, Written):
    """Everything that one request, one socket message or one job does to its databases.

    Get the running unit with ``current_unit()``; the middleware and ``session_scope()`` make units. A unit has at most
    one ``Session`` and one ``AsyncSession`` per ``Database``. It ends in commit or rollback, and is then closed for
    good.
    """

    # Defaults on the class, so that an unused unit costs almost nothing to make.
    attempt = 1
    """Which attempt at its request or function this is: 1 for the first, 2 for the first retry."""
    isolation_level: str | None = None
    """SQLAlchemy's name of the isolation level of its transactions; None for the engine's own."""
    _awaits = True
    """Whether its end is awaited; a unit that ends in its own thread has no AsyncSessions."""
    _made: UnitOfWork | None = None
    """As in a stand-in, for who may have found either."""
    _sessions: Sessions = NONE
    _callbacks: Callbacks | None = None
    _begin_hooks: tuple[Callable[[Connection], object], ...] = ()
    _hears_begin = False
    """Whether it must be notified of each transaction."""
    _used: bool = False
    """Whether a session was made or a callback registered."""
    _fenced = False
    """Whether something inside it, outside its own sessions, forbids a retry."""
    _name = "without a name"
    _read_only = _rollback_only = False
    _doom: BaseException | None = None

    @property
    def name(self) -> str:
        """Its name in errors and logs, such as ``POST /orders``."""
        return self._name

    @property
    def read_only(self) -> bool:
        """Whether it refuses writes, and reads in autocommit."""
        return self._read_only

    def __repr__(self) -> str:
        return f"<UnitOfWork {self.name} {'open' if self._stage is OPEN else 'ended'}>"

    def rollback_only(self) -> None:
        """Roll the unit back at its end, whatever the response status is, as for a dry run. This is not an error."""
        self._rollback_only = True

    def on_commit(self, callback: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Call ``callback(*args, **kwargs)`` once every database of the unit has committed.

        Callbacks run in order, before the response starts, each in its own unit of work, so it can use the database. A
        plain function runs where it was registered: on the event loop or in a worker thread. An async one is awaited. A
        callback registered inside a transaction or savepoint that is rolled back is dropped. An exception in a callback
        is logged.

        - ``callback``: the function to call, plain or async.
        - ``*args``: its positional arguments.
        - ``**kwargs``: its keyword arguments.

        Raises ConfigurationError if ``callback`` is not callable, or is async in a unit without an event loop, and
        UnitOfWorkEndedError after the unit has ended.
        """
        self._add_callback("commit", callback, args, kwargs)

    def on_rollback(self, callback: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Call ``callback(*args, **kwargs)`` once the unit, or the savepoint it was registered in, was rolled back.

        It runs as ``on_commit`` callbacks do. It is not called if a COMMIT is in doubt.

        - ``callback``: the function to call, plain or async.
        - ``*args``: its positional arguments.
        - ``**kwargs``: its keyword arguments.

        Raises what ``on_commit`` raises.
        """
        self._add_callback("rollback", callback, args, kwargs)

    def on_begin(self, hook: Callable[[Connection], object]) -> None:
        """Call ``hook(connection)`` whenever a transaction of the unit begins, for example for ``SET LOCAL``.

        A transaction begins with the first statement, and again after a commit or rollback in the middle.

        - ``hook``: a plain function of one sync ``Connection``, also under an ``AsyncSession``.

        Raises ConfigurationError for an async function, for a function with other parameters, and after a transaction
        has begun, because that transaction would run without the hook.
        """
        check_hook(hook)
        if self._sessions.in_transaction:
            raise hook_too_late(hook, self)
        self._begin_hooks = (*self._begin_hooks, hook)
        self._hears_begin = True

    # The rooms above and the listeners of sessions use what follows.

    def _open_sessions(self) -> Sessions:
        """Return the sessions, to find or to add one; raise UnitOfWorkEndedError after the end."""
        if self._stage is not OPEN and (self._stage is ENDED or self._sessions is NONE):
            raise ended(self)
        self._used = True
        if self._sessions is NONE:
            with moment:  # two threads that call this at once get the same object
                if self._sessions is NONE:
                    self._sessions = Sessions(self, awaits=self._awaits)
        return self._sessions

    def _needs_transactions(self) -> bool:
        """Return whether its sessions need transactions even if it only reads: something asked for them."""
        return self.isolation_level is not None or bool(self._begin_hooks)

    def _may_be_repeated(self) -> bool:
        """Return whether a retry is safe: nothing was committed, or may have been.

        The drivers are asked too.
        """
        for one in self._sessions.all:
            one.session.guard_outcome.look()
            if one.session.guard_writes and (one.session.guard_outcome.committed or one.session.guard_outcome.in_doubt):
                return False
        return not self._fenced

    def _tell(self, outer: object) -> None:
        """Tell the unit around this one what was written, and forbid a retry of it if one of this is forbidden.

        A failure counts as a use of it, because its response may be one for that failure.
        """
        if isinstance(outer, UnitOfWork):
            outer._fenced = outer._fenced or not self._may_be_repeated()
            outer._used = outer._used or bool(self._sessions.failures())
            self._tell_writes(outer)

    def _doomed_by(self, cause: BaseException) -> None:
        """Make a commit of this unit an error, because ``cause`` left a scope that had joined it."""
        self._doom = self._doom or cause

    async def _settle(self, commit: bool) -> Finished:
        """Commit or roll back every open transaction, and return how that ended. The sessions stay usable.

        Sessions commit in the order of first use. If one cannot, it and those after it are rolled back, and a note on
        its exception names the databases that had committed. Then callbacks run. A cancelled caller waits for a bounded
        time.
        """
        if not self._has_work():
            return FINE
        end = self._end(commit)
        end.patient = True
        finished = await self._run(end, commit, closing=False, cause=None)
        if not end.busy:
            return finished
        from asgi_sqla.unit.parts import settle_beside  # another task is using a session, which is rare

        return await settle_beside(self, commit)

    async def _close(self, commit: bool, cause: BaseException | None = None) -> Finished:
        """Settle, then close every session for good, and return how that ended.

        ``cause`` is the exception that ends the unit.
        """
        self._stage = ENDING
        self._sessions.seal()
        try:
            if self._has_work():
                return await self._run(self._end(commit), commit, closing=True, cause=cause)
            end_idle(self, self._sessions.all, cause)
        except BaseException as exc:
            return Finished(exc)
        else:
            return FINE
        finally:
            self._stage = ENDED

    async def _renew(self) -> Finished:
        """Commit and end; the sessions release everything that they hold, and the next unit adopts them."""
        finished = await self._settle(commit=True)
        self._fenced = not self._may_be_repeated()
        if self._sessions.in_transaction:
            await self._close(commit=False, cause=finished.failure)
        if self._observation is not None:
            self._observation.end(self)
        if self._stage is ENDED:
            self._sessions = NONE
        else:
            self._stage = ENDED
            for one in self._sessions.all:
                one.session.guard_renew()
        return finished

    def _close_now(self, commit: bool, cause: BaseException | None = None) -> None:
        """Do in this thread what ``_close`` does, and raise its failure; for a unit without an event loop."""
        self._stage = ENDING
        self._sessions.seal()
        failure, fatal = None, None
        try:
            self._end(commit).close(cause, inline)
        except BaseException as exc:
            failure = exc
        self._stage = ENDED
        for callback in () if self._callbacks is None else self._due(commit, failure):
            fatal = run(callback, Job(f"{callback} of {self.name}", awaits=False), self) or fatal
        if (failure := failure or fatal) is not None:
            raise failure

    def _abandon(self) -> None:
        """End where nothing can be awaited, because the event loop is gone."""
        self._stage = ENDED
        self._end(commit=False).abandon()

    def _empty(self) -> None:
        """Release everything: contexts captured by a pooled connection or a long-lived task keep this object."""
        if self._written:
            self._keep_mark()
        if self._observation is not None:
            self._observation.end(self)
        self._sessions = NONE
        self._callbacks, self._doom, self._begin_hooks = None, None, ()

    async def _run(self, end: End, commit: bool, *, closing: bool, cause: BaseException | None) -> Finished:
        work = end.start(closing=closing, cause=cause)
        if commit and self._callbacks is None and not self._sessions.writes and isinstance(work, CoroutineType):
            return await finish(work)  # a unit that only read may be cancelled
        # Most cancellations end with a ROLLBACK. Its wait is bounded, as cutting a ROLLBACK loses nothing.
        finished = work if isinstance(work, Finished) else await to_completion(begun(work), end.cut, bounded=not commit)
        if self._callbacks is None or end.busy:  # only now, as a flush during the COMMIT may have registered one
            return finished
        called = await to_completion(self._call_back(self._due(commit, finished.failure)))
        return Finished(finished.failure or called.failure, called.cancelled or finished.cancelled)

    async def _call_back(self, callbacks: list[Callback]) -> None:
        fatal, after = None, None
        if self._stick is not None:
            await self._ask_positions()
            after = self._own_mark()  # not with the client's mark: reading that may run code that fails
        for one in callbacks:
            fatal = await run_async(one, Job(f"{one} of {self.name}", awaits=True, after=after), self) or fatal
        if fatal is not None:
            raise fatal

    def _has_work(self) -> bool:
        if self._callbacks is not None or self._doom is not None:
            return True
        for one in self._sessions.all:
            if one.session.in_transaction() or one.session.guard_outcome.state is DISCARDED:
                return True
        return False

    def _end(self, commit: bool) -> End:
        return End(self, self._sessions.all, commit and not self._rollback_only, self._doom, self._observation)

    def _due(self, commit: bool, failure: BaseException | None) -> list[Callback]:
        fate = fate_of(self._sessions.all, commit and not self._rollback_only and failure is None)
        return [] if self._callbacks is None else self._callbacks.take(fate)

    def _add_callback(
        self, moment: Moment, function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> None:
        check_callback(function, awaits=self._awaits, unit=self)
        if self._stage is ENDED:
            raise ended(self)
        self._used = True
        self._callbacks = self._callbacks or Callbacks()
        self._callbacks.add(Callback(moment, function, args, kwargs, self._sessions.begun()))

    def _begun(self, connection: Connection) -> None:
        self._used = True
        for hook in self._begin_hooks:
            call_hook(hook, connection)


class Job(UnitOfWork):
    """A unit of work outside a request: one ``session_scope()`` or one callback, and named after it."""

    def __init__(self, name: str, *, awaits: bool, read_only: bool = False, after: Mark | None = None) -> None:
        self._name = name
        self._read_only = read_only
        self._awaits = awaits
        self._given_mark = after

    def _empty(self) -> None:
        self._keep_mark()
        super()._empty()
