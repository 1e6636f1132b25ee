"""Charts of what decided: distributions of importances with the cut line. Pure: a row of anatomy.parquet goes in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from core.charts_anatomy import ATTENTION, MLP, colours
from core.charts_style import figure, palette, safe

if TYPE_CHECKING:
    from core.anatomies import RunAnatomy

_FEW = 64  # units that are drawn one by one


def importance_choices(found: RunAnatomy) -> list[tuple[int, str, str]]:
    """(layer, name, kind of row) of everything whose importances were written down, in order."""
    order = {name: place for place, name in enumerate(("layers", "stream", "attention", "mlp", *ATTENTION, *MLP))}
    rows = sorted(found.rows, key=lambda row: (order.get(row["name"], 99), row["layer"]))
    return [(int(row["layer"]), str(row["name"]), str(row["kind"])) for row in rows]


def importance_row(found: RunAnatomy, layer: int, name: str) -> dict[str, Any] | None:
    """The row of one part or matrix."""
    return next((row for row in found.rows if (row["layer"], row["name"]) == (layer, name)), None)


def importance_table(row: Mapping[str, Any]) -> pd.DataFrame:
    """Numbers behind the chart: a unit a row (unit, importance, stays), or a bin a row (from, to, stays, removed)."""
    if row["kind"] == "weights":
        edges = [10**edge if row["scale"] == "log10" else edge for edge in row["values"]]
        return pd.DataFrame({"from": edges[:-1], "to": edges[1:], "stays": row["stayed"], "removed": row["removed"]})
    names = row["members"] or range(len(row["values"]))
    return pd.DataFrame({"unit": list(names), str(row["what"]): row["values"], "stays": row["kept"]})


def cut_line(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Where the cut lies: between the last removed and the first kept, in the row's scale; equal numbers are a line.

    The first is the lower end. None where nothing was removed or everything.
    """
    kept, gone = row["least_kept"], row["most_removed"]
    if kept is None or gone is None:
        return None
    if gone <= kept:
        return (kept + gone) / 2, (kept + gone) / 2
    return kept, gone  # each output row, or each group, has a line of its own, and all of them lie here


def importance(row: Mapping[str, Any], *, dark: bool = False) -> go.Figure:
    """Distribution of the importances of one part, what stays over what goes, with the cut line."""
    what, where = str(row["what"]), _where(row)
    title = f"{what[:1].upper()}{what[1:]} of {where}"
    count = len(row["values"]) if row["kind"] == "scores" else 0
    chart = figure(title, f"{title}. {_cut_words(row)}", dark=dark, height=300)
    if row["kind"] == "weights":
        edges, log = np.asarray(row["values"], dtype=float), row["scale"] == "log10"
        _histogram(chart, edges, np.asarray(row["stayed"]), np.asarray(row["removed"]), dark, log)
        chart.update_xaxes(title_text=what)
        chart.update_yaxes(title_text="weights")
    elif count <= _FEW:
        _units(chart, row, dark)
    else:
        values, kept = np.asarray(row["values"], dtype=float), np.asarray(row["kept"], dtype=bool)
        log = bool((values > 0).all()) and values.max() > 30 * values.min()
        shown = np.log10(values) if log else values
        edges = np.histogram_bin_edges(shown, bins=48)
        stays, gone = (np.histogram(shown[which], bins=edges)[0] for which in (kept, ~kept))
        _histogram(chart, edges, stays, gone, dark, log)
        chart.update_xaxes(title_text=what)
        chart.update_yaxes(title_text=f"{row['unit']}s")
    _draw_cut(chart, row, dark, few=row["kind"] == "scores" and count <= _FEW)
    chart.update_layout(barmode="stack", bargap=0.06)
    return chart


def words(row: Mapping[str, Any]) -> str:
    """How many stay, where the cut lies, and what the numbers are, in one or two sentences."""
    if row["kind"] == "weights":
        kept, gone = sum(row["stayed"]), sum(row["removed"])
        counted = f"{gone:,} of {kept + gone:,} weights set to zero"
        counted += " (every so many rows of a large matrix)" if row["rows"] * row["columns"] > kept + gone else ""
    else:
        kept, unit = sum(bool(each) for each in row["kept"]), str(row["unit"])
        counted = f"{kept:,} of {len(row['kept']):,} {unit}s stay"
    said = f"{counted}. {_cut_words(row)}"
    if row["what"] == "magnitude":
        said += " This method scores no weight by itself: shown is how large each was before."
    if row["what"] == "loss without it":
        said += " Shown is the loss, in nats a token, of the dense model without each layer; later rounds are not."
    return said


def _where(row: Mapping[str, Any]) -> str:
    name = {"attention": "attention", "mlp": "MLP", "layers": "the layers", "stream": "the stream"}.get(row["name"])
    if row["layer"] < 0:
        return name or str(row["name"])
    return f"layer {row['layer']}, {name or row['name']}"


def _cut_words(row: Mapping[str, Any]) -> str:
    found = cut_line(row)
    if found is None:
        return "Nothing was removed here."
    if found[0] == found[1]:
        return "The cut is a line: all below it went."
    return "Each row has its own line: all of them lie in the shaded band."


def _histogram(chart: go.Figure, edges: Any, stays: Any, gone: Any, dark: bool, log: bool) -> None:
    c, middle = colours(dark), (edges[:-1] + edges[1:]) / 2
    ends = [10.0**edge if log else float(edge) for edge in edges]
    for name, counts, style in (
        ("stays", stays, {"color": c["leaf"]}),
        ("removed", gone, {"color": "rgba(0,0,0,0)", "line": {"color": c["cut"], "width": 1.2}}),
    ):
        chart.add_trace(
            go.Bar(
                x=middle,
                y=[int(count) or None for count in counts],  # an empty hollow bar would be a line
                width=np.diff(edges) * 0.94,
                name=name,
                marker=style,
                customdata=[[ends[i], ends[i + 1]] for i in range(len(middle))],
                hovertemplate=f"%{{customdata[0]:.4g}} – %{{customdata[1]:.4g}}<br>%{{y:,}} {name}<extra></extra>",
            )
        )
    if log:
        ticks = [t for t in range(math.floor(edges[0]), math.ceil(edges[-1]) + 1) if edges[0] <= t <= edges[-1]]
        places = ticks if len(ticks) > 1 else np.linspace(edges[0], edges[-1], 5).tolist()
        chart.update_xaxes(tickvals=places, ticktext=[f"{10.0**place:.3g}" for place in places])


def _units(chart: go.Figure, row: Mapping[str, Any], dark: bool) -> None:
    """One bar a unit, hollow where it went."""
    c, names = colours(dark), list(row["members"] or range(len(row["values"])))
    unit = "layer" if row["unit"] == "decoder layer" else str(row["unit"])
    for name, wanted, style in (
        ("stays", True, {"color": c["leaf"]}),
        ("removed", False, {"color": "rgba(0,0,0,0)", "line": {"color": c["cut"], "width": 1.6}}),
    ):
        some = [place for place, stays in enumerate(row["kept"]) if bool(stays) is wanted]
        chart.add_trace(
            go.Bar(
                x=[names[place] for place in some],
                y=[row["values"][place] for place in some],
                name=name,
                marker=style,
                width=0.8,
                hovertemplate=f"{safe(unit)} %{{x}}, {name}<br>%{{y:.5g}}<extra></extra>",
            )
        )
    chart.update_xaxes(title_text=safe(unit), dtick=1 if len(names) <= 16 else 5)
    chart.update_yaxes(title_text=safe(row["what"]), **_room(row["values"]))


def _room(values: Sequence[float]) -> dict[str, Any]:
    """Where all values are nearly alike, an axis that shows their differences."""
    low, high = min(values), max(values)
    return {"range": [low - 0.15 * (high - low), high + 0.1 * (high - low)]} if low > 0 and high < 2 * low else {}


def _draw_cut(chart: go.Figure, row: Mapping[str, Any], dark: bool, *, few: bool) -> None:
    found = cut_line(row)
    if found is None:
        return
    p, line = palette(dark), {"color": palette(dark).ink, "width": 1.5, "dash": "dash"}
    low, high = found
    if not few and row["kind"] == "scores" and chart.layout.xaxis.tickvals is not None:
        low, high = (math.log10(each) for each in found)  # the axis of _histogram is in exponents
    if few:
        if low == high:
            chart.add_hline(y=low, line=line, annotation_text="cut", annotation_font_color=p.muted)
    elif low == high:
        chart.add_vline(x=low, line=line, annotation_text="cut", annotation_font_color=p.muted)
    else:
        chart.add_vrect(x0=low, x1=high, fillcolor=p.muted, opacity=0.14, line_width=0)
