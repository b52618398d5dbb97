"""The time beside the others as one picture: SVG, drawn with rectangles and text.

Must not know: how anything was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from benchmarks.contenders import CONTENDERS
from benchmarks.tables import baseline

WIDTH, LEFT, ROW, BAR, TOP = 860, 330, 22, 14, 64
PANELS = (
    ("peers", "/read", "one SELECT"),
    ("peers", "/write", "one INSERT"),
    ("far_peers", "/read", "one SELECT, 0.25 ms from the database"),
    ("far_peers", "/write", "one INSERT, 0.25 ms from the database"),
)
"""Where the times are found, for which path, and what the panel is called."""


class Bar(NamedTuple):
    """One contender's bar."""

    label: str
    value: float
    color: str
    note: str


HEAD = (
    '<text x="16" y="24" font-size="16" fill="#222">Time of a request in process, over asgi_sqla on the same '
    'framework</text>\n<text x="16" y="44" fill="#555">Shorter is faster. Hatched: tells the client "done" when the '
    "COMMIT fails, or holds a connection while a body drains.</text>\n"
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" fill="#c9c9c9"/><rect width="3" height="6" fill="#e08a7d"/></pattern></defs>'
)


def draw(found: dict[str, Any]) -> str:
    """Return the picture: the time of a SELECT and of an INSERT, over ours on the same framework, near and far."""
    panels = [(title, _bars(found, place, path)) for place, path, title in PANELS]
    height = TOP + sum(len(bars) * ROW + 48 for _, bars in panels) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="Arial" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        HEAD,
    ]
    y = TOP
    for title, bars in panels:
        parts += _panel(title, bars, y)
        y += len(bars) * ROW + 48
    return "\n".join([*parts, "</svg>", ""])


def _bars(found: dict[str, Any], place: str, path: str) -> list[Bar]:
    bars = []
    for one in CONTENDERS:
        if (one.module, path) not in found[place]:
            continue
        value = found[place][one.module, path].over(found[place][baseline(one), path]).minimum
        broken = any("COMMIT" in said for said in found["promises"][one.module])
        held = one.module in found["readers"] and found["readers"][one.module].seconds is None
        color = "#2f6f9f" if one.title == "asgi_sqla" else "url(#hatch)" if broken or held else "#9aa5ad"
        kind = f"{one.framework}{', def' if one.sync else ''}"
        bars.append(Bar(f"{one.title} ({kind})", value, color, f"{value:.2f}"))
    return bars


def _panel(title: str, bars: Sequence[Bar], y: int) -> list[str]:
    scale = (WIDTH - LEFT - 70) / max(bar.value for bar in bars)
    parts = [f'<text x="16" y="{y + 16}" font-weight="bold" fill="#222">{escape(title)}</text>']
    one = LEFT + scale
    bottom = y + 22 + len(bars) * ROW
    parts.append(
        f'<line x1="{one:.1f}" y1="{y + 22}" x2="{one:.1f}" y2="{bottom}" stroke="#222" stroke-dasharray="2 3"/>'
    )
    for number, bar in enumerate(bars):
        top = y + 26 + number * ROW
        width = bar.value * scale
        parts += [
            f'<text x="{LEFT - 8}" y="{top + 11}" text-anchor="end" fill="#222">{escape(bar.label)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{width:.1f}" height="{BAR}" fill="{bar.color}"/>',
            (
                f'<text x="{LEFT + width + 6:.1f}" y="{top + 11}" fill="#222" stroke="#fff" stroke-width="3" '
                f'paint-order="stroke">{bar.note}</text>'
            ),
        ]
    return parts
