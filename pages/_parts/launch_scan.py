"""The way from the form to a sensitivity scan, and from a range on a scan back into the form."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.errors import EspalierError
from core.experiment import Experiment
from core.service import Service
from pages._parts.theme import duration, plain

LAYERS = "launch_copy_layers"  # first and last, set by whoever sends a range here


def button(service: Service, made: Sequence[Experiment]) -> None:
    """Offer to try each layer by itself, where the form holds one cut that has layers."""
    if len(made) != 1:
        return
    try:
        scan = service.anatomy.scan_of(made[0])
    except EspalierError:  # nothing is cut, or channels of the whole model are
        return
    said = service.preview(scan)
    if said.identical:
        st.page_link(
            "anatomy.py", label=plain("Each layer by itself: see the scan"), icon=":material/show_chart:",
            query_params={"run": said.identical},
        )  # fmt: skip
        return
    st.button(
        f"Scan layers (about {duration(said.seconds)})",
        key="launch_scan",
        type="tertiary",
        icon=":material/show_chart:",
        disabled=service.read_only or bool(said.problems),
        on_click=_submit,
        args=(service, scan),
        help="Queues one job that prunes each layer by itself with this method and ratio, and measures perplexity: the "
        "curve shows which layers can lose most.",
    )


def _submit(service: Service, scan: Experiment) -> None:
    try:
        (run_id,) = service.submit([scan])
    except EspalierError as error:
        st.session_state["launch_said"] = ("error", str(error), None)
    else:
        st.session_state["launch_said"] = ("info", "Queued a scan of all layers.", run_id)
