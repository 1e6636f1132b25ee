"""The board of Runs: what runs, what waits, what is finished. The first two draw themselves anew while they move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from core.errors import EspalierError
from core.service import Service, get_service
from pages._parts import feed, first_step, runs_finished, runs_place, theme
from pages._parts import runs_text as say
from pages._parts.runs_finished import open_run

EVERY_S = 10.0
"""Progress comes by the feed, and what begins, ends or waits elsewhere is drawn when it says so; this is for browsers
that it does not reach."""
QUEUE_SHOWN = 8


def show(service: Service) -> None:
    """The whole board, or the first step where there is nothing yet."""
    now = service.live.now()
    theme.heading("Runs", "What runs, what waits, what is finished. Click a run to open it.")
    if now.empty:
        first_step.offer(service, "runs", "Nothing has run yet.")
        return
    moving = bool(now.running or (len(now.runs) and not now.line.paused))
    st.session_state["runs_settled"] = now.mark
    st.fragment(_live, run_every=EVERY_S if moving else None, key="runs_live")()
    _after(service)
    runs_place.show(service)
    runs_finished.show(service, now)


# ----------------------------------------------------------------------------------------------------------------- live


def _running(runs: pd.DataFrame) -> pd.Series:
    return runs["state"].isin(say.ACTIVE)


def _queued(runs: pd.DataFrame) -> pd.Series:
    return runs["state"].isin(say.QUEUED)


def _live() -> None:
    """What runs and what waits. When a run ends, the whole page is drawn anew, once."""
    service = get_service()
    now = service.live.now()
    if st.session_state.get("runs_settled") != now.mark:
        st.session_state["runs_settled"] = now.mark
        st.rerun(scope="app")
    titles = {method.name: method.title for method in service.methods()}
    for row in say.records(now.runs[_running(now.runs)]):
        _running_card(service, row, titles)
    queued = now.runs[_queued(now.runs)].sort_values(["position", "id"], na_position="first")  # a cluster has the first
    if not queued.empty:
        _queue(service, queued, titles, paused=now.line.paused)
    feed.watch(feed.BOARD, feed.board_mark(now))


def _running_card(service: Service, row: dict[str, Any], titles: dict[str, str]) -> None:
    run_id = str(row["id"])
    with st.container(border=True, key=f"runs_running_{run_id}"):
        text, buttons = st.columns([5, 1.4], vertical_alignment="center")
        with text:
            st.html(say.row_html(row["name"], say.method_line(row, titles), row["state"]))
            st.html(feed.slot(f"run:{run_id}", say.progress_html(row, dense=say.nothing(row.get("method")))))
        with buttons, st.container(horizontal=True, horizontal_alignment="right"):
            st.button("Open", key=f"runs_open_{run_id}", on_click=open_run, args=(run_id,))
            st.button("Cancel run", key=f"runs_cancel_{run_id}", on_click=act, args=(service.cancel, run_id))


def _queue(service: Service, queued: pd.DataFrame, titles: dict[str, str], *, paused: bool) -> None:
    with st.container(horizontal=True, vertical_alignment="center", key="runs_queue_head"):
        st.html(f'<h2 class="esp-section">Waiting<span>{len(queued)}{", paused" if paused else ""}</span></h2>')
        word, sign = ("Resume queue", "play_arrow") if paused else ("Pause queue", "pause")
        icon = f":material/{sign}:"
        st.button(word, key="runs_pause", icon=icon, type="tertiary", on_click=act, args=(service.pause, not paused))
    everything = st.session_state.get("runs_queue_all", False)
    waits = service.waits()
    for index, row in enumerate(say.records(queued if everything else queued.head(QUEUE_SHOWN))):
        _queue_row(service, row, index, len(queued), titles)
        waits_for(service, str(row["id"]), waits)
    if len(queued) > QUEUE_SHOWN:
        st.toggle(f"Show all {len(queued)} waiting runs", key="runs_queue_all")


def _queue_row(service: Service, row: dict[str, Any], index: int, total: int, titles: dict[str, str]) -> None:
    run_id = str(row["id"])
    with st.container(key=f"runs_waiting_{run_id}", horizontal=True, vertical_alignment="center"):
        state = row["state"] if row["state"] == "INTERRUPTED" else ""
        st.html(f'<span class="esp-place">{index + 1}</span>', width="content")
        st.html(say.row_html(row["name"], say.method_line(row, titles), state))
        moves = (("first", "Move to the front", -index, "vertical_align_top"), ("up", "Move up", -1, "arrow_upward"),
                 ("down", "Move down", 1, "arrow_downward"))  # fmt: skip
        for name, word, by, sign in moves:
            at_end = index == (total - 1 if name == "down" else 0)
            st.button(
                "",
                key=f"runs_{name}_{run_id}",
                icon=f":material/{sign}:",
                type="tertiary",
                help=word,
                disabled=at_end,
                on_click=act,
                args=(service.move, run_id, by),
            )
        st.button("Open", key=f"runs_open_{run_id}", type="tertiary", on_click=open_run, args=(run_id,))
        st.button("Cancel", key=f"runs_cancel_{run_id}", type="tertiary", on_click=act, args=(service.cancel, run_id))


def waits_for(service: Service, run_id: str, waits: Mapping[str, str]) -> None:
    """Why a run waits although its turn has come, and the button that starts it all the same."""
    if run_id not in waits:
        return
    with st.container(horizontal=True, vertical_alignment="center", key=f"runs_waits_{run_id}"):
        st.html(f'<p class="esp-fact">Waits for room. {theme.html(waits[run_id])}</p>')
        st.button(
            "Start anyway",
            key=f"runs_anyway_{run_id}",
            type="tertiary",
            help="It may run out of memory or disk",
            disabled=service.read_only,
            on_click=act,
            args=(service.start_anyway, run_id),
        )


def _after(service: Service) -> None:
    """The command for when the queue is empty, where one is set: what it is, and a switch that asks first."""
    after = service.after_queue.view()
    if not after.command:
        return
    with st.container(horizontal=True, vertical_alignment="center", key="runs_after"):
        when = "a minute after the queue is empty" if after.seconds is None else "within a minute, unless a run comes"
        says = f"Runs once, {when}:" if after.on else "A command for when the queue is empty, off:"
        st.html(f'<p class="esp-fact">{says} <code>{theme.html(after.command)}</code></p>')
        if after.on:
            st.button("Switch off", key="runs_after_off", type="tertiary", disabled=service.read_only, on_click=act,
                      args=(service.after_queue.switch, False))  # fmt: skip
        elif st.button("Switch on", key="runs_after_on", type="tertiary", disabled=service.read_only):
            _confirm_after(service, after.command)


@st.dialog("Run this when the queue is empty?")
def _confirm_after(service: Service, command: str) -> None:
    st.code(command, language="bash", wrap_lines=True)
    st.html(
        '<p class="esp-fact">It runs on this machine, with the rights of this app, once: a minute after the last run '
        "has ended, unless a run comes or somebody switches it off here. It was set in a terminal of this machine.</p>"
    )
    if st.button("Run it when the queue is empty", key="runs_after_yes", type="primary", on_click=act,
                 args=(service.after_queue.switch, True)):  # fmt: skip
        st.rerun()


def act(action: Any, *arguments: Any) -> None:
    """A callback: call the service, and say it beside the page's title if that did not work."""
    try:
        action(*arguments)
    except EspalierError as error:
        st.session_state["runs_problem"] = str(error)
    get_service().live.forget()
