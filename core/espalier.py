"""The espalier: a model drawn as a tree trained flat against a wall. A pure function from layer sizes to SVG text.

The trunk is the residual stream; every decoder layer is one horizontal branch, attention heads as cells to the left and
MLP channels as a bar to the right. What stays is leaf green, what goes a hollow terracotta outline at the branch's tip.
Layers outside the chosen range stay pale, masks thin a branch to its density, removed layers are hollow stubs. Where
channels of the residual stream go, the trunk is narrower, inside its old outline, and every branch thinner.

Widths are per cent of the place the figure gets and heights are pixels, so that text stays sharp on every screen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby
from typing import Literal

from core.branches import UNTOUCHED, Branch, branches_of_plan, branches_of_rows, dense_branches, density, summary

__all__ = [
    "UNTOUCHED",
    "Branch",
    "branches_of_plan",
    "branches_of_rows",
    "dense_branches",
    "espalier_svg",
    "summary",
]

Scale = Literal["small", "medium", "large"]
Side = Literal["heads", "mlp"]

LIGHT = {"leaf": "#2F6B57", "cut": "#C8553D", "ink": "#1F2933", "muted": "#6B7280", "trunk": "#E3DDD1"}
DARK = {"leaf": "#7FB69A", "cut": "#E07A5F", "ink": "#E8E6E1", "muted": "#9AA3A8", "trunk": "#2C3438"}
PALE = 0.3
_HEADER = 22.0
_FOOTER = 20.0
_TRUNK = 22.0


@dataclass(frozen=True)
class _Frame:
    """Where things stand: per cents across, pixels down."""

    scale: Scale
    pitch: float
    top: float
    heads_width: float
    trunk: float
    bar: float
    bar_width: float
    colours: Mapping[str, str]
    narrowed: float = 1.0

    @property
    def thick(self) -> float:
        if self.pitch < 2.5:
            return self.pitch  # rows that touch: thinner ones would be stripes
        return self.pitch * 0.62 * self.narrowed

    def y(self, row: int) -> float:
        return self.top + row * self.pitch + (self.pitch - self.thick) / 2


def espalier_svg(
    branches: Sequence[Branch], *, scale: Scale = "medium", dark: bool | None = None, label: str = ""
) -> str:
    """The figure as one line of SVG.

    `scale`: small (no text, 112 pixels wide, for table rows and chat columns), medium (a preview as wide as its place),
    large (taller rows). `dark` None follows the page's colour scheme by CSS; True or False fixes it, for files.
    `label` is what a screen reader says; empty takes `summary`. Every text is escaped.
    """
    narrowed = min((branch.narrowed for branch in branches), default=1.0)
    frame = replace(_frame(branches, scale, _colours(dark)), narrowed=narrowed)
    footer = _FOOTER if narrowed < 1 else 2
    height = frame.top + frame.pitch * len(branches) + (footer if scale != "small" else 0)
    width = "112" if scale == "small" else "100%"
    body = [_header(frame)] if scale != "small" else []
    body += [_wood(frame, branches), _heads(frame, branches), _channels(frame, branches), _stubs(frame, branches)]
    if scale != "small":
        body += [_numbers(frame, branches), _tips(frame, branches)]
    text = escape(label or summary(branches), quote=True)
    style = "display:block;overflow:visible;font-variant-numeric:tabular-nums"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="espalier espalier-{scale}" role="img" aria-label="{text}" '
        f'width="{width}" height="{height:.6g}" style="{style}">{"".join(body)}</svg>'
    )


def _colours(dark: bool | None) -> Mapping[str, str]:
    if dark is None:
        return {name: f"light-dark({LIGHT[name]},{DARK[name]})" for name in LIGHT}
    return DARK if dark else LIGHT


def _frame(branches: Sequence[Branch], scale: Scale, colours: Mapping[str, str]) -> _Frame:
    n = max(len(branches), 1)
    most = max((b.heads[0] for b in branches), default=1)
    if scale == "small":
        return _Frame(scale, min(max(44 / n, 1.5), 5), 0, 30, 36, 40, 60, colours)
    pitch = min(max(330 / n, 5), 15) if scale == "medium" else min(max(640 / n, 10), 22)
    heads = min(max(2.3 * most, 16), 40)
    return _Frame(scale, pitch, _HEADER, heads, heads + 6, heads + 12, 87 - heads - 12, colours)


def _header(f: _Frame) -> str:
    style = f'fill="{f.colours["muted"]}" font-size="11"'
    return (
        f'<text x="{f.heads_width:.6g}%" y="11" text-anchor="end" {style}>heads</text>'
        f'<text x="{f.trunk:.6g}%" y="11" text-anchor="middle" {style}>layer</text>'
        f'<text x="{f.bar:.6g}%" y="11" {style}>MLP channels</text>'
    )


def _wood(f: _Frame, branches: Sequence[Branch]) -> str:
    """Trunk and twigs."""
    height = f.pitch * len(branches)
    if f.scale == "small":
        slim = (
            f'<rect x="{f.trunk:.6g}%" y="{f.top:.6g}" width="2" height="{height:.6g}" transform="translate(-2 0)" '
            f'fill="{f.colours["muted"]}" opacity="0.6"/>'
        )
        return slim + (_lost_sides(f, 8.0, f.top, height) if f.narrowed < 1 else "")
    twigs = "".join(
        f'<line x1="{x1:.6g}%" x2="{x2:.6g}%" y1="{y:.6g}" y2="{y:.6g}"/>'
        for row, branch in enumerate(branches)
        for y in (f.y(row) + f.thick / 2,)
        for x1, x2 in (_twig(f, branch))
    )
    wide = _TRUNK * f.narrowed
    trunk = (
        f'<g stroke="{f.colours["trunk"]}" stroke-width="1.5">{twigs}</g>'
        f'<rect x="{f.trunk:.6g}%" y="{f.top - 3:.6g}" width="{wide:.6g}" height="{height + 6:.6g}" '
        f'rx="{min(6, wide / 3):.6g}" transform="translate({-wide / 2:.6g} 0)" fill="{f.colours["trunk"]}"/>'
    )
    if f.narrowed == 1:
        return trunk
    before, after = next(branch.hidden for branch in branches if branch.narrowed < 1)
    return (
        f"{trunk}{_lost_sides(f, _TRUNK, f.top - 3, height + 6)}"
        f'<text x="{f.trunk:.6g}%" y="{f.top + height + 15:.6g}" text-anchor="middle" font-size="11" '
        f'fill="{f.colours["muted"]}">stream {before:,} → {after:,}</text>'
    )


def _lost_sides(f: _Frame, wide: float, top: float, height: float) -> str:
    """Hollow strips on both sides of the trunk: channels of the stream that go."""
    lost = wide * (1 - f.narrowed) / 2
    return "".join(
        f'<rect x="{f.trunk:.6g}%" y="{top:.6g}" width="{lost:.6g}" height="{height:.6g}" fill="none" '
        f'transform="translate({shift:.6g} 0)" stroke="{f.colours["cut"]}" stroke-width="0.8"/>'
        for shift in (-wide / 2, wide / 2 - lost)
    )


def _twig(f: _Frame, branch: Branch) -> list[tuple[float, float]]:
    if branch.dropped:
        return [(f.trunk - 3.6, f.trunk + 3.6)]
    return [(f.heads_width, f.bar)]


def _stubs(f: _Frame, branches: Sequence[Branch]) -> str:
    """What is left of removed layers: a short hollow stub on each side, and then nothing."""
    small = f.scale == "small"
    wide = 9.0 if small else 3.5
    places = (f.heads_width - wide, f.bar) if small else (f.heads_width - wide / 2, f.bar - wide / 2)
    inset = min(0.5, f.thick / 4)
    gone: list[list[float]] = []  # top and bottom; rows that touch share an outline
    for row, branch in enumerate(branches):
        if not branch.dropped:
            continue
        if gone and f.thick == f.pitch and gone[-1][1] >= f.y(row) - 0.01:
            gone[-1][1] = f.y(row) + f.thick
        else:
            gone.append([f.y(row), f.y(row) + f.thick])
    drawn = "".join(
        f'<rect x="{x:.6g}%" y="{top + inset:.6g}" width="{wide:.6g}%" height="{bottom - top - 2 * inset:.6g}"/>'
        for top, bottom in gone
        for x in places
    )
    thin = 0.8 if small else 1
    return f'<g fill="none" stroke="{f.colours["cut"]}" stroke-width="{thin}">{drawn}</g>' if drawn else ""


def _layer(f: _Frame, x: float, width: float, units: float, height: float, paths: Mapping[str, Sequence[str]]) -> str:
    """One side of the tree: kept, pale and cut shapes in units across and pixels down, stretched to its place."""
    drawn = []
    for name in ("kept", "pale"):
        if paths[name]:
            opacity = f' opacity="{PALE}"' if name == "pale" else ""
            drawn.append(f'<path d="{"".join(paths[name])}" fill="{f.colours["leaf"]}"{opacity}/>')
    if paths["cut"]:
        drawn.append(
            f'<path d="{"".join(paths["cut"])}" fill="none" stroke="{f.colours["cut"]}" '
            f'stroke-width="{0.8 if f.scale == "small" else 1}" vector-effect="non-scaling-stroke"/>'
        )
    return (
        f'<svg x="{x:.6g}%" y="0" width="{width:.6g}%" height="{height:.6g}" viewBox="0 0 {units:.6g} {height:.6g}" '
        f'preserveAspectRatio="none" overflow="visible">{"".join(drawn)}</svg>'
    )


def _box(x: float, y: float, width: float, height: float) -> str:
    return f"M{x:.6g} {y:.6g}h{width:.6g}v{height:.6g}h{-width:.6g}z"


@dataclass(frozen=True)
class _Rows:
    """Neighbouring branches that are alike: the pixel rows that their fillings take, and those of their outlines.

    Where rows are too thin for an outline each, one outline holds them all.
    """

    branch: Branch
    filled: tuple[float, ...]
    outlined: tuple[tuple[float, float], ...]
    thick: float

    def fill(self, x: float, width: float, density: float = 1.0) -> str:
        """The filling from `x` on; of a mask's rows only the share that is not zero."""
        height = self.thick * density
        return "".join(_box(x, y + self.thick - height, width, height) for y in self.filled) if height else ""

    def outline(self, x: float, width: float) -> str:
        return "".join(_box(x, y + 0.5, width, height - 1) for y, height in self.outlined)


def _rows(f: _Frame, branches: Sequence[Branch]) -> list[_Rows]:
    found, row = [], 0
    for _, alike in groupby(branches, key=lambda b: (b.selected, b.heads, b.kv_heads, b.mlp, b.kept_heads, density(b))):
        same = list(alike)
        tops = tuple(f.y(row + i) for i in range(len(same)))
        outlined = tuple((y, f.thick) for y in tops)
        if f.pitch < 8:
            outlined = ((tops[0], tops[-1] - tops[0] + f.thick),)
        found.append(_Rows(same[0], tops, outlined, f.thick))
        row += len(same)
    return [rows for rows in found if not rows.branch.dropped]


def _heads(f: _Frame, branches: Sequence[Branch]) -> str:
    """Cells to the left of the trunk; a KV group's query heads stand closer together."""
    gap = 0.4
    units = max((b.heads[0] + gap * max(b.kv_heads[0] - 1, 0) for b in branches), default=1.0)
    paths: dict[str, list[str]] = {"kept": [], "pale": [], "cut": []}
    for rows in _rows(f, branches):
        branch = rows.branch
        group = branch.heads[0] // max(branch.kv_heads[0], 1)
        for first, count, stays in _cells(branch, group, merged=f.scale == "small"):
            x = units - first - count - gap * (first // group)
            x, width = (x, count) if f.scale == "small" else (x + 0.12, 0.76)
            if stays:
                paths["kept" if branch.selected else "pale"].append(rows.fill(x, width, branch.attention_density))
            if not stays or branch.attention_density < 1:
                paths["cut"].append(rows.outline(x, width))
    return _layer(f, 0, f.heads_width, units, f.top + f.pitch * len(branches), paths)


def _cells(branch: Branch, group: int, *, merged: bool) -> list[tuple[int, int, bool]]:
    """(place counted from the trunk, number of heads, whether they stay); merged: alike neighbours are one."""
    stays = _staying(branch, group)
    if not merged:
        return [(place, 1, place in stays) for place in range(branch.heads[0])]
    cells, place = [], 0
    for (_, kept), same in groupby(range(branch.heads[0]), key=lambda p: (p // group, p in stays)):
        count = len(list(same))
        cells.append((place, count, kept))
        place += count
    return cells


def _staying(branch: Branch, group: int) -> set[int]:
    """Places, counted from the trunk, of the heads that stay; by number alone: whole groups, or the same in each."""
    total, left = branch.heads
    if branch.kept_heads is not None:
        return {total - 1 - head for head in branch.kept_heads}
    if branch.kv_heads[0] == branch.kv_heads[1] and branch.kv_heads[0]:
        each = left // branch.kv_heads[0]
        if each * branch.kv_heads[0] == left:
            return {place for place in range(total) if place % group < each}
    return set(range(left))


def _channels(f: _Frame, branches: Sequence[Branch]) -> str:
    """Bars to the right of the trunk, all to one scale."""
    units = float(max((b.mlp[0] for b in branches), default=1) or 1)
    paths: dict[str, list[str]] = {"kept": [], "pale": [], "cut": []}
    for rows in _rows(f, branches):
        branch = rows.branch
        total, left = branch.mlp
        if left:
            paths["kept" if branch.selected else "pale"].append(rows.fill(0, left, branch.mlp_density))
        if branch.mlp_density < 1:
            paths["cut"].append(rows.outline(0, left))
        if left < total:
            paths["cut"].append(rows.outline(left, total - left))
    return _layer(f, f.bar, f.bar_width, units, f.top + f.pitch * len(branches), paths)


def _numbers(f: _Frame, branches: Sequence[Branch]) -> str:
    """Layer numbers in the trunk: all where there is room, else every fifth."""
    every = 1 if f.pitch >= 9 else 5
    size = min(max(f.pitch - 2.4, 8), 11)
    texts = []
    for row, branch in enumerate(branches):
        if branch.layer % every:
            continue
        colour = f.colours["ink" if branch.selected and not branch.dropped else "muted"]
        y = f.y(row) + f.thick / 2
        texts.append(f'<text x="{f.trunk:.6g}%" y="{y:.6g}" fill="{colour}">{branch.layer}</text>')
    return f'<g font-size="{size:.6g}" text-anchor="middle" dominant-baseline="central">{"".join(texts)}</g>'


def _tips(f: _Frame, branches: Sequence[Branch]) -> str:
    """What is left of each bar, once for neighbours that are alike; and the places that people can point at."""
    texts, row = [], 0
    for (total, left, share), alike in groupby(branches, key=lambda b: (*b.mlp, round(b.mlp_density, 3))):
        same = list(alike)
        text = f"{left:,}" if left < total else (f"{share:.0%}" if share < 1 else "")
        if text and same[0].example:
            text = f"≈ {text}"
        if same[0].dropped:
            text = "e.g. removed" if same[0].example else "removed"
        if text:
            y = f.y(row) + f.thick / 2
            texts.append(f'<text x="100%" y="{y:.6g}" fill="{f.colours["muted"]}">{text}</text>')
        row += len(same)
    places = "".join(
        f'<rect x="0" y="{f.top + i * f.pitch:.6g}" width="100%" height="{f.pitch:.6g}" fill="transparent">'
        f"<title>{escape(branch.sentence())}</title></rect>"
        for i, branch in enumerate(branches)
    )
    return f'<g font-size="11" text-anchor="end" dominant-baseline="central">{"".join(texts)}</g>{places}'
