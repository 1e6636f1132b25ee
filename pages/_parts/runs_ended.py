"""How a run ended that is not complete: what happened, what to do, and whether its memory is free again."""

from __future__ import annotations

import streamlit as st

from core.service import RunDetail
from pages._parts import runs_text as say
from pages._parts import theme


def show(detail: RunDetail) -> None:
    """Cancelled runs quietly, failed ones with what helps."""
    status = detail.status
    if str(status.state) == "CANCELLED":
        st.html(f'<p class="esp-fact">{theme.html(cancelled(detail))}</p>')
        return
    st.html(say.failure_html(status.reason, status.advice))


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
    words[-1] += ": nothing of it is left." if freed.all else "."
    if freed.left:
        words.append(f"Still there: process {', '.join(map(str, freed.left))}. End it by hand.")
    if freed.device_left:
        words.append(f"{theme.size(freed.device_left)} on {freed.device} are not free yet.")
    return " ".join(words)
