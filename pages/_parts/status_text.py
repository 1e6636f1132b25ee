"""The slim line on top in small HTML: device, how far the work is, how long the queue is. Pure."""

from core.service import ClusterView, StatusLine
from pages._parts.runs_text import cluster_size, stage_word
from pages._parts.theme import duration, html, size


def slots(line: StatusLine) -> dict[str, str]:
    """Inner HTML of the line's places, by the name of their slot."""
    return {"line:device": device(line), "line:work": work(line), "line:queue": queue(line)}


def device(line: StatusLine) -> str:
    """The device and its free memory."""
    return f"<b>{html(line.device)}</b> · {size(line.free_bytes)} of {size(line.total_bytes)} free"


def work(line: StatusLine) -> str:
    """What the run that works does now, and its bar."""
    run = line.running
    if run is None:
        return "nothing runs"
    said = [run.task or (stage_word(run.stage) if run.stage else "starting")]
    if run.eta_s is not None:
        said.append(f"{duration(run.eta_s)} left")
    share = run.fraction or 0.0
    return (
        f'{html(" · ".join(said))} <span class="esp-progress" role="progressbar" aria-valuenow="{share:.0%}" '
        f'aria-label="stage progress"><i style="width:{share:.1%}"></i></span>'
    )


def queue(line: StatusLine) -> str:
    """How many wait, whether the queue is paused, and the cluster."""
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
