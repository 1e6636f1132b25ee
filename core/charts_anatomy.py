"""Charts of Anatomy: what one run removed, what decided, and where it hurts. Pure: rows in, Plotly figures out.

Leaf and cut are used for kept and cut alone. Each chart has a table of the same numbers (`…_table`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go

from core.charts_style import figure, palette, percent, safe
from core.espalier import DARK, LIGHT

if TYPE_CHECKING:
    from core.anatomies import RunAnatomy

ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")
MAP_COLUMNS = ("layer", "part", "unit", "share", "says")
_PALE = 0.3
_GAP = 0.35  # between KV groups, in heads


def colours(dark: bool) -> Mapping[str, str]:
    """leaf (kept), cut (removed), ink, muted, trunk."""
    return DARK if dark else LIGHT


# ------------------------------------------------------------------------------------------------------------------ map


def map_table(found: RunAnatomy) -> pd.DataFrame:
    """Every cell of the map: layer, part (heads, MLP or a matrix), unit, share that stays, exact numbers in words."""
    rows: list[dict[str, Any]] = []
    scores = {(row["layer"], row["name"]): row for row in found.rows if row["kind"] == "scores"}
    for layer in found.layers:
        index = int(layer["layer"])
        if index in found.dropped:
            rows.append({"layer": index, "part": "layer", "unit": 0, "share": 0.0, "says": f"layer {index}: removed"})
        elif found.matrices:
            rows += _matrix_cells(found, layer)
        else:
            rows += _head_cells(layer, scores.get((index, "attention")))
            rows.append(_channel_cell(layer, scores.get((index, "mlp"))))
    return pd.DataFrame(rows, columns=list(MAP_COLUMNS))


def _matrix_cells(found: RunAnatomy, layer: Mapping[str, Any]) -> list[dict[str, Any]]:
    index, densities = int(layer["layer"]), layer.get("densities") or {}
    shapes = found.architecture.matrix_shapes(index) if found.architecture is not None else {}
    cells = []
    for place, role in enumerate((*ATTENTION, *MLP)):
        density = densities.get(role, layer.get("density") if not densities else 1.0)
        share = float(density) if isinstance(density, int | float) else 1.0
        of = f" of {shapes[role][0]:,} × {shapes[role][1]:,} weights" if role in shapes else ""
        says = f"layer {index}, {role}: {percent(1 - share, 2)} zeros{of}"
        cells.append({"layer": index, "part": role, "unit": place, "share": share, "says": says})
    return cells


def _head_cells(layer: Mapping[str, Any], scores: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    index, heads, groups = int(layer["layer"]), int(layer["heads_before"]), int(layer["kv_before"])
    rep = heads // groups if groups else 1
    stays = set(kept_heads(layer))
    by_group = scores is not None and scores["unit"] == "KV group"
    cells = []
    for head in range(heads):
        says = f"layer {index}, head {head}" + (f" of KV group {head // rep}" if rep > 1 else "")
        says += ": stays" if head in stays else ": removed"
        unit = head // rep if by_group else head
        if scores is not None and unit < len(scores["values"] or ()):
            says += f", importance {scores['values'][unit]:.4g}" + (" (the group's)" if by_group and rep > 1 else "")
        cells.append({"layer": index, "part": "heads", "unit": head, "share": float(head in stays), "says": says})
    return cells


def kept_heads(layer: Mapping[str, Any]) -> list[int]:
    """Query heads that stay, by their old number; by number alone where it was not written down."""
    named = layer.get("query_heads")
    if isinstance(named, list):
        return [int(each) for each in named]
    before, after = int(layer["heads_before"]), int(layer["heads_after"])
    groups, left = int(layer["kv_before"]), int(layer["kv_after"])
    if groups and groups == left and after < before and after % groups == 0:  # the same number in every group
        rep, each = before // groups, after // groups
        return [head for head in range(before) if head % rep < each]
    return list(range(after))


def _channel_cell(layer: Mapping[str, Any], scores: Mapping[str, Any] | None) -> dict[str, Any]:
    index, before, after = int(layer["layer"]), int(layer["mlp_before"]), int(layer["mlp_after"])
    says = f"layer {index}, MLP: {after:,} of {before:,} channels stay"
    if scores is not None and scores["least_kept"] is not None and scores["most_removed"] is not None:
        says += f"; cut at importance {(scores['least_kept'] + scores['most_removed']) / 2:.4g}"
    return {"layer": index, "part": "MLP", "unit": 0, "share": after / before if before else 0.0, "says": says}


def espalier_map(found: RunAnatomy, *, dark: bool = False) -> go.Figure:
    """The large espalier: heads (or q k v o) as cells left of the trunk, MLP channels (gate up down) to the right."""
    table, c, n = map_table(found), colours(dark), len(found.layers)
    pitch = min(max(520 / max(n, 1), 10), 22)
    chart = figure("What was removed", _map_words(found), dark=dark, height=round(min(max(96 + n * pitch, 260), 1600)))
    left, right = table[table["part"].isin(["heads", *ATTENTION])], table[table["part"].isin(["MLP", *MLP])]
    most = float(left["unit"].max()) + 1 if len(left) else 1.0
    whole = {int(row["layer"]): float(row["mlp_before"]) for row in found.layers}
    first = found.layers[0] if found.layers and not found.matrices else {}
    group = max(int(first.get("heads_before", 0)) // max(int(first.get("kv_before", 1)), 1), 1) if first else most
    wide = most + _GAP * (most // group - 1)
    widest = float(len(MLP)) if found.matrices else max(whole.values(), default=1.0) or 1.0

    def cell(row: Mapping[str, Any]) -> tuple[float, float]:
        place = most - 1 - float(row["unit"])  # read from left to right, the last beside the trunk
        return place + _GAP * (place // group) + 0.06, 0.88

    def bar(row: Mapping[str, Any]) -> tuple[float, float]:
        if found.matrices:
            return float(row["unit"]) - len(ATTENTION) + 0.04, 0.92
        return 0.0, whole[int(row["layer"])]

    for cells, axis, place in ((left, "x", cell), (right, "x2", bar)):
        _bars(chart, cells, axis, place, _chosen(found), c)
    _stubs(chart, table[table["part"] == "layer"], {"x": 0.07 * wide, "x2": 0.05 * widest}, c)
    middle = 0.36 if most <= 12 else 0.48
    _axes(chart, middle, wide, widest, masks=bool(found.matrices))
    _trunk(chart, found, middle, palette(dark).muted, c)
    return chart


def _axes(chart: go.Figure, middle: float, most: float, widest: float, *, masks: bool) -> None:
    """Heads grow to the left of the trunk, MLP channels to the right; only their number has an axis."""
    plain = {"showgrid": False, "showline": False, "ticks": "", "showticklabels": False}
    chart.update_layout(barmode="overlay", bargap=0.34, showlegend=False, xaxis2=chart.layout.xaxis)
    chart.update_layout(
        xaxis={
            **plain,
            "domain": [0, middle - 0.035],
            "range": [most, 0],
            "title": {"text": "q · k · v · o" if masks else "heads"},
        },
        xaxis2={
            **plain,
            "domain": [middle + 0.035, 1],
            "range": [0, widest * 1.01],
            "showticklabels": not masks,
            "anchor": "y",
            "title": {"text": "gate · up · down" if masks else "MLP channels"},
        },
        yaxis={**plain, "autorange": "reversed", "anchor": "x"},
    )


def _chosen(found: RunAnatomy) -> set[int]:
    """Layers that the method chose from; the others are pale."""
    if found.selected is None:
        return {int(row["layer"]) for row in found.layers}
    return set(range(found.selected[0], found.selected[1] + 1))


def _bars(chart: go.Figure, cells: pd.DataFrame, axis: str, place: Any, chosen: set[int], c: Mapping[str, str]) -> None:
    """What stays filled, what goes as the hollow rest of its cell."""
    kept: dict[str, list[Any]] = {name: [] for name in ("x", "base", "y", "says", "opacity")}
    gone: dict[str, list[Any]] = {name: [] for name in ("x", "base", "y", "says")}
    for row in cells.to_dict("records"):
        start, width = place(row)
        share = float(row["share"])
        stays = 1.0 if share > 0.998 else share
        if stays > 0:
            for name, value in (
                ("x", width * stays),
                ("base", start),
                ("y", row["layer"]),
                ("says", safe(row["says"])),
            ):
                kept[name].append(value)
            kept["opacity"].append(1.0 if int(row["layer"]) in chosen else _PALE)
        if stays < 1:
            for name, value in (
                ("x", width * (1 - stays)),
                ("base", start + width * stays),
                ("y", row["layer"]),
                ("says", safe(row["says"])),
            ):
                gone[name].append(value)
    for name, bars, style in (
        ("kept", kept, {"color": c["leaf"], "opacity": kept["opacity"], "line": {"width": 0}}),
        ("cut", gone, {"color": "rgba(0,0,0,0)", "line": {"color": c["cut"], "width": 1}}),
    ):
        if not bars["x"]:
            continue
        chart.add_trace(
            go.Bar(
                x=bars["x"],
                y=bars["y"],
                base=bars["base"],
                orientation="h",
                name=name,
                marker=style,
                xaxis=axis,
                customdata=bars["says"],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )


def _stubs(chart: go.Figure, gone: pd.DataFrame, widths: Mapping[str, float], c: Mapping[str, str]) -> None:
    """Layers that are gone: a short hollow stub on each side of the trunk."""
    for axis, width in widths.items() if len(gone) else ():
        chart.add_trace(
            go.Bar(
                x=[width] * len(gone),
                y=gone["layer"],
                base=0,
                orientation="h",
                name="removed",
                marker={"color": "rgba(0,0,0,0)", "line": {"color": c["cut"], "width": 1.4}},
                xaxis=axis,
                customdata=[safe(text) for text in gone["says"]],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )


def _trunk(chart: go.Figure, found: RunAnatomy, middle: float, muted: str, c: Mapping[str, str]) -> None:
    """The residual stream with the layers' numbers; narrower, inside its old outline, where channels of it went."""
    before, after = (float(found.pruned.get(f"hidden_{when}") or 1) for when in ("before", "after"))
    half = 0.016
    frame = {"type": "rect", "xref": "paper", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    inner = half * min(after / before, 1.0)
    chart.add_shape(**frame, x0=middle - inner, x1=middle + inner, fillcolor=c["trunk"], line={"width": 0})
    if after < before:
        chart.add_shape(**frame, x0=middle - half, x1=middle + half, line={"color": c["cut"], "width": 1})
    numbers = [
        {
            "x": middle,
            "xref": "paper",
            "y": int(row["layer"]),
            "yref": "y",
            "text": str(row["layer"]),
            "showarrow": False,
            "font": {"size": 10, "color": muted},
        }
        for row in found.layers[:: 1 if len(found.layers) <= 40 else 5]
    ]
    chart.update_layout(annotations=[*chart.layout.annotations, *numbers])  # add_annotation checks all of them again


def _map_words(found: RunAnatomy) -> str:
    """The map in one sentence."""
    if not found.layers:
        return "No layers are known."
    gone = found.dropped
    share = found.pruned.get("achieved_model_ratio")
    of = f" {percent(float(share))} of the whole model." if isinstance(share, int | float) else ""
    if gone:
        return f"{len(found.layers)} layers; removed: {', '.join(map(str, gone))}.{of}"
    what = "set to zero" if found.matrices else "removed"
    return f"{len(found.layers)} layers, heads to the left and MLP to the right of the trunk. What is {what}:{of}"


# ---------------------------------------------------------------------------------------------------------------- parts


def parts_table(found: RunAnatomy) -> pd.DataFrame:
    """Parameters and bytes by part, dense and pruned: part, dense, pruned, nonzero, dense_bytes, pruned_bytes.

    From the sizes of the layers; bytes are parameters times what one takes in the files. Empty where the dense model is
    not known. A mask's zeros keep their bytes.
    """
    columns = ["part", "dense", "pruned", "nonzero", "dense_bytes", "pruned_bytes"]
    before, after = found.architecture, found.after()
    if before is None or after is None or not found.layers:
        return pd.DataFrame(columns=columns)
    dense, left = _by_part(before), _by_part(after)
    zeros = _zeros_by_part(found)
    each = _bytes_each(found)
    rows = [
        {
            "part": part,
            "dense": dense[part],
            "pruned": left[part],
            "nonzero": left[part] - zeros.get(part, 0),
            "dense_bytes": round(dense[part] * each),
            "pruned_bytes": round(left[part] * each),
        }
        for part in dense
        if dense[part]
    ]
    return pd.DataFrame(rows, columns=columns)


def _by_part(architecture: Any) -> dict[str, int]:
    shapes = [architecture.matrix_shapes(layer) for layer in range(architecture.n_layers)]
    matrices = {
        name: sum(each[role][0] * each[role][1] for each in shapes for role in roles)
        for name, roles in (("attention", ATTENTION), ("MLP", MLP))
    }
    layers = sum(architecture.layer_params(layer) for layer in range(architecture.n_layers))
    table = architecture.vocab_size * architecture.hidden_size
    head = 0 if architecture.tied else table
    outside = architecture.params - layers - table - head
    return {
        "embedding": table,
        **matrices,
        "norms and biases": layers - sum(matrices.values()) + outside,
        "head": head,
    }


def _zeros_by_part(found: RunAnatomy) -> dict[str, int]:
    if not found.matrices or found.architecture is None:
        return {}
    zeros = {"attention": 0.0, "MLP": 0.0}
    for row in found.layers:
        shapes, densities = found.architecture.matrix_shapes(int(row["layer"])), row.get("densities") or {}
        for role, share in densities.items():
            if role in shapes and isinstance(share, int | float):
                zeros["attention" if role in ATTENTION else "MLP"] += shapes[role][0] * shapes[role][1] * (1 - share)
    return {part: round(count) for part, count in zeros.items()}


def _bytes_each(found: RunAnatomy) -> float:
    held, count = found.pruned.get("bytes_before"), found.pruned.get("params_before")
    if isinstance(held, int | float) and isinstance(count, int) and count > 0 and held > 0:
        return float(held) / count
    return {"bfloat16": 2.0, "float16": 2.0}.get(found.architecture.dtype if found.architecture else "", 4.0)


def parts_bars(table: pd.DataFrame, *, masks: bool = False, dark: bool = False) -> go.Figure:
    """Parameters of each part, what stays filled and what went hollow; for masks, zeros are what went."""
    c = colours(dark)
    total, left = int(table["dense"].sum()), int(table["nonzero" if masks else "pruned"].sum())
    did = "set to zero" if masks else "removed"
    title = "Parameters by part"
    said = f"{title}: {left:,} of {total:,} {'are not zero' if masks else 'are left'}." if total else title
    chart = figure(title, said, dark=dark, height=90 + 42 * max(len(table), 1))
    stays = table["nonzero" if masks else "pruned"]
    says = [
        f"{row['part']}: {row['dense']:,} → {row['pruned']:,} parameters, {row['dense'] - kept:,} {did}"
        f"<br>{row['dense_bytes'] / 1e6:,.1f} → {row['pruned_bytes'] / 1e6:,.1f} MB"
        for row, kept in zip(table.to_dict("records"), stays, strict=True)
    ]
    for name, counts, style in (
        ("stays", stays, {"color": c["leaf"]}),
        (did, table["dense"] - stays, {"color": "rgba(0,0,0,0)", "line": {"color": c["cut"], "width": 1.2}}),
    ):
        chart.add_trace(
            go.Bar(
                x=[int(count) or None for count in counts],  # an empty hollow bar would be a line
                y=table["part"],
                orientation="h",
                name=name,
                marker=style,
                customdata=says,
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    chart.update_layout(barmode="stack", bargap=0.4, yaxis={"autorange": "reversed", "showgrid": False})
    chart.update_xaxes(title_text="parameters", tickformat="~s")
    return chart


def parts_words(table: pd.DataFrame, *, masks: bool = False) -> str:
    """The totals, in one sentence."""
    dense, left = int(table["dense"].sum()), int(table["pruned"].sum())
    before, after = table["dense_bytes"].sum() / 1e6, table["pruned_bytes"].sum() / 1e6
    if masks:
        share = 1 - table["nonzero"].sum() / max(dense, 1)
        return f"{dense:,} parameters, {percent(share)} of them zero: the file stays at {before:,.1f} MB."
    return (
        f"{dense:,} → {left:,} parameters, {before:,.1f} → {after:,.1f} MB ({percent(1 - left / max(dense, 1))} less)."
    )
