"""Where the time of runs went, stage by stage. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from core.charts_style import OKABE_ITO, distinct, figure, palette, safe

STAGES = {
    "load": ("load", "sky", ""),
    "calibrate": ("calibrate", "orange", "/"),
    "prune": ("prune", "vermillion", "x"),
    "save": ("save and check", "yellow", "."),
    "evaluate": ("evaluate", "blue", ""),
    "recover": ("recover", "purple", "\\"),
    "judge_recovered": ("evaluate again", "green", "-"),
}
"""Main stages in their order: word, colour, and a pattern, so that no meaning hangs on colour alone."""
_ROW = 30


def stage_rows(stages: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    """One row a run and main stage: run_id, label, stage (its word), seconds.

    stages: the store's table (run_id, stage, seconds), parts of an evaluation and all; parts are within their stage and
    are left out. labels: run id → name, in the order in which runs are shown; others are left out.
    """
    own = stages[stages["run_id"].isin(list(labels)) & stages["stage"].isin(list(STAGES))]
    order = {run_id: place for place, run_id in enumerate(labels)}
    places = {name: place for place, name in enumerate(STAGES)}
    found = pd.DataFrame(
        {
            "run_id": own["run_id"].astype(str),
            "label": own["run_id"].map(dict(labels)),
            "stage": [STAGES[name][0] for name in own["stage"]],
            "seconds": pd.to_numeric(own["seconds"], errors="coerce"),
            "_run": own["run_id"].map(order),
            "_stage": own["stage"].map(places),
        }
    )
    found = found[found["seconds"].notna()].sort_values(["_run", "_stage"])
    return found.drop(columns=["_run", "_stage"]).reset_index(drop=True)


def stage_bars(stages: pd.DataFrame, labels: Mapping[str, str], *, dark: bool = False) -> go.Figure:
    """Time per stage: one bar a run, its main stages stacked in order. Arguments as of `stage_rows`."""
    rows = stage_rows(stages, labels)
    runs = [run_id for run_id in labels if run_id in set(rows["run_id"])]
    totals = rows.groupby("run_id")["seconds"].sum()
    said = "; ".join(f"{labels[run_id]}: {duration(float(totals[run_id]))}" for run_id in runs[:24])
    chart = figure(
        "Time per stage", f"Time per stage of each run. In all, {said or 'no values'}.", dark=dark,
        height=150 + _ROW * max(len(runs), 1),
    )  # fmt: skip
    places = {run_id: place for place, run_id in enumerate(runs)}
    unit, scale = ("minutes", 60.0) if len(totals) and float(totals.max()) > 180 else ("seconds", 1.0)
    for word, colour, pattern in STAGES.values():
        own = rows[rows["stage"] == word]
        if own.empty:
            continue
        chart.add_trace(
            go.Bar(
                x=(own["seconds"] / scale).tolist(),
                y=[places[run_id] for run_id in own["run_id"]],
                orientation="h",
                name=word,
                marker={
                    "color": OKABE_ITO[colour],
                    "line": {"width": 0},
                    "pattern": {"shape": pattern, "fgcolor": palette(dark).ink, "size": 6, "fillmode": "overlay"},
                },
                customdata=_said(own, totals, word),
                hovertemplate="%{customdata[1]}<extra></extra>",
            )
        )  # fmt: skip
    chart.update_layout(barmode="stack", bargap=0.35, legend_traceorder="normal")
    chart.update_xaxes(title_text=unit, rangemode="tozero")
    chart.update_yaxes(
        tickmode="array", tickvals=list(range(len(runs))),
        ticktext=[safe(text) for text in distinct([str(labels[run_id]) for run_id in runs], 34)],
        autorange="reversed", showgrid=False, showline=False, ticks="",
    )  # fmt: skip
    return chart


def _said(rows: pd.DataFrame, totals: pd.Series, word: str) -> list[list[str]]:
    """[run id, hover text] a bar."""
    each = zip(rows["run_id"], rows["label"], rows["seconds"], strict=True)
    return [
        [run_id, f"<b>{safe(label)}</b><br>{word}  {duration(seconds)}, {seconds / totals[run_id]:.0%} of the run"]
        for run_id, label, seconds in each
    ]


def duration(seconds: float) -> str:
    """`8.4 s`, `2 min 31 s`, `1 h 04 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
