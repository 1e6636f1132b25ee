"""Compare's views of quality against size, speed, memory or ratio."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core import charts
from pages._parts import chart_box, theme
from pages._parts.compare_views import Shown

SHARE, ASKED = "share of the whole model", "ratio asked for"


def quality_of(qualities: Sequence[charts.Quality], key: str) -> charts.Quality:
    """A picker of one quality: task, metric and protocol; its choice stands in the URL under `key`."""
    by_label = {quality.label: quality for quality in qualities}
    label = st.selectbox(
        "Quality", list(by_label), key=key, bind="query-params",
        help="One task, metric and protocol. What was measured in another way is another entry.",
    )  # fmt: skip
    return by_label[str(label)]


def tradeoff(shown: Shown) -> None:
    """Quality against what a run costs, with the Pareto front."""
    left, right = st.columns([1.2, 1], vertical_alignment="bottom")
    with left:
        quality = quality_of(shown.qualities, "compare_quality")
    costs = {cost.label: cost for cost in charts.costs(shown.table)}
    with right:
        label = st.selectbox(
            "Against",
            list(costs),
            key="compare_cost",
            bind="query-params",
            help="The achieved share of the whole model, size, or what was measured: speed and memory. Speeds count as "
            "multiples of the dense model’s, measured alternately in the same process.",
        )
        cost = costs[str(label)]
    with st.container(horizontal=True, key="compare_front_line"):
        front = st.toggle("Pareto front", value=True, key="compare_front", bind="query-params")
        hide = st.toggle(
            "Hide dominated runs", key="compare_hide", bind="query-params",
            help="Leave out runs that another beats in both directions. The dense model stays.",
        )  # fmt: skip
    panels = charts.panels(charts.at(shown.table, quality), cost)
    dark = theme.dark()

    def made(panel: charts.Panel) -> tuple[pd.DataFrame, go.Figure]:
        rows = charts.tradeoff_rows(shown.table, quality, panel=panel, size=cost)
        chart = charts.tradeoff(
            shown.table, quality, panel=panel, size=cost, front=front, dominated=not hide, dark=dark, rows=rows
        )
        return rows, chart

    hidden = []
    for place, panel in zip(_places(panels), panels, strict=True):
        rows, chart = shown.once("tradeoff", partial(made, panel), quality.key, cost.key, panel, front, hide, dark)
        hidden.append(charts.hidden_words(rows) if hide else "")
        with place:
            data = charts.tradeoff_data(rows, quality, cost)
            chart_box.show(chart, f"{quality.label} {cost.label} {panel}", f"compare_plot_{panel}", data)
    _said(shown, quality, "; ".join(filter(None, hidden)))
    if cost.quality is not None:
        _unmeasured(shown, cost.quality, quality)
        st.html(f'<p class="esp-fact">{theme.html(_line(shown.table, cost.quality, "Across"))}</p>')


def by_ratio(shown: Shown) -> None:
    """Quality against ratio, one line a method, bands over seeds."""
    left, right = st.columns([1.4, 1], vertical_alignment="bottom")
    with left:
        quality = quality_of(shown.qualities, "compare_quality")
    with right:
        axis = st.segmented_control(
            "Across", [SHARE, ASKED], default=SHARE, required=True, key="compare_axis_ratio", bind="query-params"
        )
    x: charts.RatioAxis = "removed" if axis == SHARE else "ratio"
    panels = charts.panels(charts.at(shown.table, quality))
    data = charts.ratio_rows(shown.table, quality, x=x)
    for place, panel in zip(_places(panels), panels, strict=True):
        with place:
            chart = charts.ratio_curve(shown.table, quality, panel=panel, x=x, dark=theme.dark())
            own = data[(data["kind"] == "mask") == (panel == "mask")]
            chart_box.show(chart, f"{quality.label} by ratio {panel}", f"compare_plot_{panel}", own)
    _said(shown, quality, "")


def _places(panels: Sequence[charts.Panel]) -> list[DeltaGenerator]:
    """Real cuts and masks side by side, never on one axis; on a phone, one above the other."""
    return st.columns([1.6, 1]) if len(panels) == 2 else [st.container()]


def _said(shown: Shown, quality: charts.Quality, hidden: str) -> None:
    """How it was measured, what is hidden, and who has no value."""
    line = _line(shown.table, quality, "Bars are 95 % intervals")
    st.html(f'<p class="esp-fact">{theme.html(line)}{" " + theme.html(hidden) + "." if hidden else ""}</p>')
    if quality.distinguish:
        st.html(theme.note("This was measured in several ways; the chart holds the runs of this one.", level="info"))
    absent = charts.missing(shown.table, quality)
    if absent:
        st.html(theme.note(f"Not measured in this way: {charts.named(absent)}.", level="info"))


def _unmeasured(shown: Shown, cost: charts.Quality, quality: charts.Quality) -> None:
    """Runs that have the quality, but nothing on the horizontal axis."""
    have = set(charts.at(shown.table, quality)["run_id"])
    absent = [
        label
        for label, run_id in zip(*_of(shown.table, have), strict=True)
        if run_id not in set(charts.at(shown.table, cost)["run_id"])
    ]
    if absent:
        st.html(theme.note(f"No {cost.label} was measured of {charts.named(absent)}.", level="info"))


def _of(table: pd.DataFrame, run_ids: set[str]) -> tuple[list[str], list[str]]:
    rows = table[table["run_id"].isin(run_ids)].drop_duplicates("run_id")
    return rows["label"].astype(str).tolist(), rows["run_id"].astype(str).tolist()


def _line(table: pd.DataFrame, quality: charts.Quality, first: str) -> str:
    """How the values were measured, in a line."""
    rows = charts.at(table, quality)
    counts = sorted({f"{int(n):,}" for n in rows["n"].dropna()})
    details = charts.protocol_words(rows.iloc[0]["protocol"])
    what = "windows" if quality.metric == "perplexity" else "documents" if quality.is_task else ""
    measured = f"{' or '.join(counts)} {what}" if counts and what else ""
    name = quality.name if first == "Across" else ""
    return " · ".join(word for word in (first, name, details, measured) if word) + "."
