"""How charts look: colours, symbols, fonts, text made safe. Designed for a light and a dark page alike.

Methods wear the Okabe-Ito colours (Okabe & Ito 2008, safe for colour-blind eyes), and a symbol too, so that no meaning
hangs on colour alone.
"""

from __future__ import annotations

import html
import math
import textwrap
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from core.charts_frames import Z95, Quality

OKABE_ITO = {
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
DASHES = ("solid", "dash", "dot", "dashdot")
VARIANTS = ("", "-open", "-dot", "-open-dot")
_METHODS = {
    "magnitude": ("blue", "circle"),
    "wanda": ("orange", "square"),
    "random": ("purple", "x"),
    "l1": ("sky", "triangle-up"),
    "l2": ("green", "triangle-down"),
    "taylor": ("vermillion", "star"),
    "sparsegpt": ("yellow", "pentagon"),
    "ria": ("purple", "hexagon"),
    "wanda_structured": ("orange", "diamond-wide"),
    "flap": ("sky", "star-square"),
    "obs": ("green", "hexagram"),
    "block_influence": ("blue", "bowtie"),
    "perplexity_greedy": ("vermillion", "hourglass"),
    "last": ("purple", "triangle-left"),
    "first": ("yellow", "triangle-right"),
    "random_layers": ("orange", "cross"),
    "hidden": ("blue", "star-triangle-up"),
    "random_weights": ("vermillion", "cross"),
    "admm": ("green", "octagon"),
    "q8_0": ("grey", "diamond-tall"),
    "q4_0": ("grey", "diamond-wide"),
}
_SPARE = ("octagon", "star-triangle-up", "star-triangle-down", "star-diamond", "cross", "diamond-tall")


@dataclass(frozen=True)
class Palette:
    """The page's colours that a chart needs."""

    wall: str
    panel: str
    ink: str
    muted: str
    grid: str


LIGHT = Palette(wall="#FAF8F4", panel="#F1EDE4", ink="#1F2933", muted="#6B7280", grid="#E3DDD1")
DARK = Palette(wall="#14181A", panel="#1D2326", ink="#E8E6E1", muted="#9AA3A8", grid="#2C3438")


def palette(dark: bool) -> Palette:
    """The colours of the dark or the light page."""
    return DARK if dark else LIGHT


def diverging(dark: bool) -> list[list[float | str]]:
    """Colours from worse to better through the page's own ground: orange, nothing, blue; told apart by every eye."""
    if dark:
        return [[0.0, "#A8550B"], [0.5, DARK.panel], [1.0, "#1F6FA8"]]
    return [[0.0, "#E8995C"], [0.5, LIGHT.panel], [1.0, "#6FB0DB"]]


def safe(text: object) -> str:
    """Text for a Plotly label: shown as it is, never read as its small HTML or as LaTeX."""
    return html.escape(str(text), quote=False).replace("$", "&#36;")


def short(text: object, most: int = 56) -> str:
    """The text, its middle left out where it is longer than `most` letters: what tells names apart is at their ends,
    method and size at the one, recovery and seed at the other."""
    words = str(text)
    if len(words) <= most:
        return words
    kept = (most - 1) // 2
    head, tail = words[: most - 1 - kept], words[len(words) - kept :]
    if " " in head[len(head) // 2 :]:  # whole words, where that leaves out little
        head = head.rpartition(" ")[0]
    if " " in tail[: len(tail) // 2]:
        tail = tail.partition(" ")[2]
    return f"{head.rstrip(' ,')}…{tail.lstrip()}"


def distinct(labels: Sequence[str], most: int) -> list[str]:
    """The names of one chart's rows, of at most `most` letters each. Of a longer one the settings go first that most
    others of its method have, too (`Taylor, 20 %…LoRA`), so that what tells it from them stays."""
    apart = [label.split(", ") for label in labels]
    common = Counter((method, part) for parts in apart for part in set(parts) for method in (parts[0], ""))
    found = [_without_common(parts, common, most) for parts in apart]
    taken: dict[str, set[str]] = {}
    for label, text in zip(labels, found, strict=True):
        taken.setdefault(text, set()).add(label)
    return [text if len(taken[text]) == 1 else short(label, most) for label, text in zip(labels, found, strict=True)]


def _without_common(parts: Sequence[str], common: Mapping[tuple[str, str], int], most: int) -> str:
    """The parts in their order, the method always; the most common of it, then of all, are left out.

    common: how many labels have a part, by (method, part) and by ("", part).
    """
    kept = list(range(len(parts)))
    counts = [(common[parts[0], part], common["", part]) for part in parts]
    for place in sorted(kept[1:], key=counts.__getitem__, reverse=True):
        if len(_joined(parts, kept)) <= most:
            break
        kept.remove(place)
    return short(_joined(parts, kept), most)


def _joined(parts: Sequence[str], kept: Sequence[int]) -> str:
    said = parts[0]
    for before, place in pairwise(kept):
        said += (", " if place == before + 1 else "…") + parts[place]
    return said + ("…" if kept[-1] < len(parts) - 1 else "")


def two_lines(text: str, width: int = 34) -> str:
    """A label for one row of a chart, in one or two lines of at most `width` letters; safe for Plotly."""
    words = text.replace(" %", "\u00a0%").replace("…", "… ")  # what belongs to the line above
    for most in range(max(len(words), width + 1), width, -1):
        lines = textwrap.wrap(short(words, most), width)
        if len(lines) <= 2:
            return "<br>".join(map(safe, lines))
    return safe(short(words, width))


def named(labels: Sequence[str], most: int = 6) -> str:
    """Some of the runs by their names, which hold commas, and how many more there are."""
    words = "; ".join(short(label, 64) for label in labels[:most])
    return words + (f"; and {len(labels) - most} more" if len(labels) > most else "")


def method_colour(method: str, dark: bool) -> str:
    """The method's colour, the same in every chart; the dense model is ink (Okabe-Ito's black, grey on dark)."""
    if method == "dense":
        return DARK.muted if dark else "#000000"
    known = _METHODS.get(method)
    if known and known[0] == "grey":  # references, no methods
        return palette(dark).muted
    names = list(OKABE_ITO)
    return OKABE_ITO[known[0] if known else names[zlib.crc32(method.encode()) % len(names)]]


def faded(method: str, dark: bool, opacity: float = 0.18) -> str:
    """The method's colour for a filled area behind its line."""
    colour = method_colour(method, dark).lstrip("#")
    red, green, blue = (int(colour[place : place + 2], 16) for place in (0, 2, 4))
    return f"rgba({red},{green},{blue},{opacity})"


def method_symbol(method: str, variant: int = 0) -> str:
    """The method's symbol; `variant` tells several settings of one method apart."""
    if method == "dense":
        return "diamond-open"
    known = _METHODS.get(method)
    base = known[1] if known else _SPARE[zlib.crc32(method.encode()) % len(_SPARE)]
    return base + VARIANTS[variant % len(VARIANTS)]


def marker(method: str, variant: int, dark: bool, size: int = 11) -> dict[str, Any]:
    """Marker of a method's points: its colour and symbol, with a rim that keeps pale colours visible."""
    colour, symbol = method_colour(method, dark), method_symbol(method, variant)
    rim = colour if "open" in symbol else palette(dark).ink
    return {
        "color": colour,
        "symbol": symbol,
        "size": size,
        "line": {"color": rim, "width": 2 if "open" in symbol else 0.8},
    }


def figure(title: str, alt: str, *, dark: bool, height: int) -> go.Figure:
    """An empty figure in the page's look. `alt` is kept in layout.meta for the page's `alt=`."""
    p = palette(dark)
    axis = {
        "gridcolor": p.grid, "zeroline": False, "linecolor": p.muted, "showline": True, "ticks": "outside",
        "tickcolor": p.muted, "ticklen": 4, "automargin": True,
        "title": {"font": {"size": 13, "color": p.ink}, "standoff": 10},
        "tickfont": {"color": p.muted, "size": 12},
    }  # fmt: skip
    layout = {
        "template": {},
        "title": {
            "text": title, "x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container",
            "yanchor": "top", "pad": {"t": 8, "l": 4}, "font": {"size": 15, "color": p.ink},
        },
        "paper_bgcolor": p.wall,
        "plot_bgcolor": p.wall,
        "font": {"family": FONT, "color": p.ink, "size": 13},
        "xaxis": axis,
        "yaxis": axis,
        "margin": {"l": 8, "r": 16, "t": 44, "b": 8},
        "height": height,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": p.panel, "bordercolor": p.muted, "font": {"family": FONT, "color": p.ink, "size": 13},
            "align": "left",
        },
        "legend": {
            "orientation": "h", "x": 0, "xref": "container", "y": -0.02, "yref": "container", "yanchor": "bottom",
            "font": {"color": p.ink, "size": 12}, "bgcolor": "rgba(0,0,0,0)",
        },
        "dragmode": "zoom",
        "meta": {"alt": alt},
    }  # fmt: skip
    return go.Figure(layout=layout)  # all at once: fifteen times as fast as update_layout


def alt(figure: go.Figure) -> str:
    """What the figure shows, in words, for people who do not see it."""
    meta = figure.layout.meta
    return str(meta["alt"]) if isinstance(meta, dict) and "alt" in meta else ""


def config(name: str) -> dict[str, Any]:
    """Plotly's mode bar: SVG in print quality under a telling name, no sending to anybody's cloud."""
    stem = "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-") or "chart"
    return {
        "displaylogo": False,
        "showSendToCloud": False,
        "responsive": True,
        "toImageButtonOptions": {"format": "svg", "filename": f"espalier-{stem}", "scale": 2},
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    }


def percent(value: float, digits: int = 1) -> str:
    """0.304 → `30.4 %`."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "–"


def measured(value: float, stderr: float, quality: Quality, *, sign: bool = False, like: float | None = None) -> str:
    """A measured value with its standard error and unit: `29.97 ± 0.31`, `+3.1 ± 4.8 points`.

    `like`: a value whose number of digits is taken, for numbers that stand together.
    """
    if not math.isfinite(value):
        return "–"
    unit = ("points" if sign else "%") if quality.fraction else quality.unit
    scale, digits = (100.0, 1) if quality.fraction else (1.0, _digits(value if like is None else like))
    if unit == "bytes":
        scale, digits, unit = 1e-6, 0, "MB"
    if unit == "MACs":
        scale, digits, unit = 1e-9, 1, "G"
    known = math.isfinite(stderr)
    shown = f"{scale * value:{'+' if sign else ''},.{digits}f}".replace("-", "−")
    shown += f" ± {scale * stderr:,.{digits}f}" if known else ""
    return f"{shown} {unit}".strip()


def delta_words(delta: float, stderr: float, quality: Quality, *, interval: bool = True) -> str:
    """A difference with its 95 % interval: `+52.30 (+49.88 to +54.72)`, `−8.0 (−14.2 to −1.8) points`; '–' for none."""
    if not math.isfinite(delta):
        return "–"
    if not interval or not math.isfinite(stderr):
        return measured(delta, stderr if not interval else math.nan, quality, sign=True)
    parts = [measured(value, math.nan, quality, sign=True, like=delta) for value in (delta, *_ends(delta, stderr))]
    unit = next((ending for ending in (" points", " MB", " G", f" {quality.unit}") if parts[0].endswith(ending)), "")
    middle, low, high = (part.removesuffix(unit) if unit.strip() else part for part in parts)
    return f"{middle} ({low} to {high}){unit}"


def _ends(delta: float, stderr: float) -> tuple[float, float]:
    return delta - Z95 * stderr, delta + Z95 * stderr


def _digits(value: float) -> int:
    size = abs(value)
    return 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 4
