"""What a report is about: a study, the runs that Compare handed over, or all; and in which language. All in the URL."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.service import Service
from pages._parts import first_step

ALL, CHOSEN, STUDY = "all", "runs", "study:"
MOST = 300  # runs that one paper holds; whoever wants more chooses
LANGUAGES = {"English": "en", "Deutsch": "de"}


def choices(service: Service) -> dict[str, str]:
    """What can be reported on, by what the picker calls it, studies with numbers first; nothing where no run is
    complete."""
    runs = service.runs()
    done = runs[runs["state"] == "COMPLETE"]
    complete = len(done)
    if not complete:
        return {}
    named = st.query_params.get_all("runs")
    found = {CHOSEN: f"{len(named)} chosen {'run' if len(named) == 1 else 'runs'}"} if named else {}
    own = [study for study in service.studies.all() if service.studies.is_own(study)]
    measured = set(done["study"].dropna())
    own.sort(key=lambda study: study.id not in measured)
    found |= {f"{STUDY}{study.id}": study.name for study in own}
    asked = st.query_params.get("study", "")
    if asked and f"{STUDY}{asked}" not in found:
        found |= {f"{STUDY}{study.id}": study.name for study in service.studies.all() if study.id == asked}
    if complete > MOST:
        return found | {ALL: f"The newest {MOST} of {complete:,} complete runs"}
    return found | {ALL: f"All {complete} complete runs" if complete > 1 else "The one complete run"}


def empty(service: Service) -> None:
    """The next step where there is nothing to report on."""
    first_step.arriving(service)
    st.html('<p class="esp-fact">No run is complete yet. A report needs numbers: queue a study, or one run.</p>')
    with st.container(horizontal=True):
        if st.button("Choose a study", key="report_to_studies", type="primary", icon=":material/account_tree:"):
            st.switch_page("studies.py", query_params={})
        if st.button("Set up a run", key="report_to_launch"):
            st.switch_page("launch.py", query_params={})


def choose(offered: dict[str, str]) -> str:
    """The picker; what was chosen stands in the URL."""
    asked = st.query_params.get("study", "")
    wanted = f"{STUDY}{asked}" if asked else CHOSEN
    first = wanted if wanted in offered else next(iter(offered))
    chosen = st.selectbox(
        "Study or runs",
        list(offered),
        index=list(offered).index(first),
        key="report_about",
        format_func=lambda key: offered[key],
        width=420,
        on_change=_remember,
    )
    return str(chosen)


def _remember() -> None:
    chosen = str(st.session_state["report_about"])
    if chosen.startswith(STUDY):
        st.query_params["study"] = chosen.removeprefix(STUDY)
    else:
        st.query_params.pop("study", None)


def options() -> tuple[str, bool]:
    """Language, and whether single tasks are marked."""
    language = st.segmented_control(
        "Language",
        list(LANGUAGES),
        default="English",
        required=True,
        key="report_language",
        bind="query-params",
        label_visibility="collapsed",
    )
    tasks = st.toggle(
        "Mark tasks",
        key="report_tasks",
        bind="query-params",
        help="Mark significant differences of single tasks, too, corrected by Holm over all tasks and runs.",
    )
    return LANGUAGES[str(language)], tasks


def made(service: Service, chosen: str, language: str, *, mark_tasks: bool) -> Any:
    """The report. An EspalierError says why there is none."""
    reports: Any = service.reports
    if chosen.startswith(STUDY):
        study = service.studies.find(chosen.removeprefix(STUDY))
        return reports.of_study(study, language, mark_tasks=mark_tasks)
    if chosen == CHOSEN:
        return reports.of_runs(st.query_params.get_all("runs"), language, mark_tasks=mark_tasks)
    runs = service.runs()
    ids = runs.loc[runs["state"] == "COMPLETE", "id"].astype(str).tolist()[:MOST]  # the newest stand first
    return reports.of_runs(ids[::-1], language, mark_tasks=mark_tasks)
