"""``python -m fuzz 20000 [first seed]``: play that many programs on all backends and kinds, and print a table."""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

from support.databases import make_backend
from support.marks import KINDS, NAMES

from fuzz.arena import play_all
from fuzz.programs import Program
from fuzz.witness import Findings

SERIES = 500
"""How many programs share one event loop and one pool."""


class Table:
    """Counts the findings, and shows the progress."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.played = 0
        self.began = time.monotonic()
        self.rows: dict[str, list[int]] = {}
        self.name = ""

    def report(self, program: Program, findings: Findings) -> bool:
        """Count one program, print it if anything is wrong, and continue."""
        row = self.rows.setdefault(self.name, [0] * 5)
        found = (findings.lies, findings.twice, findings.out, findings.idle)
        for column, lines in enumerate(found, 1):
            row[column] += bool(lines)
        row[0] += 1
        self.played += 1
        if findings:
            print(f"\n{self.name} {program}\n{findings}", flush=True)
        if self.played % 100 == 0:
            seconds = time.monotonic() - self.began
            print(f"\r{self.played} of {self.total} programs, {seconds:.0f} s", end="", file=sys.stderr, flush=True)
        return not (findings.out or findings.idle)  # or every later program would have that connection, too

    def show(self) -> int:
        """Print the table; return how many programs broke a promise."""
        print(f"\n{'':16}{'programs':>10}{'lies':>8}{'twice':>8}{'out':>8}{'idle':>8}")
        sums = [sum(column) for column in zip(*self.rows.values(), strict=True)]
        for name, row in [*self.rows.items(), ("together", sums)]:
            print(f"{name:16}{row[0]:>10}" + "".join(f"{figure:>8}" for figure in row[1:]))
        return sum(sums[1:])


def main(total: int = 600, first: int = 1_000_000) -> int:
    """Play ``total`` programs, those of each backend and kind from the seed ``first`` on."""
    for name in ("asgi_sqla", "asyncio", "psycopg", "sqlalchemy.pool"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")  # a sync session on the event loop is meant, and so is a connection that is dropped
    table = Table(total)
    each = -(-total // (len(NAMES) * len(KINDS)))
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            backend = make_backend(name, Path(folder))
            for kind in KINDS:
                table.name = f"{name} {kind}"
                start = first
                while start < first + each:
                    seeds = range(start, min(start + SERIES, first + each))
                    start = asyncio.run(play_all(backend, kind, seeds, table.report)) + 1
            backend.witness.dispose()
    return table.show()


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])) > 0)
