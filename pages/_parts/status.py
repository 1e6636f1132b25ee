"""The slim line on top of every page: device and free memory, what runs, how long the queue is."""

import streamlit as st

from core.service import ClusterView, StatusLine, get_service, reopen_service
from pages._parts.runs_text import cluster_size, stage_word
from pages._parts.theme import duration, html, plain, size

EVERY_S = 2


def show() -> None:
    """Draw the line; it draws itself anew while something runs or waits."""
    line = get_service().status_line()
    active = line.running is not None or line.queue_length > 0 or line.read_only
    st.fragment(_draw, run_every=EVERY_S if active else None, key="status")()


def _draw() -> None:
    line = get_service().status_line()
    with st.container(key="status_line", horizontal=True, vertical_alignment="center"):
        st.html(f'<span class="esp-status">{_device(line)}</span>', width="content")
        _work(line)
        st.html(f'<span class="esp-status">{_queue(line)}</span>', width="content")
    if line.read_only:
        _banner(line)
    elif line.notice:
        st.html(f'<p class="esp-fact">{html(line.notice)}</p>')


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


def _device(line: StatusLine) -> str:
    return f"<b>{html(line.device)}</b> · {size(line.free_bytes)} of {size(line.total_bytes)} free"


def _work(line: StatusLine) -> None:
    run = line.running
    if run is None:
        st.html('<span class="esp-status">nothing runs</span>', width="content")
        return
    said = [line.running_name or run.id, run.task or (stage_word(run.stage) if run.stage else "starting")]
    if run.eta_s is not None:
        said.append(f"{duration(run.eta_s)} left")
    st.page_link(
        "runs.py",
        label=plain(" · ".join(said)),
        icon=":material/play_arrow:",
        query_params={"run": run.id},
        help="Open this run",
    )
    share = run.fraction or 0.0
    st.html(
        f'<span class="esp-progress" role="progressbar" aria-valuenow="{share:.0%}" aria-label="stage progress">'
        f'<i style="width:{share:.1%}"></i></span>',
        width="content",
    )


def _queue(line: StatusLine) -> str:
    if line.read_only:
        return "read only"
    waits = f"{line.queue_length} waiting" if line.queue_length else "queue empty"
    where = f" · {_cluster(line.cluster)}" if line.cluster is not None else ""
    return f"{waits} · paused{where}" if line.paused else f"{waits}{where}"


def _cluster(cluster: ClusterView) -> str:
    """The cluster that runs go to: what it has, or that it does not answer."""
    if not cluster.reachable:
        return f'<span title="{html(cluster.problem)}">cluster does not answer</span>'
    return f"cluster: {html(cluster_size(cluster))}"
