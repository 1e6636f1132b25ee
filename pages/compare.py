"""Compare: chosen runs against a baseline, one chart at a time, and the numbers beneath it."""

from pathlib import Path

import streamlit as st

from core import charts
from core.service import Wanted, get_service
from pages._parts import compare_choose, compare_pin, compare_show, theme
from pages._parts.compare_views import Shown

STYLES = Path(__file__).parent / "_parts" / "runs.css"

service = get_service()
st.html(STYLES)
theme.heading("Compare", "Tick the runs to compare. The address bar holds the whole view, to be shared.")
if not service.compare.count(Wanted(states=("COMPLETE",))):
    compare_choose.empty(service)
    st.stop()

chosen = compare_choose.choose(service)
baselines, pinned = compare_pin.pin(service, chosen)
if not chosen:
    st.html('<p class="esp-fact">Tick at least one run.</p>')
    st.stop()
compare_pin.without_baseline(service, baselines)
key, table = service.compare.points(chosen, baselines)
if table.empty:
    st.html(theme.note("The chosen runs have no numbers: nothing was evaluated.", level="info"))
else:
    qualities = service.compare.once(("qualities", *key), lambda: charts.qualities(table))
    compare_show.show(Shown(service, table, key, qualities, chosen, baselines, pinned))
if st.button("Write a report of these runs", key="compare_report", type="tertiary", icon=":material/article:"):
    st.switch_page("report.py", query_params={"runs": chosen})
