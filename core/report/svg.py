"""A figure as SVG, drawn here: no browser, no script, the same on every machine. Colours and signs as in the app."""

from __future__ import annotations

import math
from html import escape

from core.charts_style import FONT, method_colour, palette
from core.report.document import Axis, Figure, Point, Series
from core.report.numbers import Numbers
from core.report.signs import sign_of
from core.report.ticks import scales

WIDTH = 760
_PLOT_HEIGHT = 320
_TOP, _RIGHT = 22, 18
_LETTER = 6.8  # mean width of a letter at 12 px
_LEGEND_LINE = 20


class _Frame:
    """Where the plot is, and how values become places."""

    def __init__(self, figure: Figure, numbers: Numbers) -> None:
        self.x, self.y = scales(figure, numbers)
        widest = max((len(text) for text in self.y.texts), default=1)
        self.names = figure.y.kind == "names"
        self.left = min(_LETTER * widest + 14, 330) + (0 if self.names else 22)
        self.height = 46.0 * len(figure.y.names) + 24 if self.names else _PLOT_HEIGHT
        self.width = WIDTH - self.left - _RIGHT
        self.bottom = _TOP + self.height

    def px(self, value: float) -> float:
        return round(self.left + self.width * min(max(self.x.at(value), -0.01), 1.01), 2)

    def py(self, value: float) -> float:
        return round(self.bottom - self.height * min(max(self.y.at(value), -0.01), 1.01), 2)


def draw(figure: Figure, numbers: Numbers, *, dark: bool = False, standalone: bool = True) -> str:
    """The figure as one SVG element. standalone: as a file of its own, with the page's ground behind it."""
    frame = _Frame(figure, numbers)
    legend, rows = _legend(figure, frame, dark)
    height = frame.bottom + 46 + _LEGEND_LINE * rows
    colours = palette(dark)
    ground = f'<rect width="{WIDTH}" height="{height:g}" fill="{colours.wall}"/>' if standalone else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" role="img" font-family="{escape(FONT, quote=True)}" font-size="12">',
        f"<title>{escape(figure.alt)}</title>",
        ground,
        *_axes(figure, frame, dark),
        *_level_lines(figure, frame, dark),
        *(_connectors(figure, frame, dark)),
        *(part for series in figure.series for part in _drawn(series, figure, frame, dark)),
        *legend,
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


# ---------------------------------------------------------------------------------------------------------------- axes


def _axes(figure: Figure, frame: _Frame, dark: bool) -> list[str]:
    colours, found = palette(dark), []
    right = frame.left + frame.width
    for place, text in zip(frame.x.ticks, frame.x.texts, strict=True):
        x = frame.px(place)
        found.append(_line(x, _TOP, x, frame.bottom, colours.grid))
        found.append(_text(x, frame.bottom + 17, text, colours.muted, "middle"))
    for place, text in zip(frame.y.ticks, frame.y.texts, strict=True):
        y = frame.py(place)
        found.append("" if frame.names else _line(frame.left, y, right, y, colours.grid))
        shown = text if len(text) <= 50 else f"{text[:49]}…"
        found.append(_text(frame.left - 8, y + 4, shown, colours.ink if frame.names else colours.muted, "end"))
    found += [
        _line(frame.left, frame.bottom, right, frame.bottom, colours.muted),
        _line(frame.left, _TOP, frame.left, frame.bottom, colours.muted),
        _text(frame.left + frame.width / 2, frame.bottom + 38, _with_note(figure.x), colours.ink, "middle"),
        _text(frame.left, _TOP - 6, figure.y.note, colours.muted, "start") if figure.y.note else "",
    ]
    if figure.y.title:
        middle = _TOP + frame.height / 2
        found.append(
            f'<text transform="translate(13 {middle:g}) rotate(-90)" text-anchor="middle" '
            f'fill="{colours.ink}">{escape(figure.y.title)}</text>'
        )
    return found


def _with_note(axis: Axis) -> str:
    return f"{axis.title} ({axis.note})" if axis.note else axis.title


def _level_lines(figure: Figure, frame: _Frame, dark: bool) -> list[str]:
    colours, found = palette(dark), []
    right = frame.left + frame.width
    for level in figure.levels:
        if figure.bars == "y":
            y = frame.py(level.value)
            found.append(_line(frame.left, y, right, y, colours.muted, dash="5 4"))
            found.append(_text(right - 4, y - 5, level.text, colours.muted, "end"))
        else:
            x = frame.px(level.value)
            found.append(_line(x, _TOP, x, frame.bottom, colours.muted, dash="5 4"))
            found.append(_text(x, _TOP - 4, level.text, colours.muted, "middle"))
    return found


def _connectors(figure: Figure, frame: _Frame, dark: bool) -> list[str]:
    """Of rows with names: what joins the first series' mark with the second's."""
    if not frame.names or len(figure.series) != 2:
        return []
    ends = zip(figure.series[0].points, figure.series[1].points, strict=True)
    return [
        _line(frame.px(one.x), frame.py(one.y), frame.px(two.x), frame.py(two.y), palette(dark).muted)
        for one, two in ends
    ]


# --------------------------------------------------------------------------------------------------------------- marks


def _drawn(series: Series, figure: Figure, frame: _Frame, dark: bool) -> list[str]:
    colour, found = method_colour(series.method, dark), []
    if series.line:
        places = " ".join(f"{frame.px(point.x):g},{frame.py(point.y):g}" for point in series.points)
        dash = ("", "7 4", "2 4", "8 4 2 4")[series.variant % 4]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        found.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>')
    for point in series.points:
        found.append(_bar(point, figure, frame, colour))
        where = f'<g transform="translate({frame.px(point.x):g} {frame.py(point.y):g})">'
        found.append(f"{where}<title>{escape(point.label)}</title>{_sign(series, dark)}</g>")
    return found


def _bar(point: Point, figure: Figure, frame: _Frame, colour: str) -> str:
    if not (math.isfinite(point.low) and math.isfinite(point.high)):
        return ""
    if figure.bars == "y":
        x, low, high = frame.px(point.x), frame.py(point.low), frame.py(point.high)
        return _line(x, low, x, high, colour, width=1.4)
    y, low, high = frame.py(point.y), frame.px(point.low), frame.px(point.high)
    return _line(low, y, high, y, colour, width=1.4)


def _sign(series: Series, dark: bool) -> str:
    """The series' sign around the origin."""
    sign, colour = sign_of(series), method_colour(series.method, dark)
    rim, width = (colour, 1.8) if sign.hollow else (palette(dark).ink, 0.8)
    fill = palette(dark).wall if sign.hollow else colour
    places = "L".join(f"{x:g} {y:g}" for x, y in sign.outline)
    drawn = f'<path d="M{places}Z" fill="{fill}" stroke="{rim}" stroke-width="{width}" stroke-linejoin="round"/>'
    return f'{drawn}<circle r="1.5" fill="{palette(dark).ink}"/>' if sign.dotted else drawn


# -------------------------------------------------------------------------------------------------------------- legend


def _legend(figure: Figure, frame: _Frame, dark: bool) -> tuple[list[str], int]:
    """Signs with names beneath the plot, as many in a row as fit; and how many rows that makes."""
    found, x, row = [], 12.0, 0
    for series in figure.series:
        wide = 38 + _LETTER * len(series.name)
        if x + wide > WIDTH - 8 and x > 12:
            x, row = 12.0, row + 1
        y = frame.bottom + 60 + _LEGEND_LINE * row
        found.append(f'<g transform="translate({x + 6:g} {y - 4:g})">{_sign(series, dark)}</g>')
        found.append(_text(x + 18, y, series.name, palette(dark).ink, "start"))
        x += wide
    return found, row + 1


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="{width:g}"{dashed}/>'


def _text(x: float, y: float, text: str, colour: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
