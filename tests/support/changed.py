"""What the environment changes in every ``Database``: of this process, and of the Pythons that it starts.

Holds: the changes, and the search path of what the tests start.
Must not know: who asks for them.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from asgi_sqla.engine.instant import instant
from support.databases import AWAITED, PLAIN, POOLED, check_owners
from support.plain.sitecustomize import ROOM, make_plain

PLAINLY = Path(__file__).parent / "plain"
"""The folder that changes each Python which has it on its path."""


def change_databases() -> None:
    """Tell each ``Database`` of PostgreSQL of the pooler, if there is one, and have nothing travel, if it shall not."""
    if POOLED:
        know_pooler(import_module(ROOM))
    if PLAIN:
        make_plain(import_module(ROOM))
        os.environ["PYTHONPATH"] = python_path()
    if AWAITED:
        never_alone(import_module("asgi_sqla.unit.at_once"))


def never_alone(room: Any) -> None:
    """Have ``room`` believe that there are always others at work, and that the tests' own listener never waits."""
    room.count_in_use = lambda: sys.maxsize
    instant(check_owners)  # it asks nothing but MariaDB, whose drivers cannot wait on an event loop


def know_pooler(room: Any) -> None:
    """Have ``room`` answer ``pooler=True`` for every URL of PostgreSQL."""
    checked = room.checked

    def checked_and_pooled(arguments: Any, known: Any) -> Any:
        made = checked(arguments, known)
        pooled = made.url is not None and made.url.get_backend_name() == "postgresql"
        return made._replace(recipe=made.recipe._replace(pooler=made.recipe.pooler or pooled))

    room.checked = checked_and_pooled


def python_path(*folders: Path | str) -> str:
    """Return the ``PYTHONPATH`` of a process to start: ``folders``, and those of this process."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    found = [str(PLAINLY)] * PLAIN + [str(folder) for folder in folders] + inherited
    return os.pathsep.join(filter(None, dict.fromkeys(found)))
