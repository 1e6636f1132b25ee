"""The sensitivity scan: its curve, a range on it, and the way of that range into the form on Launch."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core import charts_scan
from core.errors import EspalierError
from core.service import Service
from pages._parts import chart_box, theme


def show(service: Service, run: Any, key: str) -> None:
    """The run's own scan, or the one that fits it; without one, the way to it."""
    scan, run_id = run.scan, run.run_id
    if not scan:
        found = service.anatomy.scan_for(run)
        if found is None:
            _without(service, run, key)
            return
        run_id, name, scan = found
        st.html(f'<p class="esp-fact">From the scan <b>{theme.html(name)}</b>, {theme.html(run_id)}.</p>')
    table = charts_scan.scan_table(scan)
    if table.empty:
        st.html(theme.note("The scan's numbers are not in its files.", level="info"))
        return
    layers = charts_scan.layers_of(table)
    chosen = charts_scan.proposed(table) or (layers[0], layers[-1])
    if len(layers) > 1:
        chosen = st.select_slider(
            "Layers to prune", layers, value=chosen, key=f"anatomy_range_{key}_{run_id}",
            help="Proposed is the longest range without a layer that costs more than twice the median.",
        )  # fmt: skip
    figure = charts_scan.scan_curve(scan, run.method, chosen, dark=theme.dark())
    chart_box.show(figure, f"scan {run.name}", f"anatomy_scan_{key}", table)
    st.html(f'<p class="esp-fact">{theme.html(charts_scan.together(scan, chosen))}</p>')
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Use this range", key=f"anatomy_use_{key}", type="primary", icon=":material/content_cut:"):
            st.session_state["launch_copy"] = run_id
            st.session_state["launch_copy_layers"] = chosen
            st.switch_page("launch.py", query_params={})
        st.html(f'<p class="esp-fact">{charts_scan.scan_words(scan)}</p>', width="stretch")


def _without(service: Service, run: Any, key: str) -> None:
    """No scan of this model by this method yet: offer one."""
    try:
        experiment = service.anatomy.scan_of(service.experiment_to_run(run.run_id))
    except EspalierError as error:
        st.html(theme.note(str(error), level="info"))
        return
    said = service.preview(experiment)
    about = f", about {theme.duration(said.seconds)}" if said.seconds else ""
    words = f"No scan of this model by this method yet: each layer pruned by itself, one job{about}."
    st.html(f'<p class="esp-fact">{theme.html(words)}</p>')
    if st.button("Queue a scan of all layers", key=f"anatomy_scan_queue_{key}", type="primary",
                 disabled=service.read_only or bool(said.problems)):  # fmt: skip
        try:
            (run_id,) = service.submit([experiment])
        except EspalierError as error:
            st.html(theme.note(str(error), level="error"))
            return
        st.switch_page("runs.py", query_params={"run": run_id})
