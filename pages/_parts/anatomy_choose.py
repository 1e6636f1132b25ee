"""Which run Anatomy opens, and which one beside it; both stand in the URL."""

from __future__ import annotations

import streamlit as st

from core.errors import EspalierError
from core.service import Service
from pages._parts import first_step, theme

NONE = ""


def empty(service: Service) -> None:
    """The next step where nothing was pruned yet."""
    line = service.status_line()
    if line.running is not None or line.queue_length:
        st.html('<p class="esp-fact">No pruned run is complete yet. The first one opens here.</p>')
        if st.button("See what runs", key="anatomy_to_runs", type="primary", icon=":material/view_list:"):
            st.switch_page("runs.py", query_params={})
        return
    first_step.offer(service, "anatomy", "Nothing was pruned yet.")


def choose(service: Service, runs: list[tuple[str, str]]) -> list[object]:
    """The chosen runs' anatomies, one or two; what cannot be opened is said."""
    names, ids = dict(runs), [run_id for run_id, _ in runs]
    named = [run_id for run_id in dict.fromkeys(st.query_params.get_all("run")) if run_id in names]
    unknown = [text for text in st.query_params.get_all("run") if text not in names]
    if unknown:
        st.html(theme.note(f"There is no pruned run {unknown[0][:60]} that is complete.", level="error"))
    first = named[0] if named else ids[0]
    beside = named[1] if len(named) > 1 else NONE
    st.session_state["anatomy_run"], st.session_state["anatomy_beside"] = first, beside
    left, right = st.columns(2)

    def label(run_id: str) -> str:
        return f"{names[run_id]} · {run_id[:13]}" if run_id else "nothing"  # a list shows text as it is

    with left:
        st.selectbox("Run", ids, key="anatomy_run", format_func=label, on_change=_remember)
    with right:
        others = [NONE, *(run_id for run_id in ids if run_id != first)]
        st.selectbox("Beside it", others, key="anatomy_beside", format_func=label, on_change=_remember)
    found: list[object] = []
    for run_id in (first, beside):
        if not run_id:
            continue
        try:
            found.append(service.anatomy.of(run_id))
        except EspalierError as error:
            st.html(theme.note(f"{names[run_id]}: {error}", level="error"))
    return found


def _remember() -> None:
    first, beside = st.session_state["anatomy_run"], st.session_state["anatomy_beside"]
    st.query_params["run"] = [run_id for run_id in dict.fromkeys((first, beside)) if run_id]
