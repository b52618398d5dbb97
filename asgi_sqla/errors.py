"""Every error and warning that this package raises on its own account, and the sentences that say what to write.

An error of SQLAlchemy or of a driver is never wrapped: it reaches you as it is.

Holds: the classes, each also a standard type that people already catch.
Must not know: anything else of this package.
"""

from __future__ import annotations

OWN_SCOPE = "async with session_scope() as session: ..."
"""What to write in code that needs a unit of work of its own."""


class AsgiSqlaError(Exception):
    """Base of every error raised by asgi_sqla itself."""


class ConfigurationError(AsgiSqlaError, ValueError):
    """An argument is wrong; the message names it, its value and what to write instead."""


class MissingDriverError(ConfigurationError, ImportError):
    """The driver a database URL needs is not installed; the message names the extra to install."""


class NoUnitOfWorkError(AsgiSqlaError, LookupError):
    """A session was asked for outside any request and any ``session_scope()``."""


class UnitOfWorkEndedError(AsgiSqlaError, RuntimeError):
    """A session was asked for, or used, after its unit of work had ended."""


class UnitOfWorkDoomedError(AsgiSqlaError, RuntimeError):
    """The unit was to commit, but an exception had left a scope that joined it.

    The exception that doomed the unit is the ``__cause__``.
    """


class DiscardedWorkError(AsgiSqlaError, RuntimeError):
    """The unit was to commit, but work of it had been thrown away without a commit or a rollback.

    ``close()``, ``reset()``, ``invalidate()`` or ``expunge_all()`` of its session did that.
    """


class SessionInUseError(AsgiSqlaError, RuntimeError):
    """A second task or thread used a session, or its unit ended, while a call on it was running."""


class WrongEventLoopError(AsgiSqlaError, RuntimeError):
    """An ``AsyncSession`` was asked for, or used, on an event loop that is not its unit's."""


class ReadOnlyError(AsgiSqlaError, RuntimeError):
    """A unit of work that only reads was asked to write."""


class BlockingSessionWarning(RuntimeWarning):
    """A sync ``Session`` ran SQL on a thread with a running event loop, which waits for it: the whole server does."""


def ended(unit: object) -> UnitOfWorkEndedError:
    """Return the error for whoever uses ``unit``, or a session of it, after its end."""
    return UnitOfWorkEndedError(
        f"{unit} has ended, and its sessions with it; a task, thread or callback that outlives its "
        f"request opens its own unit of work: {OWN_SCOPE}"
    )


def still_in_use(unit: object) -> str:
    """Return what to say of a session that somebody uses when ``unit`` ends."""
    return (
        f"{unit}: a task or thread was still using a session of it at its end, so its work is rolled back when that "
        "call returns; wait for what you start (asyncio.TaskGroup does), or have it open its own: "
        f"{OWN_SCOPE}. A BaseHTTPMiddleware inside this middleware streams bodies from such a task"
    )
