"""How a statement is sent by us, where SQLAlchemy's own turn would be too late: to be guarded, or measured.

Holds: what SQLAlchemy would do after our listener: ask the listeners that come later, and then the dialect.
Must not know: why it is sent by us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def sender_after(ours: Callable[..., Any], name: str, dialect: Any) -> Callable[..., object]:
    """Return what sends a statement with the method ``name`` of ``dialect``, unless a listener after ``ours`` does.

    It is called with a cursor, the statement, its parameters and its context, whatever the method takes.
    """
    own: Callable[..., object] = getattr(dialect, name)
    if name == "do_execute_no_params":
        return _without_parameters(own, _after(ours, dialect.dispatch.do_execute_no_params))
    heard: Any = getattr(dialect.dispatch, name)
    if heard.listeners and heard.listeners[-1] is ours:  # as always; to look at each takes ten times as long
        return own
    later = _after(ours, heard)

    def send(*arguments: Any) -> None:
        if not any(listener(*arguments) for listener in later):
            own(*arguments)

    return send


def _without_parameters(own: Callable[..., object], later: list[Callable[..., object]]) -> Callable[..., object]:
    def send(cursor: Any, statement: str, _parameters: object, context: Any) -> None:
        if not any(listener(cursor, statement, context) for listener in later):
            own(cursor, statement, context)

    return send


def _after(ours: Callable[..., Any], heard: Iterable[Callable[..., object]]) -> list[Callable[..., object]]:
    """Return the listeners that were added after ``ours``."""
    every = list(heard)
    return every[every.index(ours) + 1 :] if ours in every else []


def send_unmeasured(
    _watched: object, context: Any, execute: Callable[..., object], cursor: Any, text: str, given: object
) -> None:
    """Send a statement ``text``, and what is ``given`` with it, by ``execute``, as a record does that measures it."""
    execute(cursor, text, given, context)
