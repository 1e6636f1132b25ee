"""The finished runs on Runs: a table, newest first; choosing a row opens the run."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pandas as pd
import streamlit as st

from core.espalier import branches_of_rows, espalier_svg
from core.service import Now, Service
from pages._parts import runs_text as say
from pages._parts import theme

FINISHED_SHOWN = 100
KEPT = 8
DRAWN_KEPT = 4000
_tables: dict[tuple[Any, ...], pd.DataFrame] = {}
_drawn: dict[tuple[str, bool], str] = {}


def open_run(run_id: str) -> None:
    """Show one run; its id stands in the URL."""
    st.query_params["run"] = run_id


def show(service: Service, now: Now) -> None:
    """The newest runs that are over; more at the foot. Choosing one opens it."""
    if not now.finished:
        return
    shown = service.live.finished(st.session_state.get("runs_finished_shown", FINISHED_SHOWN))
    with st.container(horizontal=True, vertical_alignment="center", key="runs_finished_head"):
        st.html(f'<h2 class="esp-section">Finished<span>{now.finished}</span></h2>')
        if (shown["state"] == "COMPLETE").any() and st.button("Compare runs", key="runs_to_compare", type="tertiary"):
            st.switch_page("compare.py", query_params={})
    ids = shown["id"].astype(str).tolist()
    table = _table(service, shown, now.mark)
    st.dataframe(
        table,
        key=f"runs_finished_{st.session_state.get('runs_opened', 0)}",
        hide_index=True,
        row_height=38,
        height="content" if len(ids) <= 16 else 640,
        on_select=lambda: _open_selected(ids),
        selection_mode="single-cell",
        placeholder="",
        column_config=_columns(state_width=140 if table["state"].str.contains(",").any() else 85),
        alt="Finished runs, newest first. Selecting one opens it.",
    )
    if now.finished > len(shown):
        st.button(f"Show {FINISHED_SHOWN} more", key="runs_more", on_click=_show_more)


def _show_more() -> None:
    st.session_state["runs_finished_shown"] = (
        st.session_state.get("runs_finished_shown", FINISHED_SHOWN) + FINISHED_SHOWN
    )


def _open_selected(ids: list[str]) -> None:
    """Open the row that was clicked, by the list that was on the page then."""
    turn = st.session_state.get("runs_opened", 0)
    selection = st.session_state[f"runs_finished_{turn}"]["selection"]
    rows = [cell[0] for cell in selection["cells"]]
    if rows and rows[0] < len(ids):
        st.session_state["runs_opened"] = turn + 1  # a fresh table next time, with nothing selected
        open_run(ids[rows[0]])


def _table(service: Service, runs: pd.DataFrame, mark: tuple[Any, ...]) -> pd.DataFrame:
    """The table, kept for all visitors who see the same: finished runs never change."""
    key = (service.home, mark, len(runs), st.context.timezone, theme.dark(), len(service.travel.runs()))
    if key not in _tables:
        if len(_tables) >= KEPT:
            _tables.clear()
        _tables[key] = _made(service, runs)
    return _tables[key]


def _made(service: Service, runs: pd.DataFrame) -> pd.DataFrame:
    titles = {method.name: method.title for method in service.methods()}
    rows = say.records(runs)
    came = service.travel.runs()
    states = [(str(row["id"]), say.state_word(row["state"])) for row in rows]
    return pd.DataFrame(
        {
            "tree": _trees(service, runs["id"].astype(str).tolist()),
            "name": runs["name"].fillna("").astype(str).tolist(),
            "state": [f"{word}, imported" if run_id in came else word for run_id, word in states],
            "what": [say.method_line(row, titles) for row in rows],
            "removed": [say.removed(row) for row in rows],
            "took": [say.took(float(s)) if pd.notna(s) else "" for s in runs["seconds"]],
            "finished": say.local_times(runs["finished"], st.context.timezone).tolist(),
            "reason": runs["reason"].fillna("").astype(str).tolist(),
        }
    )


def _trees(service: Service, ids: list[str]) -> list[str]:
    """The small espalier of each run, '' where there is none."""
    dark = theme.dark()
    missing = [run_id for run_id in ids if (run_id, dark) not in _drawn]
    if len(_drawn) > DRAWN_KEPT:
        _drawn.clear()
        missing = ids
    if missing:
        for run_id, group in service.layers(missing).groupby("run_id"):
            svg = espalier_svg(branches_of_rows(say.records(group)), scale="small", dark=dark)
            _drawn[str(run_id), dark] = "data:image/svg+xml;base64," + b64encode(svg.encode()).decode()
    return [_drawn.get((run_id, dark), "") for run_id in ids]


def _columns(state_width: int) -> dict[str, Any]:
    c = st.column_config
    return {
        "tree": c.ImageColumn("", width=120, help="What the run cut"),
        "name": c.TextColumn("Run", width="medium"),
        "state": c.TextColumn("State", width=state_width),
        "what": c.TextColumn("Method and layers", width=265),
        "removed": c.TextColumn(
            "Of the model", help="Achieved share of the whole model removed, or zeroed", alignment="right"
        ),
        "took": c.TextColumn("Took", width=75, alignment="right"),
        "finished": c.DatetimeColumn("Finished", format="D MMM, HH:mm", width=115),
        "reason": c.TextColumn("What happened", width="large"),
    }
