"""Tasks one by one: dots from the baseline to each run, and a heatmap of differences, runs by tasks. Pure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from core.charts_frames import Z95, Quality, at_order
from core.charts_marks import alt_words, bars, custom, run_variants
from core.charts_style import delta_words, distinct, diverging, figure, marker, method_colour, palette, safe, short
from core.charts_tables import GUESSING, MAJORITY, marks

_ROW = 30
"""Pixels of a run's row in the heatmap."""
_LABEL = 30


def task_dots(table: pd.DataFrame, tasks: Sequence[Quality], *, dark: bool = False) -> go.Figure:
    """Accuracy per task: one row a task and protocol, one dot a run with its interval, a line from its baseline's value
    to it, a line where guessing stands and one where always giving the most frequent answer does.

    table: `charts.points`; of `tasks` those that are shares of right answers.
    """
    chosen = [quality for quality in tasks if quality.is_task]
    rows = table[table["quality"].isin([quality.key for quality in chosen])]
    runs = list(dict.fromkeys(at_order(rows)["run_id"]))
    step = 0.72 / max(len(runs), 1)
    height = 130 + int(len(chosen) * max(48, 17 * len(runs)))
    chart = figure(
        "Accuracy by task", alt_words("Accuracy by task with 95 % intervals", rows), dark=dark, height=height
    )
    variants = run_variants(rows)
    for index, run_id in enumerate(runs):
        own = rows[rows["run_id"] == run_id]
        offset = (index - (len(runs) - 1) / 2) * step
        if (way := _ways(own, chosen, offset, 0.3 * step, dark)) is not None:
            chart.add_trace(way)
        chart.add_trace(_dots(own, chosen, offset, variants[run_id], dark))
    _chance_lines(chart, chosen, dark)
    chart.update_yaxes(
        tickmode="array", tickvals=list(range(len(chosen))), ticktext=[_lines(quality.label) for quality in chosen],
        range=[len(chosen) - 0.5, -0.5], showgrid=False, showline=False, ticks="",
    )  # fmt: skip
    for boundary in range(1, len(chosen)):
        chart.add_hline(y=boundary - 0.5, line={"color": palette(dark).grid, "width": 1})
    chart.update_xaxes(title_text="accuracy, with 95 % intervals", tickformat=".0%")
    return chart


def _lines(label: str) -> str:
    """A label in lines that leave a phone room for the chart."""
    return "<br>".join(safe(line) for line in textwrap.wrap(label, 24))


def _ways(rows: pd.DataFrame, tasks: Sequence[Quality], offset: float, reach: float, dark: bool) -> go.Scatter | None:
    """Lines from the baseline's value, where a tick of ± `reach` stands, to the run's; None for the baseline itself."""
    own = rows[(rows["run_id"] != rows["baseline"]) & rows["dense"].notna()]
    if own.empty:
        return None
    places = {quality.key: index for index, quality in enumerate(tasks)}
    xs: list[float | None] = []
    ys: list[float | None] = []
    for start, end, key in zip(own["dense"], own["value"], own["quality"], strict=True):
        y = places[key] + offset
        xs += [float(start), float(start), None, float(start), float(end), None]
        ys += [y - reach, y + reach, None, y, y, None]
    return go.Scatter(
        x=xs,
        y=ys,
        mode="lines",
        line={"color": method_colour(str(own["method"].iloc[0]), dark), "width": 6},
        opacity=0.4,
        legendgroup=str(own["run_id"].iloc[0]),
        showlegend=False,
        hoverinfo="skip",
    )


def _dots(rows: pd.DataFrame, tasks: Sequence[Quality], offset: float, variant: int, dark: bool) -> go.Scatter:
    method = str(rows["method"].iloc[0])
    places = {quality.key: index for index, quality in enumerate(tasks)}
    by_key = {quality.key: quality for quality in tasks}
    return go.Scatter(
        x=rows["value"].tolist(),
        y=[places[key] + offset for key in rows["quality"]],
        error_x=bars(rows, method, dark, share=True),
        mode="markers",
        name=safe(rows["label"].iloc[0]),
        legendgroup=str(rows["run_id"].iloc[0]),
        marker=marker(method, variant, dark, 10),
        customdata=[custom(rows.iloc[[i]], by_key[key])[0] for i, key in enumerate(rows["quality"])],
        hovertemplate="%{customdata[1]}<extra></extra>",
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


# -------------------------------------------------------------------------------------------------------------- heatmap


def delta_rows(table: pd.DataFrame, tasks: Sequence[Quality]) -> pd.DataFrame:
    """The differences that the heatmap shows, one row a run and task: label, task, delta, low, high (95 % interval), p,
    paired, mark (▲ better, ▼ worse at 5 %, by Holm over all cells), run_id, quality. Fractions, not points."""
    chosen = {quality.key: quality for quality in tasks if quality.is_task}
    rows = table[table["quality"].isin(list(chosen)) & (table["run_id"] != table["baseline"]) & table["delta"].notna()]
    rows = at_order(rows)
    marked = marks(rows, list(chosen.values()), tasks=True)
    found = rows[["run_id", "label", "quality", "delta", "delta_stderr", "p", "paired", "against"]].copy()
    found["task"] = [chosen[key].label for key in found["quality"]]
    found["low"] = found["delta"] - Z95 * found["delta_stderr"]
    found["high"] = found["delta"] + Z95 * found["delta_stderr"]
    pairs = zip(found["run_id"], found["quality"], strict=True)
    found["mark"] = [marked.get((str(run), str(key)), "") for run, key in pairs]
    return found.reset_index(drop=True)


def delta_heatmap(table: pd.DataFrame, tasks: Sequence[Quality], *, dark: bool = False) -> go.Figure:
    """Runs by tasks: the difference of accuracy to the baseline in points, marked where it is significant.

    table: `charts.points`. Blue is better and orange worse, the same distance from nothing equally strong; every cell
    carries its number. What was not measured is empty.
    """
    chosen = [quality for quality in tasks if quality.is_task]
    rows = delta_rows(table, chosen)
    runs = list(dict.fromkeys(zip(rows["run_id"], rows["label"], strict=True)))
    cells = {(row["run_id"], row["quality"]): row for _, row in rows.iterrows()}
    grid = [[cells.get((run_id, quality.key)) for quality in chosen] for run_id, _ in runs]
    reach = max((abs(float(delta)) for delta in rows["delta"]), default=0.01) or 0.01
    said = "; ".join(f"{row['label']}, {row['task']}: {100 * row['delta']:+.1f}" for _, row in rows.head(40).iterrows())
    chart = figure(
        "Difference by task",
        f"Difference of accuracy to the baseline in points, runs by tasks. {said or 'No values'}.",
        dark=dark,
        height=150 + _ROW * len(runs),
    )
    chart.add_trace(
        go.Heatmap(
            z=[[math.nan if cell is None else 100 * float(cell["delta"]) for cell in line] for line in grid],
            text=[["" if cell is None else _cell(cell) for cell in line] for line in grid],
            texttemplate="%{text}",
            customdata=[
                [
                    [run_id, "" if cell is None else _cell_hover(cell, quality)]
                    for cell, quality in zip(line, chosen, strict=True)
                ]
                for (run_id, _), line in zip(runs, grid, strict=True)
            ],
            hovertemplate="%{customdata[1]}<extra></extra>",
            hoverongaps=False,
            colorscale=diverging(dark),
            zmid=0,
            zmin=-100 * reach,
            zmax=100 * reach,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": "points", "side": "right"}, "thickness": 10, "outlinewidth": 0},
            textfont={"size": 12, "color": palette(dark).ink},
        )
    )
    chart.update_xaxes(
        tickmode="array", tickvals=list(range(len(chosen))), ticktext=[safe(short(q.label, _LABEL)) for q in chosen],
        side="top", showgrid=False, showline=False, ticks="", tickangle=-45,  # leaning away from the title
    )  # fmt: skip
    chart.update_yaxes(
        tickmode="array", tickvals=list(range(len(runs))),
        ticktext=[safe(text) for text in distinct([str(label) for _, label in runs], _LABEL)],
        autorange="reversed", showgrid=False, showline=False, ticks="",
    )  # fmt: skip
    return chart


def _cell(row: Mapping[str, object] | pd.Series) -> str:
    points = f"{100 * float(row['delta']):+.1f}".replace("-", "−")  # type: ignore[arg-type]
    return f"{'0.0' if points in ('+0.0', '−0.0') else points} {row['mark']}".strip()


def _cell_hover(row: pd.Series, quality: Quality) -> str:
    how = "on the same documents" if row["paired"] else "as of independent values"
    words = f"<b>{safe(row['label'])}</b><br>{safe(quality.label)}<br>against {safe(row['against'])}  "
    words += f"{delta_words(float(row['delta']), float(row['delta_stderr']), quality)}<br>95 % interval, {how}"
    return words + (f"<br>p {float(row['p']):.3f}, not corrected" if math.isfinite(float(row["p"])) else "")
