"""Compare's views of single tasks: dots from the baseline to each run, and the heatmap of differences."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from core import charts
from pages._parts import chart_box, theme
from pages._parts.compare_views import Shown

NARROW = 3
"""Tasks whose cells fit a phone; more of them scroll."""


def dots(shown: Shown) -> None:
    """A row a task, a dot a run, a line from its baseline's value to it."""
    tasks = shown.tasks
    chart = charts.task_dots(shown.table, tasks, dark=theme.dark())
    chart_box.show(chart, "accuracy by task", "compare_plot_tasks", _dots_data(shown.table, tasks))
    st.html(
        '<p class="esp-fact">The task’s usual metric. A line leads from the value of '
        f"{theme.html(shown.against)} to the run’s. Dotted: guessing; dashed, majority: always the most frequent "
        "answer. Bars are 95 % intervals.</p>"
    )
    mixed(tasks)


def _dots_data(table: pd.DataFrame, tasks: Sequence[charts.Quality]) -> pd.DataFrame:
    by_key = {quality.key: quality for quality in tasks}
    rows = charts.at_order(table[table["quality"].isin(list(by_key))])
    chosen = [by_key[key] for key in rows["quality"]]
    return pd.DataFrame(
        {
            "run": rows["label"],
            "task": [quality.label for quality in chosen],
            "accuracy": rows["value"],
            "standard error": rows["stderr"],
            "documents": rows["n"],
            "baseline": rows["dense"],
            "guessing": [quality.chance for quality in chosen],
            "majority": [quality.majority for quality in chosen],
            "id": rows["run_id"],
        }
    )


def heatmap(shown: Shown) -> None:
    """Runs by tasks: differences in points, significant ones marked."""
    chart = charts.delta_heatmap(shown.table, shown.tasks, dark=theme.dark())
    data = charts.delta_rows(shown.table, shown.tasks)
    if data.empty:
        st.html('<p class="esp-fact">No difference to show: no chosen run was judged like its baseline.</p>')
        return
    columns = ["label", "task", "delta", "low", "high", "p", "paired", "mark", "run_id"]
    with st.container(key="compare_wide" if len(shown.tasks) > NARROW else "compare_narrow"):
        chart_box.show(chart, "difference by task", "compare_plot_heatmap", data[columns])
    st.html(
        f'<p class="esp-fact">Points of accuracy against {theme.html(shown.against)}. ▲ better, ▼ worse at 5 %, '
        "corrected by Holm over all cells; the rest may be luck. Document by document where both runs answered the "
        "same ones.</p>"
    )
    mixed(shown.tasks)


def mixed(qualities: Sequence[charts.Quality]) -> None:
    """Say plainly where the page holds values that were measured in different ways."""
    for sentence in charts.mixed_protocols(qualities):
        st.html(theme.note(sentence))
