"""Charts of a run's inside: error and divergence by layer, and where the zeros of one matrix are. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from core.charts_anatomy import colours
from core.charts_style import figure, marker, method_colour, palette, percent, safe
from core.weights_view import Image, Region

Z95 = 1.959964

# ------------------------------------------------------------------------------------------------------------- by layer


def layer_table(runs: Sequence[tuple[str, str, Mapping[str, Any]]], field: str) -> pd.DataFrame:
    """One row a run and layer with a finite `field` (error or kl): run, method, layer, value, stderr, removed.

    runs: (name, method, what results.json holds under `layer_errors`).
    """
    rows = [
        {
            "run": name,
            "method": method,
            "layer": row["layer"],
            "value": float(row[field]),
            "stderr": _finite(row.get(f"{field}_stderr" if field == "kl" else "stderr")),
            "removed": bool(row.get("removed")),
        }
        for name, method, found in runs
        for row in _rows(found.get("layers"))
        if isinstance(row.get("layer"), int) and _finite(row.get(field)) is not None
    ]
    return pd.DataFrame(rows, columns=["run", "method", "layer", "value", "stderr", "removed"])


def _rows(found: Any) -> list[Mapping[str, Any]]:
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def by_layer(table: pd.DataFrame, field: str, *, dark: bool = False) -> go.Figure:
    """Drift of the hidden states (`error`) or divergence of the output (`kl`) after each layer, one line a run."""
    title = "Error of the hidden states" if field == "error" else "KL by layer"
    said = ""
    if len(table):
        worst = table.sort_values("value").iloc[-1]
        size = percent(worst["value"]) if field == "error" else f"{worst['value']:.3g} nats"
        said = f" Largest after layer {worst['layer']}: {size}."
    chart = figure(title, f"{title}, against the dense model.{said}", dark=dark, height=300)
    shown = ".1%" if field == "error" else ".4f"
    for place, (name, rows) in enumerate(table.groupby("run", sort=False)):
        method = str(rows["method"].iloc[0])
        variant = place % 2
        chart.add_trace(
            go.Scatter(
                x=rows["layer"],
                y=rows["value"],
                mode="lines+markers",
                name=safe(name),
                line={"color": method_colour(method, dark), "width": 2, "dash": "dash" if variant else "solid"},
                marker={
                    **marker(method, variant, dark, 7),
                    "opacity": [0.35 if gone else 1 for gone in rows["removed"]],
                },
                error_y={
                    "type": "data",
                    "array": (Z95 * rows["stderr"].fillna(0.0)).tolist(),
                    "thickness": 1,
                    "width": 2,
                },
                customdata=["taken out" if gone else "kept" for gone in rows["removed"]],
                hovertemplate=f"{safe(name)}<br>after layer %{{x}} (%{{customdata}}): %{{y:{shown}}}<extra></extra>",
            )
        )
    many = table["layer"].nunique() > 12
    chart.update_layout(showlegend=table["run"].nunique() > 1)
    chart.update_xaxes(title_text="after layer", dtick=5 if many else 1)
    unit = {"title_text": "relative error", "tickformat": ".0%"} if field == "error" else {"title_text": "nats a token"}
    chart.update_yaxes(**unit, rangemode="tozero")
    return chart


# -------------------------------------------------------------------------------------------------------------- density


def density(image: Image, where: str, *, dark: bool = False) -> go.Figure:
    """Density of blocks of one matrix, or of a region of it: leaf where weights stand, wall where zeros are."""
    area, p, c = image.region, palette(dark), colours(dark)
    rows, columns = image.values.shape
    ys = np.linspace(area.top, area.bottom, rows + 1)
    xs = np.linspace(area.left, area.right, columns + 1)
    block = f"{(area.bottom - area.top) / max(rows, 1):.3g} × {(area.right - area.left) / max(columns, 1):.3g} weights"
    title = f"Density of {where}"
    chart = figure(
        safe(title),
        f"{title}, rows {area.top} to {area.bottom - 1}, columns {area.left} to {area.right - 1}: "
        f"{percent(image.zeros)} zeros.",
        dark=dark,
        height=460,
    )
    low, high = float(image.values.min()), float(image.values.max())
    near = high - low < 1e-9
    chart.add_trace(
        go.Heatmap(
            z=image.values,
            x=(xs[:-1] + xs[1:]) / 2,
            y=(ys[:-1] + ys[1:]) / 2,
            zmin=0.0 if near else low,
            zmax=1.0 if near else high,
            colorscale=[[0, p.wall], [1, c["leaf"]]],
            colorbar={"title": {"text": "not zero"}, "tickformat": ".0%", "thickness": 12, "outlinewidth": 0},
            hovertemplate=f"row %{{y:.0f}}, column %{{x:.0f}}<br>%{{z:.1%}} of {block} not zero<extra></extra>",
        )
    )
    chart.update_xaxes(title_text="column (input)", showgrid=False)
    chart.update_yaxes(title_text="row (output)", autorange="reversed", showgrid=False)
    return chart


def zoomed(whole: Image, times: int, down: float, across: float) -> Region:
    """The region that is `times` times smaller along each side; `down` and `across` (0…1) say where it lies."""
    rows, columns = whole.shape
    height, width = max(rows // times, min(rows, 8)), max(columns // times, min(columns, 8))
    top, left = round(down * (rows - height)), round(across * (columns - width))
    return Region(top, top + height, left, left + width)


def density_table(image: Image) -> pd.DataFrame:
    """One row a block: first row and column, and the share that is not zero."""
    area = image.region
    rows, columns = image.values.shape
    ys = np.linspace(area.top, area.bottom, rows + 1)[:-1].round().astype(int)
    xs = np.linspace(area.left, area.right, columns + 1)[:-1].round().astype(int)
    grid = np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)
    return pd.DataFrame({"row": grid[:, 0], "column": grid[:, 1], "not zero": image.values.reshape(-1)})
