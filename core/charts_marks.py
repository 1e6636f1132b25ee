"""What the charts of Compare share: marks with their intervals and hover texts, axes, reference lines. Pure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from core.charts_frames import MOST_DECADES, Z95, Quality, at_order
from core.charts_style import delta_words, marker, measured, method_colour, palette, percent, safe, short
from core.charts_words import detail_words, mapping, whole_protocol

Panel = Literal["cut", "mask", "all"]
HEIGHT = 460
HOVER_WIDTH = 84
"""Letters in a line of a hover label."""
_LEGEND_ROW = 20
"""Pixels of a line of the legend."""
MASK_TITLE = "Zeros, not smaller"


def height_with(entries: int) -> int:
    """Height of a chart whose legend has so many entries, so that the legend takes nothing from the axes."""
    return HEIGHT + _LEGEND_ROW * min(max(entries - 4, 0), 16)


def of_panel(rows: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """The rows of a panel: real cuts, masks, or all; the dense model is in each."""
    if panel == "all":
        return rows
    masks = rows["kind"] == "mask"
    return rows[(rows["kind"] == "dense") | (masks if panel == "mask" else ~masks)]


def by_series(rows: pd.DataFrame) -> list[tuple[int, tuple[str, pd.DataFrame]]]:
    """The series with their rows, and which variant of its method each is."""
    seen: dict[str, int] = {}
    found = []
    for name, group in rows.groupby("series", sort=True):
        method = str(group["method"].iloc[0])
        found.append((seen.get(method, 0), (str(name), group)))
        seen[method] = seen.get(method, 0) + 1
    return found


def run_variants(rows: pd.DataFrame) -> dict[str, int]:
    """Which variant of its method's symbol each run wears where every run stands for itself."""
    seen: dict[str, int] = {}
    variants = {}
    for row in at_order(rows).drop_duplicates("run_id").itertuples():
        variants[str(row.run_id)] = seen.get(str(row.method), 0)
        seen[str(row.method)] = variants[str(row.run_id)] + 1
    return variants


def run_marks(rows: pd.DataFrame, x: str, quality: Quality, series: str, variant: int, dark: bool) -> go.Scatter:
    method = str(rows["method"].iloc[0])
    return go.Scatter(
        x=rows[x].tolist(),
        y=rows["value"].tolist(),
        error_y=bars(rows, method, dark, quality.fraction),
        mode="markers",
        name=safe(short(series)),
        legendgroup=series,
        marker=marker(method, variant, dark, 13),
        customdata=custom(rows, quality),
        hovertemplate="%{customdata[1]}<extra></extra>",
    )


def dense_marks(chart: go.Figure, rows: pd.DataFrame, x: str, quality: Quality, dark: bool) -> None:
    dense = rows[rows["kind"] == "dense"]
    if not dense.empty:
        chart.add_trace(run_marks(dense, x, quality, "dense", 0, dark))


def bars(rows: pd.DataFrame, method: str, dark: bool, share: bool) -> dict[str, Any]:
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


def custom(rows: pd.DataFrame, quality: Quality) -> list[list[str]]:
    """[run id, hover text] a row."""
    names = [str(name) for name in rows.columns]
    each = zip(*(rows[name].tolist() for name in names), strict=True)  # to_dict and iterrows take several times as long
    return [[str(row["run_id"]), _hover(row, quality)] for row in (dict(zip(names, row, strict=True)) for row in each)]


def difference_words(row: Mapping[Any, Any], quality: Quality) -> str:
    """The difference to the baseline with its 95 % interval: `+52.30 (+49.88 to +54.72)`."""
    return delta_words(float(row["delta"]), float(row["delta_stderr"]), quality)


def _hover(row: Mapping[Any, Any], quality: Quality) -> str:
    lines = [f"<b>{safe(row['label'])}</b>", f"{safe(quality.label)}  {measured(row['value'], row['stderr'], quality)}"]
    if row["kind"] == "quantised":
        lines.append("the dense model, its weights rounded")
    elif row["kind"] != "dense":
        lines.append(f"{safe(row['series'])}, ratio {percent(row['ratio'])}")
        done = "zeroed" if row["kind"] == "mask" else "removed"
        lines.append(
            f"{percent(row['removed'])} of the whole model {done}, {row['parameters'] / 1e6:,.1f} M parameters"
        )
    if row.get("said"):
        lines.append(safe(row["said"]))
    if math.isfinite(row["before"]):
        lines.append(f"before recovery  {measured(row['before'], row['before_stderr'], quality)}")
    if row["baseline"] != row["run_id"] and math.isfinite(row["delta"]):
        how = " on the same documents" if row["paired"] and quality.is_task else ""
        lines.append(f"against {safe(row['against'])}  {difference_words(row, quality)}{how}")
    lines += [safe(line) for line in _said(detail_words(row["details"]))]
    count = [f"n = {int(row['n']):,}"] if pd.notna(row["n"]) else []
    lines += [safe(line) for line in _said([*whole_protocol(row["protocol"]), *count])]
    return "<br>".join(line for line in lines if line)


def _said(words: Sequence[str]) -> list[str]:
    """Entries joined by dots, in lines that fit a hover label."""
    return textwrap.wrap(" · ".join(words), HOVER_WIDTH, break_long_words=False)


def size_axis(chart: go.Figure, title: str, values: pd.Series, size: str) -> None:
    chart.update_xaxes(title_text=title)
    top = float(values.max()) if len(values) and pd.notna(values.max()) else 1.0
    if size == "removed":
        chart.update_xaxes(
            tickformat=".0%" if top >= 0.05 else ".1%", range=[-0.04 * max(top, 0.02), 1.08 * max(top, 0.02)]
        )
    else:
        chart.update_xaxes(tickformat=".3s", range=[0, 1.08 * top])


def value_axis(chart: go.Figure, quality: Quality, rows: pd.DataFrame, drawn: pd.DataFrame) -> None:
    """Axis of the measured value; logarithmic where perplexities span more than a factor of eight, and titled so.

    rows: what all panels hold, so that they share an axis; drawn: what this one holds.
    """
    values = rows["value"]
    unit = f" [{quality.unit}]" if quality.unit and not quality.fraction else ""
    chart.update_yaxes(title_text=safe(quality.label) + unit)
    better = "lower is better" if quality.lower_is_better else "higher is better"
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if quality.lower_is_better and low > 0 and high / low > 8:
        end = min(high, low * 10**MOST_DECADES)
        _logarithmic(chart, low, high, end)
        _tell_above(chart, int((drawn["value"] > end).sum()))
        subtitle(chart, f"{better}, logarithmic")
        return
    subtitle(chart, better)
    spread = Z95 * rows["stderr"].fillna(0.0)
    low, high = (float((values - spread).min()), float((values + spread).max())) if len(values) else (0.0, 1.0)
    low, high = (max(low, 0.0), min(high, 1.0)) if quality.fraction else (low, high)
    pad = 0.06 * ((high - low) or abs(high) or 1.0)
    shown = ".0%" if quality.fraction else ".3s" if quality.unit == "bytes" else None
    chart.update_yaxes(range=[low - pad, high + pad], tickformat=shown)
    if quality.chance is not None and low - pad < quality.chance < high + pad:
        horizontal(chart, quality.chance, "guessing", chart.layout.font.color, "dot")


def _logarithmic(chart: go.Figure, low: float, high: float, end: float) -> None:
    """A logarithmic value axis up to `end` with ticks at 1, 2 and 5 of each decade up to `high`, written out."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    bounds = [math.log10(low) - 0.12, math.log10(end) + 0.12]
    chart.update_yaxes(type="log", range=bounds, tickvals=ticks, ticktext=[f"{tick:,g}" for tick in ticks])


def _tell_above(chart: go.Figure, count: int) -> None:
    """Marks beyond the end of the axis, and how to see them: inside the axes, where a narrow chart cuts nothing."""
    if count:
        chart.add_annotation(
            text=f"{count} far above: a double click shows {'it' if count == 1 else 'them'}",
            xref="paper", x=0.01, xanchor="left", yref="paper", y=0.99, yanchor="top", showarrow=False,
            font={"size": 12, "color": chart.layout.yaxis.tickfont.color},
        )  # fmt: skip


def subtitle(chart: go.Figure, text: str) -> None:
    colour = chart.layout.yaxis.tickfont.color
    title = f'{chart.layout.title.text}  <span style="font-size:12px;color:{colour}">{safe(text)}</span>'
    chart.update_layout(title_text=title)


def dense_line(chart: go.Figure, rows: pd.DataFrame, quality: Quality, dark: bool) -> None:
    """A line at the value of each dense model, and of a pinned baseline that is none, labelled with it."""
    pinned = (rows["kind"] != "dense") & rows["run_id"].isin(set(rows["baseline"].dropna()))
    for _, row in rows[(rows["kind"] == "dense") | pinned].drop_duplicates("value").iterrows():
        dense = row["kind"] == "dense"
        text = f"{'dense' if dense else row['label']} {measured(row['value'], row['stderr'], quality)}"
        horizontal(chart, float(row["value"]), text, palette(dark).muted, "dash" if dense else "dashdot")


def horizontal(chart: go.Figure, y: float, text: str, colour: str, dash: str) -> None:
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
        x=1,
        xanchor="right",
        y=math.log10(y) if logarithmic else y,
        yanchor="bottom",
        showarrow=False,
        font={"size": 12, "color": colour},
    )


def alt_words(what: str, rows: pd.DataFrame) -> str:
    """What the chart shows and its values in words (not only that there is a chart)."""
    if rows.empty:
        return f"{what}. No values."
    parts = [f"{row['label']}: {row['task']} {row['metric']} {row['value']:.4g}" for _, row in rows.head(24).iterrows()]
    more = f"; and {len(rows) - 24} more" if len(rows) > 24 else ""
    return f"{what}. {'; '.join(parts)}{more}."
