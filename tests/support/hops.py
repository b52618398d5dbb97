"""How many ends of sync sessions go to a thread of ours."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

from asgi_sqla.unit import threads
from support.databases import check_owners


class Hops:
    """How many ends went to a thread of ours."""

    def __init__(self) -> None:
        self.count = 0
        self._submit = threads.submit

    def counted(self, function: Callable[[], object]) -> Any:
        """Count one more, and do it."""
        self.count += 1
        return self._submit(function)


@contextmanager
def counted_hops() -> Iterator[Hops]:
    """Count the hops from now on; no listener of the tests' own is heard meanwhile."""
    gc.collect()  # a connection that garbage still refers to counts as in use, and decides who has a thread
    checks = event.contains(Engine, "commit", check_owners)
    if checks:
        event.remove(Engine, "commit", check_owners)
    hops = Hops()
    threads.submit = hops.counted
    try:
        yield hops
    finally:
        threads.submit = hops._submit
        if checks:
            event.listen(Engine, "commit", check_owners)
