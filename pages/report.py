"""Report: a study or chosen runs as a paper, seen here and downloaded as HTML, Markdown or LaTeX."""

import streamlit as st

from core.errors import EspalierError
from core.service import get_service
from pages._parts import report_choose, report_show, theme

service = get_service()
theme.heading("Report", "Runs as a paper: methods, tables, figures and what they show, from the numbers alone.")
choices = report_choose.choices(service)
if not choices:
    report_choose.empty(service)
    st.stop()
with st.container(horizontal=True, vertical_alignment="bottom", key="report_head"):
    chosen = report_choose.choose(choices)
    language, mark_tasks = report_choose.options()
try:
    with st.spinner("Writing the report", show_time=True):
        report = report_choose.made(service, chosen, language, mark_tasks=mark_tasks)
except EspalierError as error:
    st.html(theme.note(str(error), level="info"))
    st.stop()
report_show.downloads(service, report)
report_show.show(service, report)
