"""Charts of Compare: a table of points (core/charts_frames.py) goes in, a Plotly figure comes out. Pure.

Every chart takes one quality, that is one task, metric and protocol, or says in its labels where protocols differ.
Every mark carries the run's id first in its `customdata`. Error bars are 95 % intervals (1.96 standard errors).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from core.charts_frames import PRIMARY, Z95, Quality, at, at_order, missing, points, qualities
from core.charts_recovery import before_marks, values_with_before
from core.charts_style import (
    DASHES,
    alt,
    config,
    figure,
    marker,
    measured,
    method_colour,
    palette,
    percent,
    safe,
)
from core.charts_tables import (
    DELTA,
    GUESSING,
    MAJORITY,
    about,
    comparison_table,
    difference,
    disturbances,
    export,
    leak,
    leaks,
    marks,
    mixed_protocols,
    without_numbers,
)
from core.charts_words import detail_words, mapping, protocol_words, rates_words, whole_protocol

__all__ = [
    "DELTA", "GUESSING", "MAJORITY", "MASK_TITLE", "PRIMARY", "Panel", "Quality", "RatioAxis", "Size", "about", "alt",
    "at", "at_order", "comparison_table", "config", "detail_words", "difference", "disturbances", "export", "leak",
    "leaks", "marks", "measured", "missing", "mixed_protocols", "panels", "percent", "points", "protocol_words",
    "qualities", "rates_words", "ratio_curve", "safe", "task_dots", "tradeoff", "whole_protocol", "without_numbers",
]  # fmt: skip

Panel = Literal["cut", "mask"]
Size = Literal["removed", "parameters"]
RatioAxis = Literal["removed", "ratio"]
MASK_TITLE = "Zeros, not smaller"
_SIZE_TITLES = {
    ("removed", "cut"): "share of the whole model removed",
    ("removed", "mask"): "share of the whole model set to zero",
    ("parameters", "cut"): "parameters kept",
    ("parameters", "mask"): "parameters that are not zero",
}
_HEIGHT = 460
_HOVER_WIDTH = 84  # letters in a line of a hover label
_BESIDE_DENSE = 0.09  # share of the width: right of the dense mark, which stands at nothing removed


def panels(table: pd.DataFrame) -> list[Panel]:
    """Which panels the runs need: real cuts, masks, or both. Only dense runs: the first."""
    kinds = set(table["kind"]) - {"dense"}
    found: list[Panel] = []
    if kinds - {"mask"} or not kinds:
        found.append("cut")
    if "mask" in kinds:
        found.append("mask")
    return found


def tradeoff(
    table: pd.DataFrame, quality: Quality, *, panel: Panel = "cut", size: Size = "removed", dark: bool = False
) -> go.Figure:
    """Quality against size, one mark a run. Masks have a panel of their own: their zeros make nothing smaller.

    size 'removed': achieved share of the whole model; 'parameters': what stays (for masks, what is not zero). Both
    panels of one quality share the range of their quality axis.
    """
    rows = _with_size(_of_panel(at(table, quality), panel))
    x_title = _SIZE_TITLES[(size, panel)]
    heading = MASK_TITLE if panel == "mask" else "Real cuts"
    column = "removed" if size == "removed" else "kept"
    chart = figure(heading, _alt(f"{heading}: {quality.label} against {x_title}", rows), dark=dark, height=_HEIGHT)
    _size_axis(chart, x_title, rows[column], size)
    _value_axis(chart, quality, values_with_before(at(table, quality)))
    _dense_line(chart, rows, quality, dark, x=_BESIDE_DENSE if size == "removed" else 0)
    for variant, (series, group) in _series(rows[rows["kind"] != "dense"]):
        chart.add_trace(_marks(group, column, quality, series, variant, dark))
    before_marks(chart, rows, column, quality, dark)
    _dense_marks(chart, rows, column, quality, dark)
    return chart


def ratio_curve(
    table: pd.DataFrame, quality: Quality, *, panel: Panel = "cut", x: RatioAxis = "removed", dark: bool = False
) -> go.Figure:
    """Quality against ratio: one line per method and settings, through the mean of runs at the same ratio (seeds).

    x 'removed': achieved share of the whole model; 'ratio': what was asked for of the selected layers.
    """
    rows = _of_panel(at(table, quality), panel)
    heading = MASK_TITLE if panel == "mask" else "Real cuts"
    verb = "set to zero" if panel == "mask" else "removed"
    x_title = f"share of the whole model {verb}" if x == "removed" else "ratio asked for in the selected layers"
    chart = figure(
        heading, _alt(f"{heading}: {quality.label} by {x_title}, one line per method", rows), dark=dark, height=_HEIGHT
    )
    _size_axis(chart, x_title, rows[x], "removed")
    _value_axis(chart, quality, values_with_before(at(table, quality)))
    _dense_line(chart, rows, quality, dark, x=_BESIDE_DENSE)
    for variant, (series, group) in _series(rows[rows["kind"] != "dense"]):
        chart.add_trace(_line(group, x, series, variant, dark))
        chart.add_trace(_marks(group, x, quality, series, variant, dark))
    before_marks(chart, rows, x, quality, dark)
    _dense_marks(chart, rows, x, quality, dark)
    return chart


def task_dots(table: pd.DataFrame, tasks: Sequence[Quality], *, dark: bool = False) -> go.Figure:
    """Accuracy per task: one row a task and protocol, one dot a run with its interval, a line where guessing stands."""
    chosen = [quality for quality in tasks if quality.is_task]
    rows = table[table["quality"].isin([quality.key for quality in chosen])]
    runs = list(dict.fromkeys(at_order(rows)["run_id"]))
    step = 0.72 / max(len(runs), 1)
    height = 130 + int(len(chosen) * max(48, 17 * len(runs)))
    chart = figure("Accuracy by task", _alt("Accuracy by task with 95 % intervals", rows), dark=dark, height=height)
    variants = _run_variants(rows)
    for index, run_id in enumerate(runs):
        own = rows[rows["run_id"] == run_id]
        offset = (index - (len(runs) - 1) / 2) * step
        chart.add_trace(_dots(own, chosen, offset, variants[run_id], dark))
    _chance_lines(chart, chosen, dark)
    chart.update_yaxes(
        tickmode="array", tickvals=list(range(len(chosen))), ticktext=[safe(quality.label) for quality in chosen],
        range=[len(chosen) - 0.5, -0.5], showgrid=False, showline=False, ticks="",
    )  # fmt: skip
    for boundary in range(1, len(chosen)):
        chart.add_hline(y=boundary - 0.5, line={"color": palette(dark).grid, "width": 1})
    chart.update_xaxes(title_text="accuracy, with 95 % intervals", tickformat=".0%")
    return chart


# ---------------------------------------------------------------------------------------------------------------- rows


def _of_panel(rows: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    masks = rows["kind"] == "mask"
    return rows[(rows["kind"] == "dense") | (masks if panel == "mask" else ~masks)]


def _with_size(rows: pd.DataFrame) -> pd.DataFrame:
    """Adds `kept`: parameters that stay; for masks those that are not zero (parameters · (1 − share zeroed))."""
    masks = rows["kind"] == "mask"
    return rows.assign(kept=rows["parameters"].where(~masks, rows["parameters"] * (1 - rows["removed"])))


def _series(rows: pd.DataFrame) -> list[tuple[int, tuple[str, pd.DataFrame]]]:
    """The series with their rows, and which variant of its method each is."""
    seen: dict[str, int] = {}
    found = []
    for name, group in rows.groupby("series", sort=True):
        method = str(group["method"].iloc[0])
        found.append((seen.get(method, 0), (str(name), group)))
        seen[method] = seen.get(method, 0) + 1
    return found


def _run_variants(rows: pd.DataFrame) -> dict[str, int]:
    """Which variant of its method's symbol each run wears where every run stands for itself."""
    seen: dict[str, int] = {}
    variants = {}
    for row in at_order(rows).drop_duplicates("run_id").itertuples():
        variants[str(row.run_id)] = seen.get(str(row.method), 0)
        seen[str(row.method)] = variants[str(row.run_id)] + 1
    return variants


# -------------------------------------------------------------------------------------------------------------- traces


def _marks(rows: pd.DataFrame, x: str, quality: Quality, series: str, variant: int, dark: bool) -> go.Scatter:
    method = str(rows["method"].iloc[0])
    return go.Scatter(
        x=rows[x].tolist(),
        y=rows["value"].tolist(),
        error_y=_bars(rows, method, dark, quality.fraction),
        mode="markers",
        name=safe(series),
        legendgroup=series,
        marker=marker(method, variant, dark, 13),
        customdata=_custom(rows, quality),
        hovertemplate="%{customdata[1]}<extra></extra>",
    )


def _dense_marks(chart: go.Figure, rows: pd.DataFrame, x: str, quality: Quality, dark: bool) -> None:
    dense = rows[rows["kind"] == "dense"]
    if not dense.empty:
        chart.add_trace(_marks(dense, x, quality, "dense", 0, dark))


def _line(rows: pd.DataFrame, x: str, series: str, variant: int, dark: bool) -> go.Scatter:
    method = str(rows["method"].iloc[0])
    means = rows.groupby(x, sort=True)["value"].mean()
    return go.Scatter(
        x=means.index.tolist(),
        y=means.tolist(),
        mode="lines",
        name=safe(series),
        legendgroup=series,
        showlegend=False,
        hoverinfo="skip",
        line={"color": method_colour(method, dark), "width": 2, "dash": DASHES[variant % len(DASHES)]},
    )


def _dots(rows: pd.DataFrame, tasks: Sequence[Quality], offset: float, variant: int, dark: bool) -> go.Scatter:
    method = str(rows["method"].iloc[0])
    places = {quality.key: index for index, quality in enumerate(tasks)}
    by_key = {quality.key: quality for quality in tasks}
    bars = _bars(rows, method, dark, share=True)
    return go.Scatter(
        x=rows["value"].tolist(),
        y=[places[key] + offset for key in rows["quality"]],
        error_x=bars,
        mode="markers",
        name=safe(rows["label"].iloc[0]),
        marker=marker(method, variant, dark, 10),
        customdata=[_custom(rows.iloc[[i]], by_key[key])[0] for i, key in enumerate(rows["quality"])],
        hovertemplate="%{customdata[1]}<extra></extra>",
    )


def _bars(rows: pd.DataFrame, method: str, dark: bool, share: bool) -> dict[str, Any]:
    """95 % intervals; those of a `share` end at 0 and 1."""
    above, below = [], []
    for value, stderr, details in zip(rows["value"], rows["stderr"], rows["details"], strict=True):
        low, high = _interval(float(value), float(stderr), details)
        above.append((min(high, max(value, 1.0)) if share else high) - value)
        below.append(value - (max(low, min(value, 0.0)) if share else low))
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "color": method_colour(method, dark),
        "thickness": 1.4,
        "width": 4,
        "visible": any(above) or any(below),
    }


def _interval(value: float, stderr: float, details: Any) -> tuple[float, float]:
    """The 95 % interval: the one that was measured (perplexity's bootstrap), else 1.96 standard errors each way."""
    found = mapping(details).get("interval")
    if isinstance(found, list) and len(found) == 2 and found[0] <= value <= found[1]:
        return float(found[0]), float(found[1])
    width = Z95 * stderr if math.isfinite(stderr) else 0.0
    return value - width, value + width


def _custom(rows: pd.DataFrame, quality: Quality) -> list[list[str]]:
    """[run id, hover text] a row."""
    return [[str(row["run_id"]), _hover(row, quality)] for _, row in rows.iterrows()]


def _hover(row: pd.Series, quality: Quality) -> str:
    lines = [f"<b>{safe(row['label'])}</b>", f"{safe(quality.label)}  {measured(row['value'], row['stderr'], quality)}"]
    if row["kind"] == "quantised":
        lines.append("the dense model, its weights rounded")
    elif row["kind"] != "dense":
        lines.append(f"{safe(row['series'])}, ratio {percent(row['ratio'])}")
        done = "zeroed" if row["kind"] == "mask" else "removed"
        lines.append(
            f"{percent(row['removed'])} of the whole model {done}, {row['parameters'] / 1e6:,.1f} M parameters"
        )
    if math.isfinite(row["before"]):
        lines.append(f"before recovery  {measured(row['before'], row['before_stderr'], quality)}")
    if row["kind"] != "dense" and math.isfinite(row["delta"]):
        how = " on the same documents" if row["paired"] and quality.is_task else ""
        lines.append(f"against dense  {measured(row['delta'], row['delta_stderr'], quality, sign=True)}{how}")
    lines += [safe(line) for line in _said(detail_words(row["details"]))]
    count = [f"n = {int(row['n']):,}"] if pd.notna(row["n"]) else []
    lines += [safe(line) for line in _said([*whole_protocol(row["protocol"]), *count])]
    return "<br>".join(line for line in lines if line)


def _said(words: Sequence[str]) -> list[str]:
    """Entries joined by dots, in lines that fit a hover label."""
    return textwrap.wrap(" · ".join(words), _HOVER_WIDTH, break_long_words=False)


# ---------------------------------------------------------------------------------------------------------------- axes


def _size_axis(chart: go.Figure, title: str, values: pd.Series, size: str) -> None:
    chart.update_xaxes(title_text=title)
    top = float(values.max()) if len(values) and pd.notna(values.max()) else 1.0
    if size == "removed":
        chart.update_xaxes(
            tickformat=".0%" if top >= 0.05 else ".1%", range=[-0.04 * max(top, 0.02), 1.08 * max(top, 0.02)]
        )
    else:
        chart.update_xaxes(tickformat=".3s", range=[0, 1.08 * top])


def _value_axis(chart: go.Figure, quality: Quality, rows: pd.DataFrame) -> None:
    """Axis of the measured value; logarithmic where perplexities span more than a factor of eight, and titled so."""
    values = rows["value"]
    unit = f" [{quality.unit}]" if quality.unit and not quality.fraction else ""
    chart.update_yaxes(title_text=safe(quality.label) + unit)
    better = "lower is better" if quality.lower_is_better else "higher is better"
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if quality.lower_is_better and low > 0 and high / low > 8:
        _logarithmic(chart, low, high)
        _subtitle(chart, f"{better}, logarithmic")
        return
    _subtitle(chart, better)
    spread = Z95 * rows["stderr"].fillna(0.0)
    low, high = (float((values - spread).min()), float((values + spread).max())) if len(values) else (0.0, 1.0)
    low, high = (max(low, 0.0), min(high, 1.0)) if quality.fraction else (low, high)
    pad = 0.06 * ((high - low) or abs(high) or 1.0)
    shown = ".0%" if quality.fraction else ".3s" if quality.unit == "bytes" else None
    chart.update_yaxes(range=[low - pad, high + pad], tickformat=shown)
    if quality.chance is not None and low - pad < quality.chance < high + pad:
        _horizontal(chart, quality.chance, "guessing", chart.layout.font.color, "dot")


def _logarithmic(chart: go.Figure, low: float, high: float) -> None:
    """A logarithmic value axis with ticks at 1, 2 and 5 of each decade, written out."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    bounds = [math.log10(low) - 0.12, math.log10(high) + 0.12]
    chart.update_yaxes(type="log", range=bounds, tickvals=ticks, ticktext=[f"{tick:,g}" for tick in ticks])


def _subtitle(chart: go.Figure, text: str) -> None:
    colour = chart.layout.yaxis.tickfont.color
    title = f'{chart.layout.title.text}  <span style="font-size:12px;color:{colour}">{safe(text)}</span>'
    chart.update_layout(title_text=title)


def _dense_line(chart: go.Figure, rows: pd.DataFrame, quality: Quality, dark: bool, x: float) -> None:
    """A line at the dense model's value, labelled with it; one for each dense model there is."""
    for _, row in rows[rows["kind"] == "dense"].drop_duplicates("value").iterrows():
        text = f"dense {measured(row['value'], row['stderr'], quality)}"
        _horizontal(chart, float(row["value"]), text, palette(dark).muted, "dash", x)


def _horizontal(chart: go.Figure, y: float, text: str, colour: str, dash: str, x: float = 1) -> None:
    logarithmic = chart.layout.yaxis.type == "log"
    chart.add_shape(
        type="line",
        xref="paper",
        x0=0,
        x1=1,
        y0=y,
        y1=y,
        line={"color": colour, "width": 1, "dash": dash},
        layer="between",
    )
    chart.add_annotation(
        text=safe(text),
        xref="paper",
        x=x,
        xanchor="right" if x == 1 else "left",
        y=math.log10(y) if logarithmic else y,
        yanchor="bottom",
        showarrow=False,
        font={"size": 12, "color": colour},
    )


def _chance_lines(chart: go.Figure, tasks: Sequence[Quality], dark: bool) -> None:
    """A line a task where guessing stands, and one where the most frequent answer does."""
    colour = palette(dark).muted
    for name, dash, levels in (
        (GUESSING, "dot", [quality.chance for quality in tasks]),
        (MAJORITY, "dash", [quality.majority for quality in tasks]),
    ):
        xs: list[float | None] = []
        ys: list[float | None] = []
        for index, level in enumerate(levels):
            if level is not None:
                xs += [level, level, None]
                ys += [index - 0.44, index + 0.44, None]
        if xs:
            line = {"color": colour, "width": 1.5, "dash": dash}
            chart.add_trace(go.Scatter(x=xs, y=ys, mode="lines", name=name, line=line, hoverinfo="skip"))


def _alt(what: str, rows: pd.DataFrame) -> str:
    """What the chart shows and its values in words (not only that there is a chart)."""
    if rows.empty:
        return f"{what}. No values."
    parts = [f"{row['label']}: {row['task']} {row['metric']} {row['value']:.4g}" for _, row in rows.head(24).iterrows()]
    more = f"; and {len(rows) - 24} more" if len(rows) > 24 else ""
    return f"{what}. {'; '.join(parts)}{more}."
