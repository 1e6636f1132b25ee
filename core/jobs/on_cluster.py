"""Runs whose worker is a job of a cluster: part of the supervisor (core/jobs/supervisor.py).

The queue stays ours: a cluster is given a run only while fewer than `AHEAD` of ours wait there for a node, so that
order and pause mean what they mean on one machine, and no node waits for work. A worker lives while its lock is held
or its events move; what the cluster says counts where neither does.
"""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.errors import EspalierError, InputError
from core.jobs import cluster as clusters
from core.jobs import processes
from core.jobs.cluster import Cluster, Clusters, ClusterView, Job
from core.jobs.rundir import RunDirectory
from core.jobs.starting import Starting
from core.jobs.states import State
from core.jobs.status import RunStatus

if TYPE_CHECKING:
    from core.jobs.supervisor import _Active

AHEAD = 2
MOVED_WITHIN_S = 10.0
"""Events that moved so lately are a sign of life: a worker says something every two seconds."""
FILES_WITHIN_S = 10.0
"""A worker's last word may take a moment to be seen through a file system that several machines share."""
_TOLD_ENDS = (0, 1, 130)  # exit codes of a worker that wrote how its run ended (core/jobs/worker.py)


@dataclass
class Placed:
    """Where a run's worker was asked for, and when it gave its last sign of life (monotonic seconds)."""

    cluster: Cluster
    job: Job
    updated: str | None = None
    moved_at: float = field(default=float("-inf"))
    over_at: float | None = None


class OnCluster(Starting):
    """Part of the Supervisor; called with its lock held."""

    clusters: Clusters

    def cluster(self) -> ClusterView | None:
        """The cluster that runs go to; None for this machine. An address that cannot be one is its problem."""
        try:
            found = self.clusters.current()
        except InputError as error:
            return ClusterView(self.clusters.address(), False, str(error))
        return None if found is None else found.view()

    def _start_somewhere(self) -> None:
        """Start what can be started now, here or at the cluster; nothing while its address is none."""
        try:
            cluster = self.clusters.current()
        except InputError:
            return
        if cluster is None:
            self._start_next()
        else:
            self._hand_out(cluster)

    def _hand_out(self, cluster: Cluster) -> None:
        """Give the cluster the next runs of the queue."""
        if not cluster.view().reachable:
            return
        for run_id in list(self._queue.order):
            waiting = sum(active.placed is not None and active.placed.job.pending for active in self._active.values())
            if waiting >= AHEAD:
                return
            directory = RunDirectory.of(self.runs, run_id)
            status = directory.recorded()
            if not directory.exists() or status.state.finished:  # deleted by hand, or cancelled from the command line
                self._queue.remove(run_id)
                self._queue.write()
                self._changed.append(run_id)
                continue
            self._give(cluster, directory, status)

    def _give(self, cluster: Cluster, directory: RunDirectory, status: RunStatus) -> None:
        from core.jobs.supervisor import _Active

        try:
            device = _device(directory)
            order = clusters.order_of(directory, self.home, status.attempt, device, cluster.view().capacity)
        except EspalierError as error:
            self._end_waiting(directory, status, State.FAILED, error.message, error.advice)
            return
        clusters.record(directory, cluster.address, order.submission_id, status.attempt)
        placed = Placed(cluster, cluster.submit(order))
        self._active[directory.id] = _Active(directory, f"cluster {directory.id}", status.attempt, placed=placed)
        self._queue.remove(directory.id)
        self._queue.write()
        self._changed.append(directory.id)

    def _found(self, directory: RunDirectory, attempt: int) -> Placed | None:
        """Where an earlier app asked for this attempt's worker, if that was at a cluster."""
        found = self.clusters.found(directory, attempt)
        return None if found is None else Placed(*found)

    def _watch_job(self, active: "_Active", placed: Placed) -> None:
        """Settle a run whose worker is gone, or will never come."""
        job, directory = placed.job, active.directory
        status = directory.recorded()
        begun = status.state is not State.WAITING
        if status.state.finished and not directory.worker_lives():
            self._leave(active, placed)
        elif _gives_signs(placed, directory, status):
            placed.over_at = None
        elif active.kill_at is not None and not begun:
            self._leave(active, placed)  # a job that waits for a node is stopped once it gets one: nobody waits for it
        elif job.over:
            placed.over_at = placed.over_at or time.monotonic()
            code = None if job.seen is None else job.seen.code
            late = time.monotonic() - placed.over_at > FILES_WITHIN_S
            if late or code not in _TOLD_ENDS:
                self._over(active, placed, begun=begun)
        elif placed.cluster.lost:
            self._over(active, placed, begun=begun)

    def _over(self, active: "_Active", placed: Placed, *, begun: bool) -> None:
        job = placed.job
        never_came = not begun and (job.gone or not job.over)
        if never_came and active.kill_at is None:  # no attempt at anything: it goes back to its place
            del self._active[active.directory.id]
            self._queue.add(active.directory.id, first=True)
            self._queue.write()
            self._changed.append(active.directory.id)
            placed.cluster.forget(job)
        else:
            self._leave(active, placed)

    def _leave(self, active: "_Active", placed: Placed) -> None:
        code = None if placed.job.seen is None else placed.job.seen.code
        self._settle(active, code, _why(placed, code))
        placed.cluster.forget(placed.job)


def _gives_signs(placed: Placed, directory: RunDirectory, status: RunStatus) -> bool:
    """Whether a worker holds the lock, or said something lately."""
    if status.state is State.RUNNING and status.updated != placed.updated:
        placed.moved_at = time.monotonic() if placed.updated is not None else placed.moved_at
        placed.updated = status.updated
    if directory.worker_lives():
        return True
    # Where the job is over, events of a moment ago are its last ones.
    return not placed.job.over and time.monotonic() - placed.moved_at < MOVED_WITHIN_S


def _why(placed: Placed, code: int | None) -> tuple[str, str]:
    """Reason and advice for a job that ended without a result."""
    job = placed.job
    if job.refused is not None:
        return f"The cluster refused the run: {job.refused.message}", job.refused.advice
    if job.gone or not job.over:
        return (
            f"The cluster at {placed.cluster.address} lost the run's job: its head or its node went away.",
            "Nothing to do: it goes on from its last finished stage when the cluster is back.",
        )
    if code is not None:
        reason, advice = processes.describe_end(code)
        if code in (126, 127):  # the shell's own words
            advice = "Python and the project must lie at the same path on every node (docs/cluster.md)."
        return reason, advice
    said = next((line for line in (job.seen.message if job.seen else "").splitlines() if line.strip()), "no reason")
    return f"The cluster ended the job: {said[:300]}", "See the cluster's own log."


def _device(directory: RunDirectory) -> str:
    """What a run asks for. InputError for a numbered GPU: on a cluster, each run sees its own ones alone."""
    device = directory.experiment().device
    if device.startswith("cuda:") and device != "cuda:0":
        raise InputError(f"device {device} asked for, but the cluster chooses the GPU.", "Choose cuda or auto.")
    return device
