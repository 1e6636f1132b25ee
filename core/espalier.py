"""The espalier: a model drawn as a tree trained flat against a wall. A pure function from layer sizes to SVG text.

The trunk is the residual stream; every decoder layer is one horizontal branch, attention heads as cells to the left and
MLP channels as a bar to the right. What stays is leaf green, what goes a hollow terracotta outline at the branch's tip.
Layers outside the chosen range stay pale, masks thin a branch to its density, removed layers are hollow stubs. Where
channels of the residual stream go, the trunk is narrower, inside its old outline, and every branch thinner.

Widths are per cent of the place the figure gets and heights are pixels, so that text stays sharp on every screen.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from core.models.plans import Plan

Scale = Literal["small", "medium", "large"]
Side = Literal["heads", "mlp"]

LIGHT = {"leaf": "#2F6B57", "cut": "#C8553D", "ink": "#1F2933", "muted": "#6B7280", "trunk": "#E3DDD1"}
DARK = {"leaf": "#7FB69A", "cut": "#E07A5F", "ink": "#E8E6E1", "muted": "#9AA3A8", "trunk": "#2C3438"}
PALE = 0.3
UNTOUCHED = 0.998
"""Denser layers count as full: real weights hold a few zeros of their own (SmolLM2-135M: 0.03 %)."""
_MATRICES = {"attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}
_UNITS = ("heads", "kv", "mlp")
_HEADER = 22.0
_FOOTER = 20.0
_TRUNK = 22.0


@dataclass(frozen=True)
class Branch:
    """One decoder layer before and after a cut. Densities are shares of non-zero weights, 1 = no zeros.

    `kept_heads` are the query heads that stay, by their old index; None where only their number is known. `hidden` are
    the channels of the residual stream, the same for all branches; (0, 0) where nobody says. `example`: the scores will
    decide how much this layer loses or whether it goes, and what is drawn is one even way.
    """

    layer: int
    selected: bool
    heads: tuple[int, int]
    kv_heads: tuple[int, int]
    mlp: tuple[int, int]
    attention_density: float = 1.0
    mlp_density: float = 1.0
    kept_heads: tuple[int, ...] | None = None
    hidden: tuple[int, int] = (0, 0)
    example: bool = False

    @property
    def dropped(self) -> bool:
        """Whether nothing is left of the layer."""
        return self.heads[1] == 0 and self.mlp[1] == 0 and self.heads[0] + self.mlp[0] > 0

    @property
    def changed(self) -> bool:
        """Whether the layer loses units or weights."""
        narrower = self.hidden[0] != self.hidden[1]
        return self.heads[0] != self.heads[1] or self.mlp[0] != self.mlp[1] or narrower or min(_density(self)) < 1

    @property
    def narrowed(self) -> float:
        """What is left of the stream's width, as a share."""
        return self.hidden[1] / self.hidden[0] if self.hidden[0] else 1.0

    def sentence(self) -> str:
        """What happens in this layer, for people who point at it or hear it read."""
        about = " about" if self.example and self.changed else ""
        if self.dropped:
            return f"Layer {self.layer}: removed{', for example' if self.example else ''}"
        changes = [
            _change(*self.heads, "heads"),
            _change(*self.kv_heads, "KV heads"),
            _change(*self.mlp, "MLP channels"),
        ]
        if self.attention_density < 1:
            changes.append(f"attention {1 - self.attention_density:.1%} zeros")
        if self.mlp_density < 1:
            changes.append(f"MLP {1 - self.mlp_density:.1%} zeros")
        if self.hidden[0] != self.hidden[1]:
            changes.append(_change(*self.hidden, "channels of the stream"))
        return f"Layer {self.layer}:{about} {', '.join(changes)}{'' if self.selected else ' (not chosen)'}"


def _change(before: int, after: int, what: str) -> str:
    return f"{before:,} {what}" if before == after else f"{before:,} → {after:,} {what}"


def branches_of_plan(plan: "Plan", parts: Iterable[str] = ("attention", "mlp")) -> list[Branch]:
    """Branches of a plan (core.models.sizes); `parts` are the experiment's, and say where a mask puts its zeros."""
    chosen, found = set(parts), []
    hidden = (plan.before.hidden_size, plan.after.hidden_size)
    for cut in plan.cuts:
        density = 1.0
        if cut.zeros:
            shapes = plan.before.matrix_shapes(cut.layer)
            reach = sum(shapes[role][0] * shapes[role][1] for part in chosen for role in _MATRICES[part])
            density = 1 - cut.zeros / reach
        found.append(
            Branch(
                cut.layer,
                cut.selected,
                (cut.before.heads, cut.after.heads),
                (cut.before.kv_heads, cut.after.kv_heads),
                (cut.before.mlp, cut.after.mlp),
                density if "attention" in chosen else 1.0,
                density if "mlp" in chosen else 1.0,
                hidden=hidden,
                example=cut.selected and not plan.exact,
            )
        )
    return found


def branches_of_rows(rows: Iterable[Mapping[str, Any]]) -> list[Branch]:
    """Branches of the store's `layers` rows of one run (layer, heads_before, …, density); changed means chosen.

    Where whole layers went or the stream is narrower, all layers were chosen from.
    """
    found = []
    for row in sorted(rows, key=lambda r: int(r["layer"])):
        heads, kv, mlp = ((_whole(row, f"{name}_before"), _whole(row, f"{name}_after")) for name in _UNITS)
        hidden = (_whole(row, "hidden_before"), _whole(row, "hidden_after"))
        value = row.get("density")
        density = float(value) if value is not None and value == value else 1.0  # nan where the store has none
        density = 1.0 if density > UNTOUCHED else density
        resized = any(before != after for before, after in (heads, kv, mlp))
        thin = 1.0 if resized else density
        chosen = resized or density < 1 or hidden[0] != hidden[1]
        found.append(Branch(int(row["layer"]), chosen, heads, kv, mlp, thin, thin, hidden=hidden))
    if any(branch.dropped for branch in found):
        found = [replace(branch, selected=True) for branch in found]
    return found


def _whole(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name)
    return int(value) if value is not None and value == value else 0


def dense_branches(layers: Iterable[tuple[int, int, int]]) -> list[Branch]:
    """Branches of a model that nothing was cut from, given (heads, KV heads, MLP channels) of each layer."""
    return [Branch(i, True, (h, h), (kv, kv), (mlp, mlp)) for i, (h, kv, mlp) in enumerate(layers)]


def summary(branches: Sequence[Branch]) -> str:
    """The whole figure in one sentence: its text alternative."""
    changed = [b for b in branches if b.changed]
    if not branches:
        return "No layers."
    if not changed:
        return f"{len(branches)} layers, nothing removed."
    gone = [str(b.layer) for b in branches if b.dropped]
    if gone and any(b.example for b in branches):
        return f"{len(branches)} layers, {len(gone)} of them removed: the scores decide which."
    if gone:
        return f"{len(branches)} layers, {len(gone)} of them removed: {', '.join(gone)}."
    return f"{len(branches)} layers, {len(changed)} of them cut. {changed[0].sentence()}."


# -------------------------------------------------------------------------------------------------------------- drawing


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
        return self.pitch * (1.0 if self.pitch < 2.5 else 0.62) * self.narrowed

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
    wide = 6.0 if f.scale == "small" else 3.5
    places = (f.heads_width - wide, f.bar) if f.scale == "small" else (f.heads_width - wide / 2, f.bar - wide / 2)
    drawn = "".join(
        f'<rect x="{x:.6g}%" y="{f.y(row) + 0.5:.6g}" width="{wide:.6g}%" height="{max(f.thick - 1, 0.5):.6g}"/>'
        for row, branch in enumerate(branches)
        if branch.dropped
        for x in places
    )
    thin = 0.8 if f.scale == "small" else 1
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
    for _, alike in groupby(
        branches, key=lambda b: (b.selected, b.heads, b.kv_heads, b.mlp, b.kept_heads, _density(b))
    ):
        same = list(alike)
        tops = tuple(f.y(row + i) for i in range(len(same)))
        outlined = tuple((y, f.thick) for y in tops)
        if f.pitch < 8:
            outlined = ((tops[0], tops[-1] - tops[0] + f.thick),)
        found.append(_Rows(same[0], tops, outlined, f.thick))
        row += len(same)
    return [rows for rows in found if not rows.branch.dropped]


def _density(branch: Branch) -> tuple[float, float]:
    return round(branch.attention_density, 3), round(branch.mlp_density, 3)


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
    for (total, left, density), alike in groupby(branches, key=lambda b: (*b.mlp, round(b.mlp_density, 3))):
        same = list(alike)
        text = f"{left:,}" if left < total else (f"{density:.0%}" if density < 1 else "")
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
