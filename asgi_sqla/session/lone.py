"""A lone INSERT: the only statement of the flush at the end of a unit, which COMMIT can travel with.

The answer to COMMIT comes before SQLAlchemy has seen that to the INSERT. So it travels only where nothing is left to
fail or to be asked between the two, and where nothing of the application runs there. An UPDATE or DELETE never does:
SQLAlchemy counts the rows that it found, and a wrong number has to be rolled back.

Holds: which statements are lone, and how one is sent.
Must not know: units, or how COMMIT travels.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, DateTime, Enum, Integer, String, Uuid
from sqlalchemy.engine.interfaces import ExecuteStyle
from sqlalchemy.orm import Mapper, RelationshipDirection
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql.functions import now

from asgi_sqla.engine.pipelining import Ahead, ahead_of
from asgi_sqla.session.outcome import SOUND
from asgi_sqla.session.watched import Watched


def send_with_commit(watched: Watched, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    """Send a statement with COMMIT and return True; or return False, if that must not be."""
    ahead = _lone_of(watched, statement, context)
    if ahead is None:
        return False
    outcome = watched.outcome
    outcome.travelled = ahead
    ahead.commit_with_next(True)
    try:
        context.dialect.do_execute(cursor, statement, parameters, context)
    finally:
        ahead.commit_with_next(False)
    outcome.done_early = ahead.commit_sent and ahead.refusal is None
    return True


def _lone_of(watched: Watched, statement: str, context: Any) -> Ahead | None:
    """Return what sends COMMIT with ``statement``, which is about to be sent; None if that must not be."""
    if not (context.isinsert and context.execute_style is ExecuteStyle.EXECUTE and statement.startswith("INSERT ")):
        return None
    if context.no_parameters:
        return None
    session = watched.session
    # In before_commit a listener may flush, and send more after that.
    if not watched.outcome.committing or len(session.dispatch.before_commit) > 1:
        return None
    new = session.new
    if len(new) != 1 or session.deleted or session.dirty or not _commits_at_once(watched):
        return None
    state: Any = instance_state(next(iter(new)))
    if not (_is_of_mapper(context, state.mapper) and _is_alone(state) and _is_unheard(watched, state)):
        return None
    if not all(_is_read_surely(column) for column in context.compiled.effective_returning or ()):
        return None
    return ahead_of(watched.connection)


def _commits_at_once(watched: Watched) -> bool:
    """Return whether the commit of the session sends one COMMIT, on this connection, and nothing else."""
    session, connection, outcome = watched.session, watched.connection, watched.outcome
    transaction: Any = session.get_transaction()
    if type(watched) is not Watched or watched.autocommit or outcome.state is not SOUND or outcome.streams:
        return False  # with a deadline the limit of the statement must end before COMMIT
    return (
        session.guard_flushes_as_usual
        and session.guard_record is None
        and not session.twophase
        and not getattr(connection.dialect, "inside_transaction", False)
        and len(outcome.connections) == 1
        and session.get_nested_transaction() is None
        and not connection.in_nested_transaction()
        and bool(transaction._connections[connection][2])  # whether it commits a connection that has begun already
    )


def _is_of_mapper(context: Any, mapper: Mapper[Any]) -> bool:
    """Return whether a statement is the flush's own, and the only one for its object."""
    versions = mapper.version_id_col is not None and mapper.version_id_generator is False
    return (
        context.execution_options.get("compiled_cache") is mapper.base_mapper._compiled_cache
        and len(mapper.tables) == 1
        and mapper.base_mapper.eager_defaults is not True
        and not versions  # else the flush may ask for what the server has set
    )


def _is_alone(state: Any) -> bool:
    """Return whether no other row is written for the relationships of an object."""
    for one in state.mapper.relationships:
        if one.viewonly or (one.direction is RelationshipDirection.MANYTOONE and not one.post_update):
            continue
        if one.key in state.dict or one.key in state.committed_state:
            return False
    return True


def _is_unheard(watched: Watched, state: Any) -> bool:
    """Return whether nobody listens between the statement and COMMIT, or sends statements instead of the driver."""
    session, connection, instance = watched.session.dispatch, watched.connection.dispatch, state.manager.dispatch
    return not (  # a loop over their names takes twice as long
        session.after_flush
        or session.after_flush_postexec
        or session.after_transaction_end
        or session.pending_to_persistent
        or connection.after_cursor_execute
        or connection.after_execute
        or connection.commit
        or instance.expire
        or instance.refresh_flush
        or state.mapper.dispatch.after_insert
        or len(watched.connection.dialect.dispatch.do_execute) > 1
    )


def _is_read_surely(column: Any) -> bool:
    """Return whether a returned value can always be read: an error comes too late to roll back."""
    kind = column.type
    if not type(kind).__module__.startswith("sqlalchemy.") or kind._variant_mapping or isinstance(kind, Enum):
        return False
    if isinstance(kind, DateTime):  # PostgreSQL has infinity, and years that Python has not
        return isinstance(getattr(column.server_default, "arg", None), now)
    return isinstance(kind, Boolean | Integer | String | Uuid)
