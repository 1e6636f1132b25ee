"""An opened run whose weights are not here: where it came from, and making its model again."""

from __future__ import annotations

import streamlit as st

from core.service import Service
from pages._parts import studies_text, theme
from pages._parts.runs_board import act

WAITING = ("WAITING", "RUNNING", "INTERRUPTED")
SAID = {
    "same": "Its model was made again: bit for bit the weights that were judged.",
    "alike": "Its model was made again: the same units stayed, though not every bit of the weights is the same.",
}


def button(service: Service, run_id: str) -> None:
    """The button that queues it, unless that is under way."""
    now = service.rebuilds.of(run_id)
    if now is None or not (now.apart or now.state in WAITING):
        st.button(
            "Make the model again",
            key="runs_again",
            icon=":material/replay:",
            help="Its weights were not kept. The same cut is made once more, without judging it.",
            disabled=service.read_only,
            on_click=act,
            args=(service.rebuilds.start, run_id),
        )


def facts(service: Service, run_id: str) -> None:
    """One line each: on an imported run where it was measured, and how the making of its model stands."""
    came = service.travel.of_run(run_id)
    if came is not None:
        words = studies_text.import_line(came, st.context.timezone)
        st.html(f'<p class="esp-fact"><span class="esp-state">imported</span> {theme.html(words)}</p>')
    now = service.rebuilds.of(run_id)
    if now is None:
        return
    if now.weights:
        trained = " Its recovery was trained again: numbers after it are of the first training." if now.trained else ""
        st.html(f'<p class="esp-fact">{SAID[now.weights]}{trained}</p>')
        return
    said = {
        "COMPLETE": "A run made its model again and keeps it:",
        "FAILED": "Its model could not be made again:",
        "CANCELLED": "The making of its model was cancelled:",
    }.get(now.state, "Its model is being made again:")
    with st.container(horizontal=True, vertical_alignment="center", key="runs_again_row"):
        st.html(f'<p class="esp-fact">{said}</p>', width="content")
        st.button("Open that run", key="runs_again_open", type="tertiary", on_click=_open, args=(now.run_id,))


def _open(run_id: str) -> None:
    st.query_params["run"] = run_id
