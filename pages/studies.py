"""Studies: many runs as one, chosen or given as YAML, previewed, queued, stopped, packed and opened elsewhere."""

from pathlib import Path

import streamlit as st

from core.service import get_service
from pages._parts import studies_list, studies_open, theme

service = get_service()
for name in ("runs.css", "studies.css"):
    st.html(Path(__file__).parent / "_parts" / name)
for level in ("error", "info"):
    said = st.session_state.pop(f"studies_{level}", "")
    if said:
        st.html(theme.note(said, level=level))
run = st.session_state.pop("studies_run", "")
if run:
    st.switch_page("runs.py", query_params={"run": run})
opened = st.query_params.get("study")
if opened:
    studies_open.show(service, opened)
else:
    studies_list.show(service)
