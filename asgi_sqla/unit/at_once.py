"""Which units with sync sessions end without a thread: those whose end waits for nothing, or where a task can wait.

A hop to a worker thread and back costs a sync session about a sixth of its SELECT. Without it a read-only unit, whose
connection is in autocommit, ends on the event loop. So does any other if no transaction is open in its driver.

Where others are at work, a thread also waits for them, since Python runs one thread at a time. So there the event loop
waits for the server, if the driver can do that: 16 clients get a sixth more answers. A unit that is alone has a thread,
which is quicker for it by a twentieth.

Holds: what must be true of a session for that.
Must not know: the order of an end, or what drivers and pools wait for.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy.util import greenlet_spawn

from asgi_sqla.engine import ends
from asgi_sqla.engine.loops import awaits
from asgi_sqla.session.listeners import count_in_use
from asgi_sqla.session.outcome import SOUND
from asgi_sqla.unit import operations
from asgi_sqla.unit.cancellation import FINE, Finished
from asgi_sqla.unit.eager import EagerTask
from asgi_sqla.unit.places import Operation, Step, inline
from asgi_sqla.unit.sessions import UnitSession

MOST_OBJECTS = 100
"""Objects of a session that are expired or detached at once; more take longer than a thread."""
_HEARD = ("before_commit", "after_commit", "after_rollback", "after_soft_rollback", "after_transaction_end")
"""The events of a session at its end, if it has nothing to flush."""
_HEARD_OF_OBJECTS = ("deleted_to_detached", "persistent_to_detached", "persistent_to_transient")
"""Those of a session that has objects."""


def end_here(
    end: Callable[[Step], None], sessions: Sequence[UnitSession], loop: AbstractEventLoop | None
) -> Finished | EagerTask | None:
    """End ``sessions`` if that waits for nothing, or begin to on ``loop`` if that should wait; else do nothing."""
    if _may_end_at_once(sessions):
        return _end_at_once(end)
    if loop is not None and _should_await(sessions):
        return EagerTask(loop, greenlet_spawn(_end_awaiting, end, sessions))
    return None


def _may_end_at_once(sessions: Sequence[UnitSession]) -> bool:
    for one in sessions:
        if one.session.in_transaction() and (one.session.guard_outcome.wrote or not _waits_for_nothing(one)):
            return False
    return True


def _should_await(sessions: Sequence[UnitSession]) -> bool:
    own = 0
    for one in sessions:
        own += len(one.outcome.connections)
    if count_in_use() <= own:  # they are alone
        return False
    for one in sessions:
        if one.session.in_transaction() and not _waits_for_nothing(one, but_the_server=True):
            return False
    return True


def _end_awaiting(end: Callable[[Step], None], sessions: Sequence[UnitSession]) -> None:
    awaits.set(True)  # in the context of the task that ends them, and nowhere else
    for one in sessions:
        one.session.guard_awaits = True
    try:
        end(inline)
    finally:
        for one in sessions:
            one.session.guard_awaits = False


def _end_at_once(end: Callable[[Step], None]) -> Finished:
    try:
        end(let_go)
    except BaseException as exc:
        return Finished(exc)
    return FINE


def let_go(operation: Operation, one: UnitSession) -> object:
    """Take a step of an end that waits for nothing: where there is nothing to commit, a commit is less than that."""
    session = one.session
    if operation is operations.commit and not session.expire_on_commit and session.guard_record is None:
        operation = partial(operations.commit, end=operations.release)
    return operation(session)


def _waits_for_nothing(one: UnitSession, *, but_the_server: bool = False) -> bool:
    session = one.session
    outcome = session.guard_outcome
    for watched in outcome.connections:  # first, as most transactions are open in their drivers
        if not ends.waits_for_nothing(watched.connection, but_the_server=but_the_server):
            return False
    return (
        one.async_session is None
        and session.guard_ends_as_usual
        and not session.guard_lock.locked()  # who uses it is waited for, while its unit commits in the middle
        and session.guard_gate is None
        and outcome.state is SOUND
        and outcome.error is None  # after one a driver may have to be asked
        and outcome.travelled is None
        and not (outcome.streams or session.twophase or session.get_nested_transaction())
        and session._is_clean()
        and ends.is_unheard(session.dispatch, _HEARD)
        and _has_few_objects(one)
    )


def _has_few_objects(one: UnitSession) -> bool:
    """Return whether the objects of a session are few, and nobody listens to what the end does to them."""
    objects = one.session.identity_map.all_states()
    if not objects:
        return True
    return (
        len(objects) <= MOST_OBJECTS
        and ends.is_unheard(one.session.dispatch, _HEARD_OF_OBJECTS)
        and not any(state.manager.dispatch.expire for state in objects)
    )
