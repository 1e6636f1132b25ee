"""What the command line asks of a queue that another process owns, or nobody: said in the files of the runs.

The owner finds a run that was left to wait and puts it into its queue, and takes out one that was cancelled. Each is
written under the run's own lock, which a worker would hold, so that no two write at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.jobs import processes
from core.jobs.rundir import RunDirectory
from core.jobs.states import State


class Letters:
    """Does what `Supervisor.enqueue` and `Supervisor.cancel` do, without owning the queue."""

    def __init__(self, home: Path) -> None:
        self._runs = home / "runs"

    def enqueue(self, run_id: str, *, hash: str = "", resolved: Mapping[str, Any] | None = None) -> None:
        """Leave a run, whose experiment.yaml is written, to wait."""
        directory = RunDirectory.of(self._runs, run_id)
        with directory.lock():
            directory.write_state(State.WAITING, hash=hash, resolved=dict(resolved or {}))

    def cancel(self, run_id: str) -> None:
        """Cancel a run that waits, or ask its worker to stop; one that is over stays as it is."""
        directory = RunDirectory.of(self._runs, run_id)
        if directory.worker_lives():
            status = directory.status()
            if (process := processes.find(status.pid, status.pid_created)) is not None:
                processes.ask_to_stop(process)
            return
        with directory.lock():
            status = directory.recorded()
            if status.state is State.RUNNING:  # its worker is gone without a word
                directory.write_state(State.INTERRUPTED, attempt=status.attempt, reason="The worker ended.")
            if not status.state.finished:
                why = "Cancelled before it was started."
                directory.write_state(State.CANCELLED, attempt=status.attempt, reason=why)
