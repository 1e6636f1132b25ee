"""Compare: chosen runs against the dense model, one chart at a time, and the numbers beneath it."""

from pathlib import Path

import streamlit as st

from core import charts
from core.service import get_service
from pages._parts import compare_choose, compare_show, theme

STYLES = Path(__file__).parent / "_parts" / "runs.css"

service = get_service()
st.html(STYLES)
theme.heading("Compare", "Tick the runs to compare. The address bar holds the choice.")
runs = compare_choose.complete_runs(service)
if runs.empty:
    compare_choose.empty(service)
    st.stop()

chosen = compare_choose.choose(service, runs)
baselines = compare_choose.pin(service, runs, chosen)
if not chosen:
    st.html('<p class="esp-fact">Tick at least one run.</p>')
    st.stop()
compare_choose.without_baseline(service, runs, baselines)
ids = list(dict.fromkeys([*chosen, *(run_id for run_id in baselines.values() if run_id)]))
titles = {method.name: method.title for method in service.methods()}
paired = service.differences(baselines)
table = charts.points(runs[runs["id"].isin(ids)], service.metrics(ids), baselines, titles, paired)
if table.empty:
    st.html(theme.note("The chosen runs have no numbers: nothing was evaluated.", level="info"))
else:
    compare_show.show(service, table)
