"""What grows, as one picture: SVG, drawn with lines and text.

Must not know: how anything was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from benchmarks.inprocess import HAND, OURS

WIDTH, HEIGHT, TOP, LEFT, BOTTOM = 860, 640, 64, 56, 40
"""Of the picture; and the room that a panel leaves for its title, its scale and its counts."""
PANEL_WIDTH, PANEL_HEIGHT = WIDTH // 2, (HEIGHT - TOP) // 2
OWN, OTHER, THIRD = "#2f6f9f", "#9aa5ad", "#e08a7d"
HEAD = (
    '<text x="16" y="24" font-size="16" fill="#222">What grows: time over that of the first</text>\n'
    '<text x="16" y="44" fill="#555">A level line is linear growth: the last of many takes as long as the first. '
    "Dashed: as many times as there are databases.</text>"
)


class Line(NamedTuple):
    """One curve."""

    label: str
    color: str
    values: list[float]


class Panel(NamedTuple):
    """One matter: its curves over the same counts."""

    title: str
    counts: Sequence[float]
    lines: list[Line]
    slope: bool = False
    """Whether growth in proportion to the count is drawn beside."""
    even: bool = False
    """Whether the counts stand as far from each other as they are, and not as their logarithms."""


def draw(found: dict[str, Any]) -> str:
    """Return the picture: databases, units at once, messages, and event loops."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Arial" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        HEAD,
    ]
    for number, panel in enumerate(_panels(found)):
        parts += _drawn(panel, number % 2 * PANEL_WIDTH, TOP + number // 2 * PANEL_HEIGHT)
    return "\n".join([*parts, "</svg>", ""])


def _panels(found: dict[str, Any]) -> list[Panel]:
    databases, units = found["databases"], found["concurrency"]
    counts, at_once = sorted({count for _, count in databases}), found["scale"]["at_once"]
    curves = (
        ("INSERT on each", "a far INSERT on each", THIRD),
        ("SELECT on each", "a far SELECT on each", OWN),
        ("SELECT on one", "one SELECT", OTHER),
    )
    return [
        Panel(
            "a request on so many databases",
            counts,
            [Line(label, color, [databases[what, one].minimum for one in counts]) for label, what, color in curves],
            slope=True,
        ),
        Panel(
            "each of so many units at once",
            at_once,
            [Line(who, color, [units[who, one] for one in at_once]) for who, color in ((HAND, OTHER), (OURS, OWN))],
        ),
        *(
            Panel(title, _ends(found["scale"][name]), [Line(OURS, OWN, found[name].microseconds)], even=True)
            for name, title in (
                ("messages", "each of so many messages on one socket"),
                ("loops", "each of so many event loops"),
            )
        ),
    ]


def _ends(total: int) -> list[float]:
    """Return where each tenth ends."""
    return [total * tenth / 10 for tenth in range(1, 11)]


def _drawn(panel: Panel, x: int, y: int) -> list[str]:
    ratios = [[value / line.values[0] for value in line.values] for line in panel.lines]
    slope = [count / panel.counts[0] for count in panel.counts] if panel.slope else []
    most = max(2.0, *slope, *(max(one) for one in ratios)) * 1.05
    left, right, top, bottom = x + LEFT, x + PANEL_WIDTH - 24, y + 48, y + PANEL_HEIGHT - BOTTOM
    places = [count if panel.even else math.log(count) for count in panel.counts]

    def point(count: float, value: float) -> str:
        place = count if panel.even else math.log(count)
        across = (place - places[0]) / (places[-1] - places[0])
        return f"{left + across * (right - left):.1f},{bottom - value / most * (bottom - top):.1f}"

    parts = [f'<text x="{x + 16}" y="{y + 16}" font-weight="bold" fill="#222">{escape(panel.title)}</text>']
    for value in range(0, math.floor(most) + 1, max(1, math.floor(most) // 4)):
        height = point(panel.counts[0], value).split(",")[1]
        parts += [
            f'<line x1="{left}" y1="{height}" x2="{right}" y2="{height}" stroke="#ddd"/>',
            f'<text x="{left - 8}" y="{float(height) + 4:.1f}" text-anchor="end" fill="#555">{value}</text>',
        ]
    if slope:
        points = " ".join(map(point, panel.counts, slope))
        parts.append(f'<polyline points="{points}" fill="none" stroke="#222" stroke-dasharray="2 3"/>')
    for count in (panel.counts[0], panel.counts[len(panel.counts) // 2], panel.counts[-1]):
        place = point(count, 0).split(",")[0]
        parts.append(f'<text x="{place}" y="{bottom + 18}" text-anchor="middle" fill="#555">{count:,.0f}</text>')
    for number, (line, values) in enumerate(zip(panel.lines, ratios, strict=True)):
        points = " ".join(point(count, value) for count, value in zip(panel.counts, values, strict=True))
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{line.color}" stroke-width="2"/>',
            f'<text x="{left + 8 + number * 125}" y="{y + 36}" fill="{line.color}">{escape(line.label)}</text>',
        ]
    return parts
