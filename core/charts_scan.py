"""The sensitivity scan as a curve: what pruning each layer by itself costs, and which range that speaks for. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from core.charts_style import figure, marker, method_colour, palette, safe
from core.charts_words import mapping, whole_protocol

Z95 = 1.959964
COLUMNS = ("layer", "part", "perplexity", "stderr", "cost", "cost_stderr", "removed")
PARTS = {"layer": "whole layer", "attention": "attention alone", "mlp": "MLP alone"}
_DASHES = {"layer": "solid", "attention": "dash", "mlp": "dot"}
DEAR = 2.0
"""A layer that costs more than so many times the median is left out of the range that is proposed."""


def scan_table(scan: Mapping[str, Any]) -> pd.DataFrame:
    """One row a layer and part of results.json's `scan`: perplexity and its cost in nats a token; damaged rows go."""
    rows = scan.get("layers")
    found = [
        {name: row.get(name) for name in COLUMNS}
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, Mapping) and isinstance(row.get("layer"), int) and _number(row.get("cost")) is not None
    ]
    table = pd.DataFrame(found, columns=list(COLUMNS))
    numbers = [name for name in COLUMNS if name not in ("layer", "part")]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce").astype("float64")
    return table


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def layers_of(table: pd.DataFrame) -> list[int]:
    """The layers that were scanned, in order."""
    return sorted({int(layer) for layer in table["layer"]})


def proposed(table: pd.DataFrame) -> tuple[int, int] | None:
    """The longest run of neighbours none of which costs more than DEAR times the median; the cheapest of equals.

    None without a scan.
    """
    whole = table[table["part"] == "layer"].sort_values("layer")
    if whole.empty:
        return None
    costs = {int(layer): float(cost) for layer, cost in zip(whole["layer"], whole["cost"], strict=True)}
    limit = DEAR * max(median(costs.values()), 0.0)
    runs: list[list[int]] = []
    for layer in sorted(costs):
        if costs[layer] > limit:
            continue
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    if not runs:
        return min(costs), max(costs)
    best = min(runs, key=lambda run: (-len(run), sum(costs[layer] for layer in run)))
    return best[0], best[-1]


def together(scan: Mapping[str, Any], layers: tuple[int, int]) -> str:
    """What a range costs if costs add up, in one sentence; '' where that is not known."""
    table = scan_table(scan)
    rows = table[(table["part"] == "layer") & table["layer"].between(*layers)]
    dense = _number(mapping(scan.get("dense")).get("perplexity"))
    if rows.empty or dense is None:
        return ""
    cost = float(rows["cost"].sum())
    about = f"{dense * math.exp(cost):,.1f}" if cost < 12 else "far more"
    return (
        f"Layers {layers[0]}–{layers[1]} cost {cost:.2f} nats a token one by one: if that adds up, perplexity goes "
        f"from {dense:.2f} to about {about}. Cut together they usually cost more."
    )


def scan_curve(
    scan: Mapping[str, Any], method: str, layers: tuple[int, int] | None = None, *, dark: bool = False
) -> go.Figure:
    """Perplexity with each layer pruned by itself, one line a part; the dense model's as a level, `layers` shaded."""
    table, p = scan_table(scan), palette(dark)
    whole = table[table["part"] == "layer"]
    dense = _number(mapping(scan.get("dense")).get("perplexity"))
    said = ""
    if len(whole):
        worst = whole.sort_values("cost").iloc[-1]
        said = f" Dearest: layer {int(worst['layer'])}, {worst['perplexity']:.4g}."
    chart = figure("Each layer by itself", f"Perplexity with only that layer pruned.{said}", dark=dark, height=380)
    for part in PARTS:
        _line(chart, table[table["part"] == part].sort_values("layer"), part, method, dark)
    if dense is not None:
        chart.add_hline(
            y=dense, line={"color": p.ink, "width": 1, "dash": "dot"}, annotation_text=f"dense {dense:.4g}",
            annotation_font_color=p.muted, annotation_position="bottom right",
        )  # fmt: skip
    if layers is not None:
        chart.add_vrect(x0=layers[0] - 0.5, x1=layers[1] + 0.5, fillcolor=p.muted, opacity=0.12, line_width=0)
    steep = dense is not None and len(table) > 0 and float(table["perplexity"].max()) > 8 * dense
    chart.update_layout(showlegend=table["part"].nunique() > 1)
    chart.update_xaxes(title_text="layer", dtick=5 if table["layer"].nunique() > 12 else 1)
    chart.update_yaxes(title_text="perplexity" + (" (log)" if steep else ""), type="log" if steep else "linear")
    return chart


def _line(chart: go.Figure, rows: pd.DataFrame, part: str, method: str, dark: bool) -> None:
    """One part's perplexities; the whole layer's with the intervals of their differences to dense."""
    if rows.empty:
        return
    name, whole = PARTS[part], part == "layer"
    colour = method_colour(method, dark) if whole else palette(dark).muted
    paired = Z95 * rows["perplexity"] * rows["cost_stderr"].fillna(0)  # windows differ more than layers do
    bars = {"type": "data", "array": paired.tolist(), "thickness": 1, "width": 2}
    chart.add_trace(
        go.Scatter(
            x=rows["layer"],
            y=rows["perplexity"],
            mode="lines+markers",
            name=name,
            line={"color": colour, "width": 2 if whole else 1.5, "dash": _DASHES[part]},
            marker=marker(method, list(PARTS).index(part), dark, 8 if whole else 6),
            error_y=bars if whole else None,
            customdata=rows[["cost", "cost_stderr", "removed"]].fillna(0).to_numpy(),
            hovertemplate=(
                f"layer %{{x}}, {name}<br>perplexity %{{y:.4g}}<br>%{{customdata[0]:+.4f}} ± "
                "%{customdata[1]:.4f} nats a token<br>%{customdata[2]:,} parameters<extra></extra>"
            ),
        )
    )


def scan_words(scan: Mapping[str, Any]) -> str:
    """How it was judged, in one line."""
    said = "Bars are 95 % intervals of the difference to dense, on the same windows"
    return safe(" · ".join([said, *whole_protocol(mapping(scan.get("protocol")))]) + ".")
