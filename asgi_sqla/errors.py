"""Every error this package raises on its own account.

Lives here: the exception classes, each also a standard type people already catch.
Must not know: anything else of ours. Errors of SQLAlchemy and of drivers are never
wrapped; they reach you as they are.
"""


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


class SessionInUseError(AsgiSqlaError, RuntimeError):
    """A second task or thread used a session, or its unit ended, while a call on it was running."""


class WrongEventLoopError(AsgiSqlaError, RuntimeError):
    """An ``AsyncSession`` was asked for, or used, on an event loop that is not its unit's."""


class ReadOnlyError(AsgiSqlaError, RuntimeError):
    """A unit of work that only reads was asked to write."""
