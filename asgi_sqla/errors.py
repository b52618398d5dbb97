"""Every error and warning that this package raises itself, and the sentences that say what to write.

Errors of SQLAlchemy and of drivers are never wrapped: they reach you unchanged.

Holds: the classes, each derived from a standard exception that callers already catch.
Must not know: anything else of this package.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import exc

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Iterator
    from typing import Any

OWN_SCOPE = "async with session_scope() as session: ..."
"""What to write in code that needs its own unit of work."""


class AsgiSqlaError(Exception):
    """Base class of every error that asgi_sqla itself raises."""


class ConfigurationError(AsgiSqlaError, ValueError):
    """An argument is wrong; the message names it, its value and what to write instead."""


class MissingDriverError(ConfigurationError, ImportError):
    """The driver that a database URL needs is not installed; the message names the extra to install."""


class NoUnitOfWorkError(AsgiSqlaError, LookupError):
    """A session was requested outside any request and any ``session_scope()``."""


class UnitOfWorkEndedError(AsgiSqlaError, RuntimeError):
    """A session was requested or used after its unit of work had ended."""


class UnitOfWorkDoomedError(AsgiSqlaError, RuntimeError):
    """The unit could not commit, because an exception had left a scope that joined it.

    That exception is the ``__cause__``.
    """


class DiscardedWorkError(AsgiSqlaError, RuntimeError):
    """The unit could not commit, because some of its work had been discarded without a commit or a rollback.

    ``close()``, ``reset()``, ``invalidate()`` or ``expunge_all()`` of its session had discarded it.
    """


class SessionInUseError(AsgiSqlaError, RuntimeError):
    """A second task or thread used a session during a call, or its unit ended during one."""


class WrongEventLoopError(AsgiSqlaError, RuntimeError):
    """An ``AsyncSession`` was requested or used on an event loop that is not its unit's."""


class PoolExhaustedError(AsgiSqlaError, exc.TimeoutError):
    """All connections of a pool were in use, and ``max_waiting`` tasks and threads waited for one already."""


class DeadlineExceededError(AsgiSqlaError, TimeoutError):
    """The ``deadline`` of a unit of work was over, so a statement or COMMIT was not sent, or no connection came."""


class ReadOnlyError(AsgiSqlaError, RuntimeError):
    """A read-only unit of work was asked to write."""


class BlockingSessionWarning(RuntimeWarning):
    """A sync ``Session`` ran SQL on a thread with a running event loop: the whole server waits for it."""


@contextmanager
def needing(extra: str, room: str) -> Iterator[None]:
    """Import what an extra brings; where it is missing, raise ModuleNotFoundError with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "asgi_sqla":
            raise
        said = f"{room} needs {exc.name}, which is not installed; write: pip install 'asgi-sqla[{extra}]'"
        raise ModuleNotFoundError(said, name=exc.name) from None


def ended(unit: object) -> UnitOfWorkEndedError:
    """Return the error for a use of ``unit``, or of one of its sessions, after the unit has ended."""
    return UnitOfWorkEndedError(
        f"{unit} has ended, and its sessions with it; a task, thread or callback that outlives its "
        f"request must open its own unit of work: {OWN_SCOPE}"
    )


STILL_IN_USE = (
    "a task or thread was still using one of its sessions when it ended, so its work is rolled back when "
    "that call returns. Await what you start (asyncio.TaskGroup does), or let it open its own unit of work: "
    f"{OWN_SCOPE}. A BaseHTTPMiddleware inside this middleware streams bodies from such a task"
)
"""About a session that is in use when its unit ends."""


def in_use(unit: object, user: Task[Any] | int | None) -> SessionInUseError:
    """Return the error for a second user of a session of ``unit`` during a call of ``user``, a task or a thread."""
    name = f"thread {user}" if user is None or isinstance(user, int) else f"task {user.get_name()!r}"
    return SessionInUseError(
        f"a session of {unit} is in use by {name}. A session serves one task or thread at a time, so let each open its "
        f"own (asyncio.gather, the resolvers of one GraphQL query and DataLoaders run as several tasks): {OWN_SCOPE}"
    )
