"""The slim line on top of every page: device and free memory, what runs, how long the queue is."""

import streamlit as st

from core.service import StatusLine, get_service, reopen_service
from pages._parts import feed, status_text
from pages._parts.theme import html, plain

EVERY_S = 20
"""The line's texts come by the feed; this is for browsers that it does not reach."""


def show() -> None:
    """Draw the line; it is kept up to date while something runs or waits."""
    line = get_service().status_line()
    active = line.running is not None or line.queue_length > 0 or line.read_only
    if active:
        feed.start()
    st.fragment(_draw, run_every=EVERY_S if active else None, key="status")()


def _draw() -> None:
    line = get_service().status_line()
    with st.container(key="status_line", horizontal=True, vertical_alignment="center"):
        _text("line:device", status_text.device(line))
        if line.running is not None:
            st.page_link(
                "runs.py",
                label=plain(line.running_name or line.running.id),
                icon=":material/play_arrow:",
                query_params={"run": line.running.id},
                help="Open this run",
            )
        _text("line:work", status_text.work(line))
        _text("line:queue", status_text.queue(line))
    if line.read_only:
        _banner(line)
    elif line.notice:
        st.html(f'<p class="esp-fact">{html(line.notice)}</p>')
    feed.watch(feed.LINE, feed.line_mark(line))


def _text(name: str, inner: str) -> None:
    st.html(feed.slot(name, inner, tag="span", css="esp-status"), width="content")


def _banner(line: StatusLine) -> None:
    """This process only shows the folder: whose it is, and how to change something."""
    with st.container(key="read_only", horizontal=True, vertical_alignment="center"):
        if line.owner is not None:
            said = f"Another Espalier, {line.owner}, works on this folder: its queue and its runs are changed there."
            st.html(f'<p role="status"><b>Read only.</b> {html(said)}</p>')
            return
        said = "The Espalier that worked on this folder has ended; what waits in its queue is not started."
        st.html(f'<p role="status"><b>Read only.</b> {html(said)}</p>')
        if st.button("Take over the queue", key="take_over", icon=":material/lock_open:"):
            reopen_service()
            st.rerun()
