"""The running unit of work, for code that was not given it.

Holds: ``current_unit()`` and ``on_commit()``.
Must not know: what a unit does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from asgi_sqla.unit.callbacks import call_now, check_callback
from asgi_sqla.unit.context import current, inherited
from asgi_sqla.unit.unit import UnitOfWork


def current_unit() -> UnitOfWork:
    """Return the unit of work of this request, socket message or scope.

    Raises NoUnitOfWorkError outside any unit, and UnitOfWorkEndedError if the unit of this context has ended.
    """
    return cast("UnitOfWork", current())


def on_commit(callback: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Call ``callback`` once the current unit of work has committed; outside any unit, call it at once.

    - ``callback``: the function to call; outside a unit it must be a plain one.
    - ``*args``: its positional arguments.
    - ``**kwargs``: its keyword arguments.

    Raises ConfigurationError if ``callback`` is not callable, or is async where nothing can await it.
    """
    unit = cast("UnitOfWork | None", inherited())
    if unit is not None:
        unit.on_commit(callback, *args, **kwargs)
        return
    check_callback(callback, awaits=False, unit="code outside any unit of work")
    call_now(callback, args, kwargs)
