"""What each contender does with a transaction, found by trying it.

Holds: the experiments, and the few words the tables say about their outcome.
Must not know: how long anything takes.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.contenders import Process
from benchmarks.databases import Place

OURS = {"/write": (201, 1), "/refused": (500, 0), "/undone": (422, 0), "/moved": (303, 1)}
"""The status each request is to be answered, and the rows it is to leave."""


def observe(process: Process, place: Place) -> dict[str, Any]:
    """Make each kind of write once, and return the status and the number of rows that came of it."""
    return {**{path: _try(process, place, path) for path in OURS}, "blocks": process.do("blocks", path="/write")}


def _try(process: Process, place: Place, path: str) -> tuple[int, int]:
    before = place.rows()
    status = process.do("status", path=path)
    time.sleep(0.02)  # for those who commit after they have answered
    return status, place.rows() - before


def words(seen: dict[str, Any]) -> list[str]:
    """Say what is other than promised."""
    status, rows = seen["/refused"]
    found = []
    if seen["/write"][1] == 0:
        found.append("does not commit")
    if status < 400:
        found.append(f"answers {status} when the COMMIT fails")
    if seen["/undone"][1]:
        found.append("keeps the row of a 422")
    if not seen["/moved"][1]:
        found.append("loses the row of a 303")
    if seen["blocks"]:
        found.append("the event loop waits for its COMMIT")
    assert rows == 0
    return found
