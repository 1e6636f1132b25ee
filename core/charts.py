"""Charts of Compare: a table of points (`points`, core/charts_frames.py) goes in, a Plotly figure comes out. Pure.

Every chart takes one quality, that is one task, metric and protocol, or says in its labels where protocols differ.
Every mark carries the run's id first in its `customdata`. Error bars are 95 % intervals (1.96 standard errors).
This module is the door: what it names lives in modules of their own, `core/charts_*.py`.
"""

from __future__ import annotations

from core.charts_cost import stage_bars, stage_rows
from core.charts_frames import PRIMARY, Quality, at, at_order, missing, points, qualities
from core.charts_many import left_out, many_rows, many_runs
from core.charts_marks import MASK_TITLE, Panel
from core.charts_ratio import RatioAxis, ratio_curve, ratio_rows
from core.charts_style import alt, config, measured, named, percent, safe
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
from core.charts_tasks import delta_heatmap, delta_rows, task_dots
from core.charts_tradeoff import (
    Cost,
    Size,
    costs,
    frontier,
    hidden_words,
    panels,
    tradeoff,
    tradeoff_data,
    tradeoff_rows,
)
from core.charts_words import detail_words, protocol_words, rates_words, whole_protocol

__all__ = [
    "DELTA", "GUESSING", "MAJORITY", "MASK_TITLE", "PRIMARY", "Cost", "Panel", "Quality", "RatioAxis", "Size", "about",
    "alt", "at", "at_order", "comparison_table", "config", "costs", "delta_heatmap", "delta_rows", "detail_words",
    "difference", "disturbances", "export", "frontier", "hidden_words", "leak", "leaks", "left_out", "many_rows",
    "many_runs", "marks", "measured", "missing", "mixed_protocols", "named", "panels", "percent", "points",
    "protocol_words", "qualities", "rates_words", "ratio_curve", "ratio_rows", "safe", "stage_bars", "stage_rows",
    "task_dots", "tradeoff", "tradeoff_data", "tradeoff_rows", "whole_protocol", "without_numbers",
]  # fmt: skip
