"""How a run ended that is not complete: what happened, what to do, and whether its memory is free again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.errors import EspalierError
from core.service import RunDetail, Service
from pages._parts import runs_text as say
from pages._parts import theme


def show(service: Service, detail: RunDetail) -> None:
    """Cancelled runs quietly, failed ones with what helps, and buttons that do it."""
    status = detail.status
    if str(status.state) == "CANCELLED":
        st.html(f'<p class="esp-fact">{theme.html(cancelled(detail))}</p>')
        return
    st.html(say.failure_html(status.reason, status.advice))
    found = service.remedies(status.id)
    if not found:
        return
    with st.container(horizontal=True, vertical_alignment="center", key="runs_remedies"):
        for number, remedy in enumerate(found):
            st.button(
                f"{remedy.text} and retry",
                key=f"runs_remedy_{number}",
                type="secondary",
                help=remedy.note or None,
                disabled=service.read_only,
                on_click=_retry_with,
                args=(service, status.id, remedy.changes),
            )


def _retry_with(service: Service, run_id: str, changes: Mapping[str, Any]) -> None:
    try:
        st.query_params["run"] = service.retry_with(run_id, changes)
    except EspalierError as error:
        st.session_state["runs_problem"] = str(error)


def cancelled(detail: RunDetail) -> str:
    """One paragraph: who ended it, how fast, and what became of its memory."""
    said = detail.status.reason if detail.status.reason not in ("", "Cancelled.") else "Somebody cancelled this run."
    freed = detail.freed
    if freed is None:
        return said
    how = "It did not answer and was killed" if freed.forced else "It ended"
    words = [said, f"{how} after {freed.seconds:.1f} s."]
    words.append(
        f"{theme.size(freed.rss)} of memory are free again" if freed.all else f"It held {theme.size(freed.rss)}"
    )
    if freed.device_bytes:
        words[-1] += f", {theme.size(freed.device_bytes)} on {freed.device}"
    words[-1] += ": nothing of it is left." if freed.all and freed.asked else "."
    if not freed.asked:
        words.append(f"{freed.device} could not be asked whether its memory is free again.")
    if freed.left:
        words.append(f"Still there: process {', '.join(map(str, freed.left))}. End it by hand.")
    if freed.device_left:
        words.append(f"{theme.size(freed.device_left)} on {freed.device} are not free yet.")
    return " ".join(words)
