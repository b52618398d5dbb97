"""What the runs under trouble have in common: their command line, their tables, and how they end.

Must not know: what was run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol


class Kept(Protocol):
    """One run, and whether everything was as promised."""

    @property
    def kept(self) -> bool:
        """Whether everything is as promised."""
        ...


def command_line(description: str | None, *, bank: bool = False) -> argparse.Namespace:
    """Read the arguments of a run; with a ``bank``, ``database`` is what they are for its ``Database``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a tenth of the requests")
    parser.add_argument("--output", type=Path, help="the file to write the table to")
    if bank:
        plain, message = {"pipelining": False}, "no statement travels with another: pipelining=False"
        parser.add_argument("--plain", dest="database", action="store_const", const=plain, default={}, help=message)
    return parser.parse_args()


def simple_table(rows: list[tuple[Any, ...]]) -> str:
    """Return a simple table in reStructuredText, the first row its head."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, ""])


def finish(table: str, runs: Iterable[Kept], arguments: argparse.Namespace) -> int:
    """Print the table, write it where the command line says, and return 1 if a promise was broken."""
    print(table)
    if arguments.output is not None:
        arguments.output.write_text(table)
    return int(not all(one.kept for one in runs))
