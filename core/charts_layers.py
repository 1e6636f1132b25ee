"""The drift of hidden states by layer (core/evaluation/layer_errors.py) as a figure. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from core.charts_style import figure, marker, method_colour, percent, safe
from core.charts_words import whole_protocol

Z95 = 1.959964


def drift_rows(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The layers that have a finite error, of what results.json holds under `layer_errors`; anything else has none."""
    rows = found.get("layers") if isinstance(found, Mapping) else None
    return [
        dict(row)
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, Mapping) and isinstance(row.get("error"), int | float) and isinstance(row.get("layer"), int)
    ]


def layer_drift(
    found: Mapping[str, Any], method: str, *, before: Mapping[str, Any] | None = None, dark: bool = False
) -> go.Figure:
    """Relative error of the hidden states after each layer of the dense model; layers that were taken out are open.

    before: the same of a recovered model before it was trained, drawn as a dotted line.
    """
    rows = drift_rows(found)
    early = drift_rows(before)
    worst = max(rows, key=lambda row: row["error"], default=None)
    said = f" Largest after layer {worst['layer']}: {percent(worst['error'])}." if worst else " No values."
    title = "Drift of the hidden states"
    chart = figure(title, f"{title} after each layer, against the dense model.{said}", dark=dark, height=260)
    protocol = safe(" · ".join(whole_protocol(found.get("protocol") or {})))
    chart.add_trace(
        go.Scatter(
            x=[row["layer"] for row in rows],
            y=[row["error"] for row in rows],
            mode="lines",
            line={"color": method_colour(method, dark), "width": 2},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    if early:
        chart.data[0].update(name="recovered", showlegend=True)
        chart.add_trace(
            go.Scatter(
                x=[row["layer"] for row in early],
                y=[row["error"] for row in early],
                mode="lines",
                name="before recovery",
                line={"color": method_colour(method, dark), "width": 1.5, "dash": "dot"},
                hovertemplate="after layer %{x}, before recovery<br>off by %{y:.1%}<extra></extra>",
            )
        )
    for removed in (False, True):
        some = [row for row in rows if bool(row.get("removed")) == removed]
        if not some:
            continue
        style = marker(method, 1 if removed else 0, dark, 9)
        words = "taken out" if removed else "kept"
        chart.add_trace(
            go.Scatter(
                x=[row["layer"] for row in some],
                y=[row["error"] for row in some],
                mode="markers",
                name=words,
                marker=style,
                showlegend=any(row.get("removed") for row in rows),
                error_y={
                    "type": "data",
                    "array": [Z95 * (row.get("stderr") or 0.0) for row in some],
                    "color": method_colour(method, dark),
                    "thickness": 1,
                    "width": 2,
                },
                customdata=[[row["layer"], words, protocol] for row in some],
                hovertemplate=(
                    "after layer %{customdata[0]}, %{customdata[1]}<br>off by %{y:.1%} of the dense state’s norm"
                    "<extra></extra>"
                ),
            )
        )
    chart.update_xaxes(title_text="after layer", dtick=5 if len(rows) > 12 else 1)
    chart.update_yaxes(title_text="relative error", tickformat=".0%", rangemode="tozero")
    return chart
