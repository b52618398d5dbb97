"""The one lock for what takes a moment: a fork waits for it, so no child inherits it locked."""

from __future__ import annotations

import ast
import os
import threading
from pathlib import Path

import pytest

import asgi_sqla
from asgi_sqla.engine.moment import moment

PACKAGE = Path(asgi_sqla.__file__).parent
PATIENCE = 10.0
RENEWED = {
    "engine/moment.py": "a fork waits for it",
    "engine/engines.py": "a child makes another one when it forgets the engines of its parent",
    "migrations/manager.py": "a child makes another one",
}
"""Why a lock that outlives a unit is free in a child."""
OWNED = {"session/guard.py": "by a session, whose unit a child forgets", "testing/turns.py": "by one block of a test"}
"""Whose lock it is, if not everybody's."""


def locks() -> set[str]:
    """Return the rooms that make a lock of threads."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "id", getattr(called, "attr", ""))
            ours = not (isinstance(called, ast.Attribute) and getattr(called.value, "id", "") == "anyio")
            if name in ("Lock", "RLock") and ours:
                found.add(path.relative_to(PACKAGE).as_posix())
    return found


def test_every_lock_is_free_in_a_child() -> None:
    """A new lock is the shared one, is renewed in a child, or ends with what owns it."""
    assert locks() == RENEWED.keys() | OWNED.keys()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_waits_until_nobody_is_inside() -> None:
    """A thread is inside when the process forks; the child can enter all the same, and so can the parent."""
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with moment:
            inside.set()
            leave.wait(PATIENCE)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(PATIENCE)
    threading.Timer(0.2, leave.set).start()
    child = os.fork()
    if child == 0:
        os._exit(0 if moment.acquire(timeout=PATIENCE) else 1)
    assert leave.is_set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()
    assert moment.acquire(timeout=PATIENCE)
    moment.release()


def test_what_the_collector_calls_inside_may_enter() -> None:
    """The same thread may take it twice."""
    with moment, moment:
        pass
