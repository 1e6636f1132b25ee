"""Compare's view of what runs took: time per stage."""

from __future__ import annotations

import streamlit as st

from core import charts
from pages._parts import chart_box, theme
from pages._parts.compare_views import Shown


def show(shown: Shown) -> None:
    """One bar a run, its stages stacked."""
    labels = shown.labels
    stages = shown.service.stages(list(labels))
    data = charts.stage_rows(stages, labels)
    if data.empty:
        st.html('<p class="esp-fact">These runs kept no times of their stages.</p>')
        return
    chart_box.show(charts.stage_bars(stages, labels, dark=theme.dark()), "time per stage", "compare_plot_cost", data)
    devices = shown.service.compare.runs(list(labels))["device_name"].dropna().unique()
    if len(devices) > 1:
        st.html(theme.note(f"Not all ran on the same device: {', '.join(map(str, devices[:4]))}."))
    st.html(
        '<p class="esp-fact">Wall time. What a run took over from an earlier one, such as scores that were kept, '
        "took it no time.</p>"
    )
