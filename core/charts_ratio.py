"""Quality against ratio: one line a method, bands over seeds. Pure."""

from __future__ import annotations

from typing import Literal

import pandas as pd
import plotly.graph_objects as go

from core.charts_frames import Quality, at
from core.charts_marks import (
    MASK_TITLE,
    Panel,
    alt_words,
    by_series,
    dense_line,
    dense_marks,
    height_with,
    of_panel,
    run_marks,
    size_axis,
    subtitle,
    value_axis,
)
from core.charts_recovery import before_marks, values_with_before
from core.charts_style import DASHES, faded, figure, method_colour, safe

RatioAxis = Literal["removed", "ratio"]


def ratio_rows(table: pd.DataFrame, quality: Quality, *, x: RatioAxis = "removed") -> pd.DataFrame:
    """One row a method with its settings (`series`) and ratio asked for: the mean over its runs, that is over seeds.

    Columns: series, method, kind, ratio, x (mean of what `x` names), mean, deviation (standard, over runs; nan of one),
    runs, low, high (least and largest of the runs). Dense and rounded models are not in it.
    """
    rows = at(table, quality)
    rows = rows[~rows["kind"].isin(("dense", "quantised"))]
    found = rows.groupby(["series", "method", "kind", "ratio"], sort=True).agg(
        x=(x, "first" if x == "ratio" else "mean"), mean=("value", "mean"), deviation=("value", "std"),
        runs=("run_id", "nunique"), low=("value", "min"), high=("value", "max"),
    )  # fmt: skip
    return found.reset_index()


def ratio_curve(
    table: pd.DataFrame, quality: Quality, *, panel: Panel = "cut", x: RatioAxis = "removed", dark: bool = False
) -> go.Figure:
    """Quality against ratio: one line per method and settings, through the mean of runs at the same ratio (seeds).

    table: `charts.points`. x 'removed': achieved share of the whole model; 'ratio': what was asked for of the selected
    layers. Where a ratio was run with several seeds, a band reaches from the least to the largest of their values.
    """
    rows = of_panel(at(table, quality), panel)
    heading = MASK_TITLE if panel == "mask" else "Real cuts"
    verb = "set to zero" if panel == "mask" else "removed"
    x_title = f"share of the whole model {verb}" if x == "removed" else "ratio asked for in the selected layers"
    words = alt_words(f"{heading}: {quality.label} by {x_title}, one line per method", rows)
    means = ratio_rows(rows, quality, x=x)
    chart = figure(heading, f"{words}{_band_words(means)}", dark=dark, height=height_with(rows["series"].nunique()))
    size_axis(chart, x_title, rows[x], "removed")
    value_axis(chart, quality, values_with_before(at(table, quality)), rows)
    if (means["runs"] > 1).any():
        subtitle(chart, "bands: from the lowest to the highest seed")
    dense_line(chart, rows, quality, dark)
    for variant, (name, group) in by_series(rows[rows["kind"] != "dense"]):
        own = means[means["series"] == name].sort_values("x")
        if (own["runs"] > 1).any():
            chart.add_trace(_band(own, name, dark, beyond=float(own["high"].max()) > _top(chart)))
        if len(own):
            chart.add_trace(_line(own, name, variant, dark))
        chart.add_trace(run_marks(group, x, quality, name, variant, dark))
    before_marks(chart, rows, x, quality, dark)
    dense_marks(chart, rows, x, quality, dark)
    return chart


def _band_words(means: pd.DataFrame) -> str:
    said = [
        f"{row['series']} at {100 * row['ratio']:.3g} %: mean {row['mean']:.4g}, standard deviation "
        f"{row['deviation']:.2g} over {row['runs']} seeds"
        for _, row in means[means["runs"] > 1].head(12).iterrows()
    ]
    return f" {'; '.join(said)}." if said else ""


def _top(chart: go.Figure) -> float:
    """The largest value that the axis shows."""
    end = float(chart.layout.yaxis.range[1])
    return 10**end if chart.layout.yaxis.type == "log" else end


def _band(rows: pd.DataFrame, name: str, dark: bool, *, beyond: bool) -> go.Scatter:
    """From the least to the largest of the seeds; only its edge where it ends `beyond` the axis and would cover it."""
    around = [*rows["x"], *reversed(rows["x"].tolist())]
    return go.Scatter(
        x=around,
        y=[*rows["high"], *reversed(rows["low"].tolist())],
        mode="lines",
        fill="none" if beyond else "toself",
        fillcolor=faded(str(rows["method"].iloc[0]), dark),
        line={"width": 6, "color": faded(str(rows["method"].iloc[0]), dark)},  # seen at a single ratio, too
        name=f"{safe(name)}, seeds",
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )


def _line(rows: pd.DataFrame, name: str, variant: int, dark: bool) -> go.Scatter:
    return go.Scatter(
        x=rows["x"].tolist(),
        y=rows["mean"].tolist(),
        mode="lines",
        name=safe(name),
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
        line={
            "color": method_colour(str(rows["method"].iloc[0]), dark),
            "width": 2,
            "dash": DASHES[variant % len(DASHES)],
        },
    )
