"""All studies: those of this home with where they stand, those that come ready made, and a door for files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import streamlit as st

from core.errors import EspalierError
from core.service import Service
from pages._parts import first_step, theme
from pages._parts import studies_text as say

NEW = """name: My study
note: What it is for.
base:
  pruning: {method: taylor, layers: [4, 25]}
  evaluation: {tasks: [piqa, arc_easy], limit: 100}
grid:
  pruning.ratio: [0.1, 0.2, 0.3]
"""


def show(service: Service) -> None:
    """The list, and what takes a YAML file or a packed study."""
    theme.heading(
        "Studies", "Many runs as one: previewed with their cost, queued, stopped, resumed and compared together."
    )
    first_step.arriving(service)
    studies = service.studies.all()
    own = [study for study in studies if service.studies.is_own(study)]
    imports = {each.study: each for each in service.travel.all()}
    if own:
        st.html(f'<h2 class="esp-section">Yours<span>{len(own)}</span></h2>')
        for study in own:
            _row(service, study, imports.get(study.id), counted=True)
    ready = [study for study in studies if study not in own]
    if ready:
        st.html('<h2 class="esp-section">Ready made</h2>')
        for study in ready:
            _row(service, study, imports.get(study.id), counted=False)
    _door(service)


def _row(service: Service, study: Any, came: Any, *, counted: bool) -> None:
    with st.container(key=f"studies_row_{study.id}", horizontal=True, vertical_alignment="center"):
        total = service.studies.count(study)
        runs = "1 run" if total == 1 else f"{total} runs"
        facts = [runs]
        if counted or came:
            facts.append(say.counts_line(service.studies.status(study).counts) or "not queued")
        if came:
            facts.append("imported")
        note = f'<p class="esp-fact">{theme.html(study.note)}</p>' if study.note else ""
        st.html(
            f'<p class="esp-row"><b>{theme.html(study.name)}</b><span>{theme.html(" · ".join(facts))}</span></p>{note}'
        )
        st.button("Open", key=f"studies_open_{study.id}", on_click=open_study, args=(study.id,))


def open_study(study_id: str) -> None:
    """Show one study; its id stands in the URL."""
    st.query_params["study"] = study_id


def _door(service: Service) -> None:
    st.html('<h2 class="esp-section">A study of your own, or from elsewhere</h2>')
    turn = st.session_state.get("studies_turn", 0)
    write, bring = st.tabs(["Write YAML", "Open a file"])
    with write:
        text = st.text_area(
            "The study as YAML", NEW, key=f"studies_yaml_{turn}", height=260, label_visibility="collapsed"
        )
        st.button(
            "Preview study",
            key="studies_write",
            icon=":material/visibility:",
            disabled=service.read_only,
            on_click=_keep,
            args=(service, text),
        )
    with bring:
        file = st.file_uploader(
            "A study's YAML, or a packed study (.parquet)",
            type=["yaml", "yml", "parquet"],
            key=f"studies_file_{turn}",
            max_upload_size=256,
            disabled=service.read_only,
        )
        st.html(
            '<p class="esp-fact">A packed study brings its results: its runs are marked as imported and never change. '
            "Import from people you trust to have measured what they say.</p>"
        )
        if file is not None:
            st.button(
                "Import study" if file.name.endswith(".parquet") else "Preview study",
                key="studies_bring",
                type="primary",
                on_click=_bring,
                args=(service, file.name, file.getvalue()),
            )


def _keep(service: Service, text: str) -> None:
    """Keep a study that somebody wrote, unless another one has its name."""
    try:
        study = service.studies.read(text)
        other = next((each for each in service.studies.all() if each.id == study.id), None)
        if other is not None and other != study:
            st.session_state["studies_error"] = (
                f"There is another study called {other.name}. Give yours another name, or open that one and change it."
            )
            return
        service.studies.save(study)
    except EspalierError as error:
        st.session_state["studies_error"] = str(error)
        return
    st.session_state["studies_turn"] = st.session_state.get("studies_turn", 0) + 1
    open_study(study.id)


def _bring(service: Service, name: str, content: bytes) -> None:
    if not name.endswith(".parquet"):
        _keep(service, content[: 1 << 20].decode("utf-8", errors="replace"))
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "packed.parquet"
            file.write_bytes(content)
            found = service.travel.take_in(file, name)
    except EspalierError as error:
        st.session_state["studies_error"] = str(error)
        return
    before = f" {found.here_before} were here before." if found.here_before else ""
    st.session_state["studies_info"] = f"{len(found.runs)} runs of {found.name} imported.{before}"
    st.session_state["studies_turn"] = st.session_state.get("studies_turn", 0) + 1
    open_study(found.study)
