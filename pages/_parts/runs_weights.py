"""The weights of an opened run: whether they will be kept, while it works; letting them go, once it is over."""

from __future__ import annotations

import streamlit as st

from core.service import Service
from pages._parts import theme
from pages._parts.runs_board import act


def to_come(service: Service, run_id: str) -> None:
    """A switch on a run that waits or works; nothing where it makes no weights."""
    keeps = service.weights.to_come(run_id)
    if keeps is None:
        return
    st.session_state["runs_keep"] = keeps
    st.toggle(
        "Keep its weights",
        key="runs_keep",
        help="Off: they go once they are verified and judged. They can be made again later.",
        disabled=service.read_only,
        on_change=_keep,
        args=(service, run_id),
    )


def button(service: Service, run_id: str) -> None:
    """The button on a run that is over and keeps its weights; it asks first."""
    if service.weights.there(run_id) and st.button(
        "Let weights go", key="runs_let_go", icon=":material/hard_drive:", type="tertiary", disabled=service.read_only
    ):
        _confirm(service, run_id)


def _keep(service: Service, run_id: str) -> None:
    act(service.weights.keep, run_id, bool(st.session_state["runs_keep"]))


@st.dialog("Let its weights go?")
def _confirm(service: Service, run_id: str) -> None:
    size = theme.size(service.weights.size(run_id))
    st.html(
        f'<p class="esp-fact">{size} on disk become free. Its numbers, its log and its exports stay, and '
        "the model can be made again: the same cut once more.</p>"
    )
    if st.button(
        "Let weights go", key="runs_let_go_yes", type="primary", on_click=act, args=(service.weights.let_go, run_id)
    ):
        st.rerun()
