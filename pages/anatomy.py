"""Anatomy: what one run removed, layer by layer, or two runs side by side."""

from pathlib import Path

import streamlit as st

from core.service import get_service
from pages._parts import anatomy_choose, anatomy_show, theme

STYLES = Path(__file__).parent / "_parts" / "runs.css"

service = get_service()
st.html(STYLES)
theme.heading("Anatomy", "What a run removed, what decided, and where it hurts. The address bar holds the choice.")
runs = service.anatomy.runs()
if not runs:
    anatomy_choose.empty(service)
    st.stop()
chosen = anatomy_choose.choose(service, runs)
if chosen:
    anatomy_show.show(service, chosen)
