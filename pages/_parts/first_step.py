"""The next step where a page has nothing to show yet."""

from __future__ import annotations

import streamlit as st

from core.errors import EspalierError
from core.service import Service
from pages._parts import theme

ASK_S = 1.0


def offer(service: Service, key: str, words: str) -> None:
    """The quick look as a button, and the way to the form; `words` say what is missing, keys begin with `key`."""
    arriving(service)
    st.html(f'<p class="esp-fact">{theme.html(words)} The quick look prunes the built-in model and judges it.</p>')
    with st.container(horizontal=True):
        quick(service, "Queue the quick look", f"{key}_quick")
        if st.button("Set up a run", key=f"{key}_to_launch"):
            st.switch_page("launch.py", query_params={})


def arriving(service: Service) -> None:
    """That the study that comes along is being unpacked, on a first start; the page is drawn anew when it is there."""
    if service.travel.arriving:
        st.fragment(_arriving, run_every=ASK_S, key="arriving")(service)


def _arriving(service: Service) -> None:
    if not service.travel.arriving:
        st.rerun()
    st.html(theme.note("The reference study is being unpacked. It stands here in a few seconds.", level="info"))


def quick(service: Service, label: str, key: str) -> None:
    """The button that queues the quick look and shows it at work; it says why where it cannot."""
    if st.button(label, key=key, type="primary", disabled=service.read_only):
        try:
            service.submit(service.quick_look())
        except EspalierError as error:
            st.html(theme.note(str(error), level="error"))
        else:
            st.switch_page("runs.py", query_params={})
