"""``session_scope()``: a unit of work outside a request, for workers, scripts and tests.

Holds: its arguments.
Must not know: how a scope is entered and left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asgi_sqla.database import Database, db
from asgi_sqla.engine.deadlines import checked_deadline
from asgi_sqla.engine.given import checked_count, known_arguments
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.session.classes import A_co, S_co, check_session_options
from asgi_sqla.unit.scope import Arguments, Propagation, SessionScope

if TYPE_CHECKING:
    from asgi_sqla.unit.marks import Mark


@known_arguments({"db": "database=", "url": "session_scope(Database(url))"})
def session_scope(
    database: Database[S_co, A_co] | None = None,
    *,
    propagation: Propagation = "new",
    session_options: Mapping[str, Any] | None = None,
    read_only: bool = False,
    isolation_level: str | None = None,
    retries: int = 0,
    after: str | None = None,
    deadline: float | None = None,
) -> SessionScope[S_co, A_co]:
    """Open a unit of work outside a request: it commits when the block ends, and rolls back on an exception.

    ``with`` gives a ``Session``, ``async with`` an ``AsyncSession``. It also decorates ``def`` and ``async def``
    functions: each call is a scope of its own.

    - ``database``: the ``Database`` to use; default: the global ``db``.
    - ``propagation``: "new" is a unit with its own transaction. "join" uses the current unit, which alone commits.
      "nested" is a SAVEPOINT in the current unit. Without a current unit all three are "new", the default.
    - ``session_options``: a mapping of options for this session, added to those of the database; default: none.
    - ``read_only``: True refuses writes, and reads in autocommit; default: False.
    - ``isolation_level``: SQLAlchemy's name of a level, in any case. With ``read_only`` the scope is then one
      transaction; default: the engine's own.
    - ``retries``: how many times a decorated function is retried after a transient error before its COMMIT; default: 0.
    - ``after``: the ``mark`` of a unit, whose writes must be seen: reads go to the primary if the replica may not have
      them. It needs ``read_only``; default: none.
    - ``deadline``: for how many seconds its statements may run, all ``retries`` together; default: the outer unit's.

    Raises ConfigurationError for a wrong argument, at once; DeadlineExceededError after the deadline; what the driver
    raises if COMMIT fails. After an exception in a joined scope, the unit that it joined raises UnitOfWorkDoomedError.
    """
    if not isinstance(database, Database | None):
        raise _wrong_database(database)
    of: Database[Any, Any] = database or db
    usual = session_options is None and isolation_level is None and after is None and deadline is None
    if usual and propagation == "new" and read_only is False and type(retries) is int and not retries:
        return SessionScope(of, _DEFAULTS)
    options = check_session_options(session_options, of._classes if of.configured else None)
    level = None if isolation_level is None else _checked_level(isolation_level, of)
    seconds, retries = checked_deadline(deadline), checked_count("retries", retries)
    arguments = Arguments(propagation, options, read_only, level, retries, _checked_mark(after, read_only), seconds)
    _check(arguments, of._isolation_level())
    if retries:
        of._watch_commits()
    return SessionScope(of, arguments)


_DEFAULTS = Arguments("new", {}, read_only=False, isolation_level=None, retries=0)


def _checked_level(level: Any, database: Database[Any, Any]) -> str | None:
    from asgi_sqla.engine.isolation import checked_isolation_level

    return checked_isolation_level(level, database._dialect())


def _checked_mark(after: Any, read_only: object) -> Mark | None:
    """Return the mark; one that cannot be read is no error, as it may come from a client."""
    if after is None:
        return None
    if not isinstance(after, str):
        raise ConfigurationError(f"after={hidden(after)} is not a mark; write the mark of a unit, such as unit.mark")
    if read_only is not True:
        raise ConfigurationError(f"after={hidden(after)} is for reading from a replica; write read_only=True as well")
    from asgi_sqla.unit.marks import parse

    return parse(after)


def _wrong_database(database: object) -> ConfigurationError:
    return ConfigurationError(
        f"database={hidden(database)} is not a Database; write session_scope(Database(...)), or with parentheses as a "
        "decorator: @session_scope()"
    )


def _check(arguments: Arguments, engine_level: str) -> None:
    """Raise ConfigurationError for wrong values, and for values that exclude each other."""
    if arguments.propagation not in ("new", "join", "nested"):
        raise ConfigurationError(
            f'propagation={hidden(arguments.propagation)} is not one of "new", "join" and "nested"'
        )
    if not isinstance(arguments.read_only, bool):
        raise ConfigurationError(f"read_only={hidden(arguments.read_only)} is neither True nor False")
    if arguments.retries and not arguments.read_only and "AUTOCOMMIT" in (arguments.isolation_level or engine_level):
        raise ConfigurationError(
            'isolation_level="AUTOCOMMIT" commits each statement, which retries= would then repeat; leave out one'
        )
    if arguments.propagation != "new":
        for name in ("session_options", "read_only", "isolation_level", "retries", "deadline"):
            if value := getattr(arguments, name):
                raise ConfigurationError(f'{name}={hidden(value)} needs a new unit of work; write propagation="new"')
