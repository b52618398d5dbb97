"""Gives every ``Database`` of a process ``pipelining=False``.

With this folder on ``PYTHONPATH`` each Python that is started imports it, before anything of ours. So it imports
nothing of ours itself, and waits for the one room that it changes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

ROOM = "asgi_sqla.engine.options"
"""Where the arguments of ``Database`` become a configuration."""


def make_plain(room: Any) -> None:
    """Have ``room`` answer ``pipelining=False``, whatever the arguments are."""
    checked = room.checked

    def checked_and_plain(arguments: Any, known: Any) -> Any:
        made = checked(arguments, known)
        return made._replace(recipe=made.recipe._replace(pipelining=False))

    room.checked = checked_and_plain


class _Plain(Loader):
    """Loads the room as the one it holds does, and changes it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        """Answer as the other one what else is asked of a loader, such as the source."""
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        make_plain(module)


class _Finder(MetaPathFinder):
    """Finds the room alone, with such a loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target) if fullname == ROOM else None
        if found is not None and found.loader is not None:
            found.loader = _Plain(found.loader)
        return found


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _Finder())
