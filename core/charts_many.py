"""Many runs at once on parallel axes: settings, size, and what was measured. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from core.charts_frames import Quality, at_order
from core.charts_style import figure, palette, safe, short

MOST_AXES = 9
_HEIGHT = 480
_SHORT = 20


def many_rows(table: pd.DataFrame, chosen: Sequence[Quality]) -> pd.DataFrame:
    """One row a run, index: its id. Columns: label, method (its title), kind, ratio, removed, parameters, then each
    quality's key.

    table: `charts.points`. Dense runs count as ratio 0; a run that lacks a quality has nan there.
    """
    runs = at_order(table.drop_duplicates("run_id")).set_index("run_id")
    found = runs[["label", "kind", "ratio", "removed", "parameters"]].copy()
    found.insert(1, "method", runs["series"].str.split(", ").str[0])  # without the settings that differ
    for quality in chosen:
        own = table[table["quality"] == quality.key].drop_duplicates("run_id").set_index("run_id")
        found[quality.key] = own["value"].reindex(found.index)
    return found


def many_runs(table: pd.DataFrame, chosen: Sequence[Quality], *, dark: bool = False) -> go.Figure:
    """Parallel coordinates: a line a run through method, share removed, parameters and the qualities chosen.

    Coloured by the first quality, Cividis: what is better stands out. Runs that lack one of the values are left out,
    which `left_out` says. Axes can be dragged and brushed to pick runs. Qualities of different protocols have axes of
    their own, whose titles say so.
    """
    rows = many_rows(table, chosen)
    lacking = left_out(table, chosen)
    whole = rows[~rows["label"].isin(lacking)].dropna(subset=["removed", "parameters"])
    said = f"{len(whole)} runs on parallel axes: method, share removed, parameters, "
    said += f"{', '.join(quality.label for quality in chosen)}. Left out for missing values: "
    chart = figure("Many runs", f"{said}{', '.join(lacking) or 'none'}.", dark=dark, height=_HEIGHT)
    methods = list(dict.fromkeys(whole["method"]))
    dimensions: list[dict[str, Any]] = [
        {
            "label": "method", "values": [methods.index(name) for name in whole["method"]],
            "tickvals": list(range(len(methods))), "ticktext": [short(name, _SHORT) for name in methods],
            "range": [-0.5, max(len(methods) - 0.5, 0.5)],
        },
        {"label": "removed", "values": whole["removed"].tolist(), "tickformat": ".0%"},
        {"label": "parameters", "values": whole["parameters"].tolist(), "tickformat": ".3s"},
    ]  # fmt: skip
    dimensions += [_axis(whole, quality) for quality in chosen[: MOST_AXES - len(dimensions)]]
    chart.add_trace(
        go.Parcoords(
            dimensions=dimensions,
            line=_colours(whole, chosen, dark),
            labelfont={"size": 12, "color": palette(dark).ink},
            tickfont={"size": 11, "color": palette(dark).ink},
            rangefont={"size": 11, "color": palette(dark).muted},
            labelside="top",
            unselected={"line": {"color": palette(dark).muted, "opacity": 0.12}},
            customdata=[[str(run_id)] for run_id in whole.index],
        )
    )
    chart.update_layout(margin={"l": 130, "r": 60, "t": 90, "b": 24})
    return chart


def left_out(table: pd.DataFrame, chosen: Sequence[Quality]) -> list[str]:
    """Labels of the runs that lack one of the qualities, so that no line can go through."""
    rows = many_rows(table, chosen)
    return rows.loc[rows[[quality.key for quality in chosen]].isna().any(axis=1), "label"].astype(str).tolist()


def _axis(rows: pd.DataFrame, quality: Quality) -> dict[str, Any]:
    """The axis of a quality, turned so that better is up."""
    values = rows[quality.key].tolist()
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    return {
        "label": safe(short(quality.label, 24)),
        "values": values,
        "tickformat": ".0%" if quality.fraction else ".3s" if quality.unit == "bytes" else None,
        "range": [high, low] if quality.lower_is_better else [low, high],
    }


def _colours(rows: pd.DataFrame, chosen: Sequence[Quality], dark: bool) -> dict[str, Any]:
    """The better a run, the further its line stands off the page: dark on light, light on dark."""
    if not chosen or rows.empty:
        return {}
    first = chosen[0]
    return {"color": rows[first.key].tolist(), "colorscale": "Cividis", "reversescale": first.lower_is_better == dark}
