"""Signs of the methods as outlines, the same in SVG and in LaTeX; which method wears which: core/charts_style.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.charts_style import method_symbol
from core.report.document import Series

_CROSS = ((-2, -6), (2, -6), (2, -2), (6, -2), (6, 2), (2, 2), (2, 6), (-2, 6), (-2, 2), (-6, 2), (-6, -2), (-2, -2))
_FIXED: dict[str, tuple[tuple[float, float], ...]] = {
    "cross": _CROSS,
    "x": tuple(((x - y) * math.sqrt(0.5), (x + y) * math.sqrt(0.5)) for x, y in _CROSS),
    "bowtie": ((-6, -5), (6, 5), (6, -5), (-6, 5)),
    "hourglass": ((-5, -6), (5, -6), (-5, 6), (5, 6)),
}
_ROUND = {  # corners, turn in degrees, inner radius as a share of the outer (0: a polygon), outer radius
    "circle": (24, 0.0, 0.0, 5.2),
    "square": (4, 45.0, 0.0, 6.4),
    "diamond": (4, 0.0, 0.0, 6.4),
    "diamond-wide": (4, 0.0, 0.0, 6.8),
    "diamond-tall": (4, 0.0, 0.0, 6.8),
    "triangle-up": (3, 0.0, 0.0, 6.4),
    "triangle-down": (3, 180.0, 0.0, 6.4),
    "triangle-left": (3, -90.0, 0.0, 6.4),
    "triangle-right": (3, 90.0, 0.0, 6.4),
    "pentagon": (5, 0.0, 0.0, 6.2),
    "hexagon": (6, 0.0, 0.0, 6.2),
    "octagon": (8, 22.5, 0.0, 6.2),
    "star": (5, 0.0, 0.42, 7.2),
    "hexagram": (6, 0.0, 0.55, 6.8),
    "star-square": (4, 45.0, 0.5, 7.4),
    "star-diamond": (4, 0.0, 0.45, 7.6),
    "star-triangle-up": (3, 0.0, 0.35, 7.4),
    "star-triangle-down": (3, 180.0, 0.35, 7.4),
}


@dataclass(frozen=True)
class Sign:
    """A closed outline around the origin, y downwards, about 6 units to each side: hollow or filled, dotted or not."""

    name: str
    outline: tuple[tuple[float, float], ...]
    hollow: bool
    dotted: bool = False


def sign_of(series: Series) -> Sign:
    """The sign of a series: its method's own, hollow in every second variant, dotted in every second pair."""
    symbol = method_symbol(series.method, series.variant)
    base = symbol.replace("-open", "").replace("-dot", "")
    dotted = symbol.endswith("-dot")
    return Sign(base + "-dot" * dotted, outline(base), series.hollow or "-open" in symbol, dotted)


def outline(symbol: str) -> tuple[tuple[float, float], ...]:
    """Corners of a sign; an unknown one is an octagon."""
    if symbol in _FIXED:
        return _FIXED[symbol]
    corners, turn, inner, size = _ROUND.get(symbol, _ROUND["octagon"])
    count = 2 * corners if inner else corners
    places = []
    for corner in range(count):
        radius = size * (inner if inner and corner % 2 else 1.0)
        angle = math.radians(turn - 90 + 360 * corner / count)
        places.append((round(radius * math.cos(angle), 2), round(radius * math.sin(angle), 2)))
    return tuple(places)
