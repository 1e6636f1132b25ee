"""Which runs of an opened study keep their weights: chosen by name, written into its YAML as `keep`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from core.errors import EspalierError
from core.service import Service
from pages._parts import runs_text

AGAIN = ("WAITING", "RUNNING", "INTERRUPTED")


def words(service: Service, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A word for each run: kept, where they are; to keep, where they will be; gone; go. Nothing for the dense model."""
    found = []
    for row in rows:
        if row["keeps"] is None:
            found.append("")
        elif row["state"] == "COMPLETE":
            found.append("kept" if service.weights.there(str(row["run_id"])) else "gone")
        else:
            found.append("to keep" if row["keeps"] else "go")
    return found


def show(service: Service, study: Any, preview: Any, status: Any) -> None:
    """The choice of runs, and a button for marked ones whose weights went before they were marked."""
    rows = preview.rows[(preview.rows["problem"] == "") & preview.rows["keeps"].notna()]
    if rows.empty:
        return
    names = [str(name) for name in rows["name"]]
    marked = [name for name, keeps in zip(names, rows["keeps"], strict=True) if keeps]
    always = bool(study.base.get("save_model"))
    st.session_state["studies_keep"] = marked
    with st.container(horizontal=True, vertical_alignment="bottom", key="studies_keep_row"):
        st.multiselect(
            "Keep the weights of",
            names,
            key="studies_keep",
            format_func=lambda name: name.removeprefix(f"{study.name}: "),
            placeholder="no run: weights go once they are judged",
            disabled=service.read_only or always,
            help="All runs keep them: the base says save_model." if always else "Written into the YAML as `keep`. "
            "The weights of other runs go once they are judged; they can be made again.",
            on_change=_mark,
            args=(service, study),
        )  # fmt: skip
        missing = _missing(service, marked, status)
        if missing:
            models = "1 model" if len(missing) == 1 else f"{len(missing)} models"
            st.button(
                f"Make {models} again",
                key="studies_again",
                icon=":material/replay:",
                help="Marked runs that are complete, but kept no weights.",
                disabled=service.read_only,
                on_click=_again,
                args=(service, missing),
            )


def _missing(service: Service, marked: Sequence[str], status: Any) -> list[str]:
    """Ids of marked runs whose model is neither there nor being made."""
    found = []
    for row in runs_text.records(status.rows):
        if row["name"] in marked and row["state"] == "COMPLETE" and not service.weights.there(row["run_id"]):
            now = service.rebuilds.of(row["run_id"])
            if service.rebuilds.missing(row["run_id"]) and (now is None or not (now.apart or now.state in AGAIN)):
                found.append(str(row["run_id"]))
    return found


def _mark(service: Service, study: Any) -> None:
    text = f"studies_text_{study.id}"
    if st.session_state.get(text, study.to_yaml()) != study.to_yaml():
        st.session_state["studies_error"] = "The YAML below was changed and is not saved. Save it first, or undo it."
        return
    try:
        service.studies.keep(study, list(st.session_state["studies_keep"]))
    except EspalierError as error:
        st.session_state["studies_error"] = str(error)
        return
    st.session_state.pop(text, None)


def _again(service: Service, run_ids: Sequence[str]) -> None:
    try:
        for run_id in run_ids:
            service.rebuilds.start(run_id)
    except EspalierError as error:
        st.session_state["studies_error"] = str(error)
