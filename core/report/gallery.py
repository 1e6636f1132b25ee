"""Compare's charts of a report's runs, to be saved as images beside it."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from core import charts

MOST_RUNS = 10
"""Runs that a chart of tasks has room for."""


def gallery(points: pd.DataFrame, most: int = 3) -> dict[str, go.Figure]:
    """Charts by file name: by size and by ratio, of the first qualities; accuracy by task where the runs are few."""
    found: dict[str, go.Figure] = {}
    known = charts.qualities(points)
    for place, quality in enumerate([each for each in known if each.primary][:most], 1):
        for panel in charts.panels(charts.at(points, quality)):
            found[f"{place}-size-{panel}"] = charts.tradeoff(points, quality, panel=panel)
            found[f"{place}-ratio-{panel}"] = charts.ratio_curve(points, quality, panel=panel)
    tasks = [each for each in known if each.is_task and each.primary]
    if tasks and points["run_id"].nunique() <= MOST_RUNS:
        found["tasks"] = charts.task_dots(points, tasks)
    return found
