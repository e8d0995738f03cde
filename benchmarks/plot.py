"""The plot as SVG: one panel per figure, a point per target, a line from the least to the greatest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.figures import BY_KEY, DIRECT, ROUTER, ROUTER_LARGE, Figure, Results, Spread

PANELS = ("cpu_small", "cpu_big", "cpu_chunk", "added_p50", "lag_p99", "rss_after")
_WIDTH, _LABELS, _ROW, _HEAD, _FOOT = 760, 130, 22, 34, 30
_PLOT = _WIDTH - _LABELS - 90
_OURS, _OTHERS, _GRID, _TEXT = "#0b6e4f", "#5b6b7b", "#d9dee3", "#1f2933"


def draw(results: Results, names: Sequence[str]) -> str:
    """Return the plot; the axes are logarithmic, for the slowest peer is 100 times the fastest."""
    parts: list[str] = []
    top = 8
    for key in PANELS:
        rows = _rows(results, names, key)
        if rows:
            parts += _panel(BY_KEY[key], rows, top)
            top += _HEAD + _ROW * len(rows) + _FOOT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">'
        "<title>Benchmark results: lower is better</title>"
    )
    background = f'<rect width="{_WIDTH}" height="{top}" fill="#ffffff"/>'
    return "\n".join([head, background, *parts, "</svg>", ""])


def _rows(results: Results, names: Sequence[str], key: str) -> list[tuple[str, Spread]]:
    chosen = [n for n in names if n != ROUTER_LARGE and not (n == DIRECT and key == "added_p50")]
    found = [(name, results.spread(name, key)) for name in chosen]
    return [(name, spread) for name, spread in found if spread and spread.least > 0]


def _panel(figure: Figure, rows: Sequence[tuple[str, Spread]], top: int) -> list[str]:
    low = math.floor(math.log10(min(spread.least for _, spread in rows)))
    high = max(math.ceil(math.log10(max(spread.most for _, spread in rows))), low + 1)

    def x(value: float) -> float:
        return round(_LABELS + _PLOT * (math.log10(value) - low) / (high - low), 1)

    bottom = top + _HEAD + _ROW * len(rows)
    title = f"{figure.label[0].upper()}{figure.label[1:]} ({figure.unit}, log scale)"
    parts = [f'<text x="8" y="{top + 18}" font-weight="600" fill="{_TEXT}">{escape(title)}</text>']
    for power in range(low, high + 1):
        at = x(10.0**power)
        parts.append(f'<path d="M{at} {top + _HEAD - 6}V{bottom}" stroke="{_GRID}"/>')
        parts.append(
            f'<text x="{at}" y="{bottom + 14}" text-anchor="middle" fill="{_OTHERS}">{10.0**power:,g}</text>'
        )
    for row, (name, spread) in enumerate(rows):
        y = top + _HEAD + _ROW * row + _ROW // 2 - 4
        color = _OURS if name == ROUTER else _OTHERS
        value = f"{spread.middle:,.{figure.digits}f}"
        parts += [
            f'<text x="{_LABELS - 10}" y="{y + 4}" text-anchor="end" fill="{color}">{escape(name)}</text>',
            f'<path d="M{x(spread.least)} {y}H{x(spread.most)}" stroke="{color}" stroke-width="2"/>',
            f'<circle cx="{x(spread.middle)}" cy="{y}" r="5" fill="{color}"/>',
            f'<text x="{x(spread.most) + 10}" y="{y + 4}" fill="{color}">{value}</text>',
        ]
    return parts
