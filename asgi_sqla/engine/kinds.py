"""The kind of value of each option of an engine and of a session.

SQLAlchemy accepts any value, and fails later, or does something unexpected.

Holds: the tables of both.
Must not know: which other options exist, or who gets them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqlalchemy.pool import Pool

from asgi_sqla.engine.callables import is_async
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError


class Kind(NamedTuple):
    """Whether a value fits, and the message if it does not."""

    fits: Callable[[Any], bool]
    otherwise: str


def _number(*kinds: type[float], least: float = 0) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool) and value >= least

    return Kind(fits, f"is not a number of at least {least:g}; write one without quotes")


SECONDS = _number(int, float)
"""For a time to wait, in seconds."""
_WHOLE = _number(int)
_SWITCH = Kind(lambda value: isinstance(value, bool), "is neither True nor False; write one of them")
_ECHO = Kind(lambda value: value in (None, True, False, "debug"), 'is not one of True, False and "debug"')
_MAPPING = Kind(lambda value: isinstance(value, Mapping), 'is not a mapping; write {"name": value}')
_MAPPING_OR_NONE = Kind(lambda value: isinstance(value, Mapping | None), _MAPPING.otherwise)
_TEXT = Kind(lambda value: isinstance(value, str | None), "is not a string; write it in quotes")
_NAMES = Kind(lambda value: isinstance(value, list | tuple), "is not a list; write a list of names")
_CREATOR = Kind(
    lambda value: callable(value) and not is_async(value),
    "is not a plain function that returns a connection; write an async one as async_creator",
)
_FUNCTION = Kind(lambda value: value is None or callable(value), "is not a function; pass the function itself")
_RESET = Kind(
    lambda value: value in ("rollback", "commit", None, True, False), 'is not one of "rollback", "commit" and None'
)

ENGINE: Mapping[str, Kind] = {
    "async_creator": Kind(callable, "is not a function; pass an async one that returns a connection"),
    "connect_args": _MAPPING,
    "creator": _CREATOR,
    "echo": _ECHO,
    "echo_pool": _ECHO,
    "execution_options": _MAPPING,
    "future": Kind(lambda value: value is True, "is not True, the only value in SQLAlchemy 2; leave it out"),
    "hide_parameters": _SWITCH,
    "json_deserializer": _FUNCTION,
    "json_serializer": _FUNCTION,
    "label_length": Kind(
        lambda value: value is None or _WHOLE.fits(value),
        "is not a whole number of at least 0; write one without quotes",
    ),
    "logging_name": _TEXT,
    "max_overflow": _number(int, least=-1),
    "plugins": _NAMES,
    "pool": Kind(lambda value: isinstance(value, Pool), "is not a pool; pass a pool class as poolclass"),
    "pool_logging_name": _TEXT,
    "pool_pre_ping": _SWITCH,
    "pool_recycle": _number(int, least=-1),
    "pool_reset_on_return": _RESET,
    "pool_size": _WHOLE,
    "pool_timeout": SECONDS,
    "pool_use_lifo": _SWITCH,
    "query_cache_size": _WHOLE,
}
"""Options of ``create_engine()`` and of the pools."""

SESSION: Mapping[str, Kind] = {
    "autobegin": _SWITCH,
    "autoflush": _SWITCH,
    "binds": _MAPPING_OR_NONE,
    "enable_baked_queries": _SWITCH,
    "expire_on_commit": _SWITCH,
    "info": _MAPPING_OR_NONE,
    "query_cls": Kind(callable, "is not a query class; write a subclass of sqlalchemy.orm.Query"),
    "twophase": _SWITCH,
}
"""Options of ``Session`` that it does not check itself."""


def check_kinds(argument: str, options: Mapping[Any, Any], kinds: Mapping[str, Kind]) -> None:
    """Raise ConfigurationError for a value of the wrong kind in ``options``, which were passed as ``argument``."""
    for name, value in options.items():
        kind = kinds.get(name)
        if kind is not None and not kind.fits(value):
            raise ConfigurationError(f"{argument}: {name}={hidden(value)} {kind.otherwise}")
