"""Runs: the board of what runs, waits and is finished, and one opened run (its id in the URL)."""

from pathlib import Path

import streamlit as st

from core.service import get_service
from pages._parts import runs_board, runs_detail, theme

STYLES = Path(__file__).parent / "_parts" / "runs.css"

service = get_service()
st.html(STYLES)
problem = st.session_state.pop("runs_problem", "")
if problem:
    st.html(theme.note(problem, level="error"))
run_id = st.query_params.get("run")
if run_id:
    runs_detail.show(service, run_id)
else:
    runs_board.show(service)
