"""Compare's view of many runs at once: parallel axes."""

from __future__ import annotations

import streamlit as st

from core import charts
from pages._parts import chart_box, theme
from pages._parts.compare_tasks import mixed
from pages._parts.compare_views import Shown

FIRST_AXES = 3
MOST_AXES = 6


def show(shown: Shown) -> None:
    """A picker of axes, the lines, and who is left out."""
    by_label = {quality.label: quality for quality in shown.qualities}
    labels = st.multiselect(
        "Axes", list(by_label), default=_first(shown), max_selections=MOST_AXES, key="compare_axes",
        bind="query-params", help="Beside method, share removed and parameters. The first one colours the lines.",
    )  # fmt: skip
    chosen = [by_label[label] for label in labels]
    if not chosen:
        st.html('<p class="esp-fact">Choose at least one axis.</p>')
        return
    chart = charts.many_runs(shown.table, chosen, dark=theme.dark())
    rows = charts.many_rows(shown.table, chosen).rename(columns={quality.key: quality.label for quality in chosen})
    with st.container(key="compare_wide"):  # on a phone it scrolls: six axes want their room
        chart_box.show(chart, "many runs", "compare_plot_many", rows.reset_index(names="id"))
    st.html(
        f'<p class="esp-fact">A line a run; coloured by {theme.html(chosen[0].label)}: the better, the stronger. '
        "Better is up on measured axes. Drag along an axis to pick runs, and its name to move it.</p>"
    )
    absent = charts.left_out(shown.table, chosen)
    if absent:
        st.html(theme.note(f"Left out, because a value is missing: {charts.named(absent)}.", level="info"))
    mixed(chosen)


def _first(shown: Shown) -> list[str]:
    """The usual qualities, of those that most runs have."""
    counts = shown.table["quality"].value_counts()
    usual = [quality for quality in shown.qualities if quality.primary]
    usual.sort(key=lambda quality: -int(counts[quality.key]))
    return [quality.label for quality in usual[:FIRST_AXES]]
