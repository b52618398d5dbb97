"""The session classes of a database: SQLAlchemy's or the user's own, checked at once, and their guarded subclasses.

Holds: what ``session_options`` may contain, and how each method of a session is guarded.
Must not know: how the guard works, units, or our engines.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from inspect import isfunction
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

from sqlalchemy.engine import Engine
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asgi_sqla.engine.given import mapping
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.session.guard import GuardedSession
from asgi_sqla.session.methods import guarding, refusing, unless_over

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # The session classes of a ``Database``. Without them it has SQLAlchemy's, by the defaults (PEP 696).
    S_co = TypeVar("S_co", bound=Session, default=Session, covariant=True)
    A_co = TypeVar("A_co", bound=AsyncSession, default=AsyncSession, covariant=True)
else:  # typing has the defaults from Python 3.13
    from typing import TypeVar

    S_co = TypeVar("S_co", covariant=True)
    A_co = TypeVar("A_co", covariant=True)

CALLS = (
    ("begin_nested", "bulk_insert_mappings", "bulk_save_objects", "bulk_update_mappings", "close", "commit")
    + ("connection", "delete", "delete_all", "execute", "flush", "get", "get_one", "invalidate", "merge")
    + ("merge_all", "prepare", "refresh", "reset", "rollback", "scalar", "scalars")
)
"""The methods of ``Session`` that may talk to the database: one user at a time, and none after the end."""
LOCAL = ("add", "add_all", "begin", "enable_relationship_loading", "expire", "expire_all", "expunge", "query")
"""The methods that only change the session: none after its end."""
_FIXED = frozenset(("class_", "close_resets_only", "sync_session_class"))
_ENDS = ("aclose", "close", "commit", "invalidate", "reset", "rollback")
"""The methods that end a session; its unit calls them on the sync session inside an ``AsyncSession`` too."""


_ENDING = ("close", "commit", "expunge_all", "flush", "get_transaction", "in_transaction", "rollback")
"""The methods that the end of a unit comes to."""


class SessionClasses(NamedTuple):
    """The classes of both kinds of session, and the other options of both."""

    sync: type[Session]
    asynchronous: type[AsyncSession]
    options: dict[str, Any]


def check_session_options(given: Any, classes: SessionClasses | None) -> dict[str, Any]:
    """Return the ``session_options`` of one scope; raise ConfigurationError for what a scope cannot have.

    ``classes`` are those of the database, or None if it is not configured yet.
    """
    options = mapping("session_options", given)
    if "bind" in options:
        raise ConfigurationError(
            "session_options: bind= is not for a scope, which ends its transaction on a connection of its own; to use "
            "one connection across commits, write db.sessionmaker(bind=connection) or "
            "db.async_sessionmaker(bind=connection)"
        )
    if fixed := _FIXED.intersection(options):
        raise ConfigurationError(
            f"session_options: {min(fixed)}= is not for one scope; give it to Database(session_options=...)"
        )
    from asgi_sqla.engine.kinds import SESSION, check_kinds

    check_kinds("session_options", options, SESSION)
    if classes is not None and not options.keys() <= SESSION.keys():  # the class itself checks the others
        both = {**classes.options, **options}
        _refuse_if_failed(_failure_of(lambda: classes.sync(**both)), classes.sync, both)
    return options


def session_classes(given: Mapping[str, Any]) -> SessionClasses:
    """Return the two session classes of ``session_options``, and the other options of both."""
    options = dict(given)
    if options.setdefault("close_resets_only", False) is not False:
        raise ConfigurationError(
            f"session_options: close_resets_only={hidden(options['close_resets_only'])}; leave it out, as a "
            "session that revives itself after its unit has ended leaks a connection"
        )
    if "bind" in options:
        raise ConfigurationError(
            f"session_options: bind={hidden(options['bind'])}; leave it out, and pass engine= or async_engine=. To use "
            "one connection across commits, write db.sessionmaker(bind=connection) or "
            "db.async_sessionmaker(bind=connection)"
        )
    cls = options.pop("class_", Session)
    if not isinstance(cls, type) or not issubclass(cls, Session | AsyncSession):
        raise ConfigurationError(
            f"session_options: class_={hidden(cls)} is not a subclass of Session or AsyncSession; "
            "to give both, write the AsyncSession's as class_ and the Session's as sync_session_class"
        )
    async_class = cls if issubclass(cls, AsyncSession) else AsyncSession
    fallback = async_class.sync_session_class if issubclass(cls, AsyncSession) else cls
    sync_class = options.pop("sync_session_class", fallback)
    if not isinstance(sync_class, type) or not issubclass(sync_class, Session):
        raise ConfigurationError(
            f"session_options: sync_session_class={hidden(sync_class)} is not a subclass of sqlalchemy.orm.Session; "
            "write the class itself, not its name or an instance"
        )
    from asgi_sqla.engine.kinds import SESSION, check_kinds

    check_kinds("session_options", options, SESSION)
    for name in _ENDS:
        if getattr(async_class, name) is not getattr(AsyncSession, name):
            raise ConfigurationError(
                f"session_options: {async_class.__name__} overrides {name}(), which its unit of work does not call; "
                "override it in a Session class instead, and pass that as sync_session_class"
            )
    _set_expire_on_commit(sync_class, options)
    return SessionClasses(sync_class, async_class, options)


def _set_expire_on_commit(sync_class: type[Session], options: dict[str, Any]) -> None:
    """Keep objects loaded after a commit, unless the user or their class decides otherwise; check the options."""
    given = "expire_on_commit" in options
    options.setdefault("expire_on_commit", False)
    failure = _failure_of(lambda: sync_class(**options))
    if failure is not None and not given:
        del options["expire_on_commit"]
        failure = _failure_of(lambda: sync_class(**options))
    _refuse_if_failed(failure, sync_class, options)


def _refuse_if_failed(failure: Exception | None, sync_class: type[Session], options: Mapping[str, Any]) -> None:
    if failure is not None:
        said = str(failure)
        unknown = [name for name in options if isinstance(failure, TypeError) and repr(name) in said]
        # Python 3.13 also says which name it thinks was meant, after the one that was written.
        unknown.sort(key=lambda name: said.index(repr(name)))
        what = f"{hidden(unknown[0])} is not accepted" if unknown else said
        raise ConfigurationError(f"session_options: {what}; write what {sync_class.__name__} accepts") from None


def _failure_of(make: Callable[[], Session]) -> Exception | None:
    try:
        make()
    except (TypeError, ArgumentError) as exc:
        return exc
    except Exception:  # the class uses the database when it is made, and there is none yet
        return None
    return None


class GuardedAsyncSession(AsyncSession):
    """An ``AsyncSession`` that its unit of work ends."""

    def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Refuse: ``db.async_session`` is a session already."""
        raise ConfigurationError(
            "a session is not callable: db.session and db.async_session are the sessions themselves"
        )

    async def __aexit__(
        self, _kind: type[BaseException] | None, value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Do nothing, as the unit ends the session; after an exception, roll back."""
        if value is not None and not cast("GuardedSession", self.sync_session).guard_is_over:
            await self.rollback()


def guarded(
    session_class: type[Session],
    guard: type[GuardedSession] = GuardedSession,
    autocommit: bool = False,
    isolation_level: str | None = None,
) -> type[GuardedSession]:
    """Return the subclass of ``session_class`` that ``guard`` guards; the same one each time.

    ``autocommit`` is true if its engine commits each statement. ``isolation_level`` applies to every engine that
    ``binds=`` or ``get_bind()`` choose.
    """
    key = (session_class, guard, autocommit, isolation_level)
    found = _made.get(key)
    return found or _made.setdefault(key, _make(*key))


def _make(
    session_class: type[Session], guard: type[GuardedSession], autocommit: bool, isolation_level: str | None
) -> type[GuardedSession]:
    base = cast("type[GuardedSession]", type(session_class.__name__, (guard, session_class), {}))
    # The user's own methods too: SQLModel's exec() calls Session.execute() and skips every subclass.
    own = session_class.__mro__[: session_class.__mro__.index(Session)]
    names = {name for cls in own for name, value in vars(cls).items() if isfunction(value) and name[0] != "_"}
    members: dict[str, Any] = {name: refusing(name, base) for name in LOCAL}
    members |= {name: guarding(name, base) for name in names.union(CALLS) if hasattr(base, name)}
    members["close"] = unless_over(members["close"])
    members["guard_autocommit"] = autocommit
    members["guard_flushes_as_usual"] = session_class.flush is Session.flush
    members["guard_ends_as_usual"] = all(getattr(session_class, one) is getattr(Session, one) for one in _ENDING)
    if isolation_level is not None:
        members["get_bind"] = _isolating(base, isolation_level)
    return cast("type[GuardedSession]", type(f"Guarded{session_class.__name__}", (base,), members))


def _isolating(base: type[Session], isolation_level: str) -> Callable[..., Any]:
    """Return a ``get_bind()`` that gives every engine ``isolation_level``, also those of ``binds=``."""

    @functools.wraps(base.get_bind)
    def get_bind(self: GuardedSession, *args: Any, **kwargs: Any) -> Any:
        bind = base.get_bind(self, *args, **kwargs)
        if not isinstance(bind, Engine) or bind.get_execution_options().get("isolation_level") == isolation_level:
            return bind
        if bind not in self.guard_binds:  # the session finds its connections by their engines
            self.guard_binds = {**self.guard_binds, bind: bind.execution_options(isolation_level=isolation_level)}
        return self.guard_binds[bind]

    return get_bind


def guarded_async(session_class: type[AsyncSession]) -> type[AsyncSession]:
    """Return the subclass of ``session_class`` that its unit ends; the same one each time."""
    found = _async_made.get(session_class)
    if found is None:
        made = type(f"Guarded{session_class.__name__}", (GuardedAsyncSession, session_class), {})
        found = _async_made.setdefault(session_class, made)
    return found


_made: dict[tuple[object, ...], type[GuardedSession]] = {}
_async_made: dict[type[AsyncSession], type[AsyncSession]] = {}
