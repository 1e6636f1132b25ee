"""What Compare compares: the chosen runs (in the URL), and the dense model each is held against."""

from __future__ import annotations

import zlib

import pandas as pd
import streamlit as st

from core.service import Service
from pages._parts import runs_text as say
from pages._parts import theme

FIRST_CHOICE = 12
NONE = "none"
AUTOMATIC = "each run's own dense model"


def complete_runs(service: Service) -> pd.DataFrame:
    """The runs that have numbers, newest first."""
    runs = service.runs()
    if runs.empty:
        return runs
    done = runs[runs["state"] == "COMPLETE"]
    return done.sort_values("finished", ascending=False, na_position="last", kind="stable").reset_index(drop=True)


def empty(service: Service) -> None:
    """The next step where there is nothing to compare."""
    waiting = service.status_line()
    if waiting.running is not None or waiting.queue_length:
        st.html('<p class="esp-fact">No run is complete yet. Numbers stand here as soon as one is.</p>')
        if st.button("See what runs", key="compare_to_runs", type="primary", icon=":material/view_list:"):
            st.switch_page("runs.py")
        return
    st.html('<p class="esp-fact">Nothing to compare yet. The quick look prunes the built-in model and judges it.</p>')
    with st.container(horizontal=True):
        if st.button("Queue the quick look", key="compare_quick", type="primary"):
            service.submit(service.quick_look())
            st.switch_page("runs.py")
        if st.button("Set up a run", key="compare_to_launch"):
            st.switch_page("launch.py")


def chosen_ids(runs: pd.DataFrame) -> list[str]:
    """The runs named in the URL; without any, the newest."""
    named = st.query_params.get_all("runs")
    if not named:
        return runs["id"].astype(str).head(FIRST_CHOICE).tolist()
    known = set(runs["id"].astype(str))
    return [run_id for run_id in dict.fromkeys(named) if run_id in known]


def choose(service: Service, runs: pd.DataFrame) -> list[str]:
    """The table to choose from; ticked rows are chosen, and go into the URL."""
    chosen = chosen_ids(runs)
    ids = runs["id"].astype(str).tolist()
    version = zlib.crc32("".join(ids).encode())
    key = f"compare_runs_{version}"
    titles = {method.name: method.title for method in service.methods()}
    rows = say.records(runs)
    shown = pd.DataFrame(
        {
            "name": runs["name"].fillna("").astype(str),
            "what": [say.method_line(row, titles) for row in rows],
            "removed": [say.removed(row) for row in rows],
            "model": runs["model"].fillna("").astype(str),
            "seed": runs["seed"],
            "finished": say.local_times(runs["finished"], st.context.timezone),
        }
    )
    c = st.column_config
    st.dataframe(
        shown,
        key=key,
        hide_index=True,
        height="content" if len(ids) <= 6 else 250,
        on_select=lambda: _remember(key, ids),
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [ids.index(run_id) for run_id in chosen]}},
        column_config={
            "name": c.TextColumn("Run", width="medium"),
            "what": c.TextColumn("Method and layers", width=265),
            "removed": c.TextColumn(
                "Of the model", alignment="right", help="Achieved share of the whole model removed, or zeroed"
            ),
            "model": c.TextColumn("Model", width="medium"),
            "seed": c.NumberColumn("Seed", width=60, format="%d"),
            "finished": c.DatetimeColumn("Finished", format="D MMM, HH:mm", width=115),
        },
        alt="Complete runs, newest first. Tick those to compare.",
    )
    return chosen


def _remember(key: str, ids: list[str]) -> None:
    rows = st.session_state[key]["selection"]["rows"]
    st.query_params["runs"] = [ids[row] for row in rows if row < len(ids)] or [NONE]


def pin(service: Service, runs: pd.DataFrame, chosen: list[str]) -> dict[str, str | None]:
    """The pinned baseline: run id → id of the dense run that it is compared with."""
    dense = runs[runs["method"].isna()]
    names = dict(zip(dense["id"].astype(str), dense["name"].astype(str), strict=True))
    pinned = st.selectbox(
        "Dense baseline",
        [AUTOMATIC, *names],
        key="compare_baseline",
        width=520,
        bind="query-params",
        format_func=lambda option: option if option == AUTOMATIC else f"{names[option]} · {option[:13]}",
        help="What differences are taken against. Automatic: the dense run of the same model, format and protocol.",
    )
    if pinned != AUTOMATIC:
        return dict.fromkeys(chosen, pinned)
    return {run_id: run_id if run_id in names else service.baseline_for(run_id) for run_id in chosen}


def without_baseline(service: Service, runs: pd.DataFrame, baselines: dict[str, str | None]) -> None:
    """Where chosen runs have no dense run: say so, and offer it."""
    bare = [run_id for run_id, baseline in baselines.items() if baseline is None]
    if not bare:
        return
    names = runs.set_index("id").loc[bare, "name"].astype(str).tolist()
    st.html(theme.note(f"No dense run was judged like {_names(names)}: no differences for them."))
    if st.button("Queue the dense baseline", key="compare_queue_dense"):
        service.submit_baselines(bare)
        st.switch_page("runs.py")


def _names(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
