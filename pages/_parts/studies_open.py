"""One opened study: where it stands, what is left to do and costs, its runs, and what can be done with all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from core.errors import EspalierError
from core.service import Service, get_service
from pages._parts import feed, runs_text, studies_keep, theme
from pages._parts import studies_text as say

EVERY_S = 10.0
"""Runs that begin, end or come are told by the feed; this is for browsers that it does not reach."""
MOVING = ("RUNNING", "WAITING", "INTERRUPTED")


def show(service: Service, study_id: str) -> None:
    """The page of one study; an id that is not there leads back to the list."""
    st.button("All studies", key="studies_back", icon=":material/arrow_back:", type="tertiary", on_click=_back)
    try:
        study = service.studies.find(study_id)
        preview = _preview(service, study)
    except EspalierError as error:
        st.html(theme.note(str(error), level="error"))
        return
    status = service.studies.status(study)
    came = next((each for each in service.travel.all() if each.study == study.id), None)
    theme.heading(study.name, study.note)
    if came is not None:
        words = say.import_line(came, st.context.timezone)
        st.html(f'<p class="esp-fact"><span class="esp-state">imported</span> {theme.html(words)}</p>')
    st.session_state["studies_live"] = (study.id, preview.seconds if preview.to_do else 0.0)
    moving = any(status.counts.get(state) for state in MOVING)
    st.session_state["studies_seen"] = dict(status.counts)
    if moving or set(status.counts) != {"NOT QUEUED"}:
        st.fragment(_live, run_every=EVERY_S if moving else None, key="studies_live_part")()
    with st.container(horizontal=True, key="studies_buttons"):
        _buttons(service, study, preview, status, came)
    left, right = st.columns([1, 1], gap="large")
    with left:
        st.html('<h2 class="esp-section">What it takes</h2>')
        st.html(say.facts_html(say.cost_facts(preview)))
        if preview.to_do and preview.basis:
            st.html(f'<p class="esp-fact">{theme.html(preview.basis)}</p>')
        _price(service)
    with right:
        if preview.shared:
            st.html(f'<h2 class="esp-section">Done once, for several runs</h2>{say.shared_html(preview.shared)}')
    _runs(service, study, preview, status)
    studies_keep.show(service, study, preview, status)
    _yaml(service, study)


def _back() -> None:
    st.query_params.pop("study", None)


def _preview(service: Service, study: Any) -> Any:
    """The preview, kept for this visitor as long as neither the study, nor any run, nor the price has changed."""
    key = (study.to_yaml(), service.studies.stamp(), service.preferences.price_per_hour())
    kept = st.session_state.get("studies_preview")
    if kept is None or kept[0] != key:
        kept = st.session_state["studies_preview"] = (key, service.studies.preview(study))
    return kept[1]


def _live() -> None:
    """The bar. When a run of the study ends, the whole page is drawn anew."""
    service = get_service()
    study_id, seconds = st.session_state["studies_live"]
    feed.watch(feed.BOARD, feed.board_mark(service.live.now()))
    try:
        counts = service.studies.status(service.studies.find(study_id)).counts
    except EspalierError:
        st.rerun(scope="app")
    if counts != st.session_state.get("studies_seen"):
        st.session_state["studies_seen"] = dict(counts)
        st.rerun(scope="app")
    moving = any(counts.get(state) for state in MOVING)
    left = f"about {theme.duration(seconds)} left" if moving and seconds else ""
    if service.status_line().paused and moving:
        left = f"{left}, the queue is paused".removeprefix(", ")
    st.html(say.progress_html(counts, left))


# -------------------------------------------------------------------------------------------------------------- buttons


def _buttons(service: Service, study: Any, preview: Any, status: Any, came: Any) -> None:
    counts, fixed = status.counts, service.read_only
    ahead = sum(counts.get(state, 0) for state in ("NOT QUEUED", "FAILED", "CANCELLED"))
    ahead = min(ahead, preview.to_do)
    if ahead:
        begun = set(counts) - {"NOT QUEUED"}
        runs = "1 run" if ahead == 1 else f"{ahead} runs"
        word = f"Queue the {runs} that are left" if begun and ahead > 1 else f"Queue {runs}"
        args = (service, study)
        st.button(word, key="studies_queue", type="primary", disabled=fixed, on_click=_queue, args=args)
    moving = any(counts.get(state) for state in MOVING)
    if moving and st.button("Stop study", key="studies_stop", icon=":material/stop:", disabled=fixed):
        said = "Its runs that wait or run are cancelled. What is complete stays; queue the study again to go on."
        _confirm("Stop this study?", said, "Stop study", _stop, service, study)
    done = status.rows.loc[status.rows["state"] == "COMPLETE", "run_id"].tolist()
    if done:
        if st.button("Compare its runs", key="studies_compare", icon=":material/monitoring:"):
            st.switch_page("compare.py", query_params={"runs": done})
        if st.button("Write report", key="studies_report", icon=":material/article:"):
            st.switch_page("report.py", query_params={"study": study.id})
        _pack(service, study)
    own = service.studies.is_own(study) and not moving
    word = "Remove import" if came is not None else "Delete study" if own else ""
    if word and st.button(word, key="studies_delete", icon=":material/delete:", type="tertiary", disabled=fixed):
        if came is None:
            said = "Its YAML goes. Its runs stay, with their numbers."
        else:
            said = (
                f"{len(came.runs)} runs that came with {came.file} go, with their numbers. "
                "Import the file again to have them back."
            )
        _confirm(f"{word}?", said, word, _remove if came is not None else _delete, service, study)


def _pack(service: Service, study: Any) -> None:
    """The packed study as a download; it is made when the button is pressed."""

    def content() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return service.travel.pack(study, Path(folder) / "packed.parquet").file.read_bytes()

    st.download_button(
        "Pack study",
        content,
        file_name=f"{study.id}.parquet",
        mime="application/vnd.apache.parquet",
        key="studies_pack",
        icon=":material/package_2:",
        help="One file of everything but weights: open it on another machine with Import.",
        on_click="ignore",
    )


def _confirm(title: str, text: str, word: str, action: Callable[..., None], *arguments: Any) -> None:
    @st.dialog(title)
    def ask() -> None:
        st.html(f'<p class="esp-fact">{theme.html(text)}</p>')
        if st.button(word, key="studies_yes", type="primary", on_click=action, args=arguments):
            st.rerun()

    ask()


def _act(action: Callable[[], str]) -> None:
    try:
        st.session_state["studies_info"] = action()
    except EspalierError as error:
        st.session_state["studies_error"] = str(error)


def _queue(service: Service, study: Any) -> None:
    def act() -> str:
        count = len(service.studies.queue(study))
        return f"{count} runs queued." if count != 1 else "1 run queued."

    _act(act)


def _stop(service: Service, study: Any) -> None:
    _act(lambda: f"{len(service.studies.stop(study))} runs cancelled.")


def _remove(service: Service, study: Any) -> None:
    _act(lambda: f"{len(service.travel.remove(study.id).runs)} imported runs removed.")
    _back()


def _delete(service: Service, study: Any) -> None:
    def act() -> str:
        service.studies.delete(study)
        return f"{study.name} is deleted; its runs stay."

    _act(act)
    _back()


# ----------------------------------------------------------------------------------------------------------------- body


def _price(service: Service) -> None:
    kept = service.preferences.price_per_hour()
    st.number_input(
        "Price of this machine an hour",
        min_value=0.0,
        value=kept,
        step=0.1,
        format="%.2f",
        placeholder="not set",
        key="studies_price",
        width=240,
        disabled=service.read_only,
        help="In any currency; kept for this folder. Empty: no money is shown.",
        on_change=_set_price,
        args=(service,),
    )


def _set_price(service: Service) -> None:
    try:
        service.preferences.set_price_per_hour(st.session_state["studies_price"])
    except EspalierError as error:
        st.session_state["studies_error"] = str(error)


def _runs(service: Service, study: Any, preview: Any, status: Any) -> None:
    rows = preview.rows
    works = rows[rows["problem"] == ""].merge(status.rows.drop(columns="name"), on="key", how="left")
    out = rows[rows["problem"] != ""]
    st.html(f'<h2 class="esp-section">Runs<span>{len(works)}</span></h2>')
    if not works.empty:
        ids = works["run_id"].fillna("").astype(str).tolist()
        table = pd.DataFrame(
            {
                "name": [str(name).removeprefix(f"{study.name}: ") for name in works["name"]],
                "state": [runs_text.state_word(state) for state in works["state"].fillna("NOT QUEUED")],
                "time": [theme.duration(seconds) if seconds else "–" for seconds in works["seconds"]],
                "disk": [theme.size(count) if count else "–" for count in works["disk_bytes"]],
                "memory": [theme.size(count) if count else "–" for count in works["memory_bytes"]],
                "weights": studies_keep.words(service, runs_text.records(works)),
            }
        )
        c = st.column_config
        turn = st.session_state.get("studies_opened", 0)
        st.dataframe(
            table,
            key=f"studies_runs_{turn}",
            hide_index=True,
            height="content" if len(table) <= 16 else 560,
            on_select=lambda: _open_selected(ids),
            selection_mode="single-cell",
            column_config={
                "name": c.TextColumn("Run", width="medium"),
                "state": c.TextColumn("State", width=100),
                "time": c.TextColumn("Takes about", alignment="right", help="The whole run, from start to end"),
                "disk": c.TextColumn("Keeps on disk", alignment="right"),
                "memory": c.TextColumn("Needs memory", alignment="right"),
                "weights": c.TextColumn("Weights", width=100, help="Kept: on disk now, or once the run is complete"),
            },
            alt="Runs of this study with their state and cost. Selecting one that was queued opens it.",
        )
        if any(ids):
            st.html('<p class="esp-fact">Click a run that was queued to open it.</p>')
    if not out.empty:
        st.html(f'<h2 class="esp-section">Left out<span>{len(out)}</span></h2>')
        items = "".join(
            f"<dt>{theme.html(row['name'])}</dt><dd>{theme.html(row['problem'])}</dd>" for row in runs_text.records(out)
        )
        st.html(f'<dl class="esp-left-out">{items}</dl>')


def _open_selected(ids: list[str]) -> None:
    turn = st.session_state.get("studies_opened", 0)
    rows = [cell[0] for cell in st.session_state[f"studies_runs_{turn}"]["selection"]["cells"]]
    if rows and rows[0] < len(ids) and ids[rows[0]]:
        st.session_state["studies_opened"] = turn + 1
        st.session_state["studies_run"] = ids[rows[0]]


def _yaml(service: Service, study: Any) -> None:
    with st.expander("YAML", key="studies_yaml", icon=":material/description:"):
        text = st.text_area(
            "The study as YAML",
            study.to_yaml(),
            height=360,
            key=f"studies_text_{study.id}",
            label_visibility="collapsed",
        )
        st.html('<p class="esp-fact">Another name makes another study. Runs that are there count for both.</p>')
        st.button(
            "Save study",
            key="studies_save",
            icon=":material/save:",
            disabled=service.read_only or text == study.to_yaml(),
            on_click=_save,
            args=(service, study.id),
        )


def _save(service: Service, study_id: str) -> None:
    """Keep the changed YAML. Under another study's name it is refused; a ready-made study is saved as one's own."""
    try:
        changed = service.studies.read(st.session_state[f"studies_text_{study_id}"])
        if changed.id != study_id and any(each.id == changed.id for each in service.studies.all()):
            st.session_state["studies_error"] = f"There is another study called {changed.name}. Give it another name."
            return
        service.studies.save(changed)
    except EspalierError as error:
        st.session_state["studies_error"] = str(error)
        return
    st.session_state["studies_info"] = f"{changed.name} is saved."
    st.query_params["study"] = changed.id
