"""What the tour prints: steps, what was seen in them, and which promises were kept.

Holds: the text on a terminal, and the count.
Must not know: what is promised.
"""

from __future__ import annotations

import os
import textwrap
from typing import TextIO

WIDTH = 88
GREEN, RED, BOLD, DIM, PLAIN = "\033[32m", "\033[31m", "\033[1m", "\033[2m", "\033[0m"


class Report:
    """Writes the tour to ``out`` as it goes, in colour only on a terminal without NO_COLOR."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._in_colour = out.isatty() and not os.environ.get("NO_COLOR")
        self._marks = _marks(out.encoding)
        self._steps = 0
        self.kept: int = 0
        self.broken: list[str] = []

    def line(self, text: str = "", *styles: str) -> None:
        """Write one line."""
        styled = self._in_colour and styles
        try:
            self._out.write(f"{''.join(styles)}{text}{PLAIN}\n" if styled else f"{text}\n")
            self._out.flush()
        except BrokenPipeError:  # the reader has gone, as after "| head"; the exit code still follows
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())

    def step(self, title: str) -> None:
        """Begin a step."""
        self._steps += 1
        self.line()
        self.line(f"{self._steps}. {title}", BOLD)

    def saw(self, what: str, text: object) -> None:
        """Write what was asked or seen."""
        lead = f"   {what:<9} "
        for line in textwrap.wrap(str(text), WIDTH - len(lead)):
            self.line(lead + line)
            lead = " " * len(lead)

    def promise(self, text: str, kept: bool) -> None:
        """Write a promise and whether it was kept, and count it."""
        if kept:
            self.kept += 1
        else:
            self.broken.append(f"step {self._steps}: {text}")
        self._mark(text, kept)

    def close(self, seconds: float) -> None:
        """Write how many promises were kept, and which were not."""
        total = self.kept + len(self.broken)
        self.line()
        self._mark(f"{self.kept} of {total} promises kept, in {seconds:.1f} seconds", not self.broken, margin="")
        for text in self.broken:
            self._mark(f"broken in {text}", kept=False)

    def _mark(self, text: str, kept: bool, margin: str = "   ") -> None:
        mark = f"{margin}{self._marks[kept]} "
        for line in textwrap.wrap(text, WIDTH - len(mark)):
            self.line(mark + line, GREEN if kept else RED)
            mark = " " * len(mark)


def _marks(encoding: str | None) -> tuple[str, str]:
    """Return the marks for broken and kept, in characters that ``encoding`` has."""
    try:
        "✗✓".encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return "NO", "ok"
    return "✗", "✓"
