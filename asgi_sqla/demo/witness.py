"""An independent view of the shop: of its database file, its pools and its log.

Holds: everything that the tour can see and a client of the shop cannot.
Must not know: what is expected.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from asgi_sqla import db


class Rows(NamedTuple):
    """How many rows are committed."""

    orders: int
    mails: int
    reports: int

    def __str__(self) -> str:
        return ", ".join(
            f"{count or 'no'} {name if count > 1 else name.removesuffix('s')}"
            for name, count in zip(self._fields, self, strict=True)
        )

    def more(self, *, orders: int = 0, mails: int = 0, reports: int = 0) -> Rows:
        """Return these rows and some more."""
        return Rows(self.orders + orders, self.mails + mails, self.reports + reports)


class Out(NamedTuple):
    """How many connections are checked out of each pool."""

    sync: int
    asynchronous: int

    def __str__(self) -> str:
        return f"{self.sync} sync and {self.asynchronous} async connections out"


NOTHING_OUT = Out(0, 0)


class Sight(NamedTuple):
    """What can be seen at one moment."""

    rows: Rows
    out: Out


class Witness(logging.Handler):
    """Looks at the shop from outside: at the file through another connection, at the pools, at the log."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.failures: list[BaseException] = []
        """What was logged with its traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the exception of the record, if it has one."""
        if record.exc_info and record.exc_info[1] is not None:
            self.failures.append(record.exc_info[1])

    @contextmanager
    def reading_the_log(self) -> Iterator[None]:
        """Take what is logged, instead of letting it be printed."""
        logger = logging.getLogger("asgi_sqla")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)

    def look(self) -> Sight:
        """Return what can be seen now."""
        pools: tuple[Any, ...] = (db.engine.pool, db.async_engine.pool)
        return Sight(self._rows(), Out(*(pool.checkedout() for pool in pools)))

    async def wait_for(self, rows: Rows, *, seconds: float = 2.0) -> Sight:
        """Return what can be seen when ``rows`` are committed and no connection is out, or after ``seconds``."""
        for _ in range(round(seconds / 0.01)):
            if self.look() == (rows, NOTHING_OUT):
                break
            await asyncio.sleep(0.01)
        return self.look()

    def _rows(self) -> Rows:
        counts = "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM mail), (SELECT count(*) FROM report)"
        with closing(sqlite3.connect(self._path)) as connection:
            return Rows(*connection.execute(counts).fetchone())
