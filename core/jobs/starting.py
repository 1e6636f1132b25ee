"""Starting the runs of the queue on this machine: part of the supervisor (core/jobs/supervisor.py).

Which device, and whether now, core/jobs/places.py decides; here it is told what there is. A run that must wait says why
(`_waits`); one that cannot be started at all fails, and the queue goes on behind it.
"""

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from core import settings
from core.device import devices, resolve_device
from core.errors import EspalierError
from core.jobs import places, processes
from core.jobs.ending import Ending
from core.jobs.failures import cause_of, disk_full, disk_is_full
from core.jobs.places import Need, Start, Working
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.jobs.status import RunStatus

if TYPE_CHECKING:
    from core.jobs.supervisor import _Active

SAY_EVERY_S = 5.0
"""How often the reason why a run waits is put into new words: free memory moves all the time."""
_log = logging.getLogger(__name__)


class Starting(Ending):
    """Part of the Supervisor; called with its lock held."""

    home: Path
    runs: Path
    _needs: dict[str, Need]
    _anyway: set[str]
    _said_at: float
    _short_of: set[str]

    def _start_next(self) -> None:
        waits: dict[str, str] = {}
        taken: set[str] = set()  # devices, as experiments ask for them, that take no more now
        machine, working, disk = None, self._works(), shutil.disk_usage(self.runs).free
        for run_id in list(self._queue.order):
            known = self._needs.get(run_id)
            if known is not None and known.wanted in taken:
                continue
            directory = RunDirectory.of(self.runs, run_id)
            if not directory.exists():  # deleted by hand
                self._queue.remove(run_id)
                continue
            if (need := self._need_of(directory)) is None:
                continue
            machine = machine or devices()
            found = places.choose(
                need,
                working,
                machine,
                disk,
                cpu_runs=places.cpu_runs(settings.cpu_runs()),
                gpu_runs=settings.runs_per_gpu(),
                anyway=run_id in self._anyway,
            )
            if isinstance(found, Start):
                self._start(directory, need, found.device)
                working = self._works()
            elif found.reason:
                waits[run_id] = found.reason
                self._short_of |= {found.memory} - {""}
            else:
                taken.add(need.wanted)
        self._say(waits)

    def _works(self) -> list[Working]:
        return [self._working(active) for active in self._active.values() if active.placed is None]

    def _start(self, directory: RunDirectory, need: Need, device: str) -> None:
        from core.jobs.supervisor import _Active

        run_id, status = directory.id, directory.recorded()
        if status.state.finished:  # cancelled from the command line
            self._queue.remove(run_id)
            self._queue.write()
            self._changed.append(run_id)
            return
        try:
            process = processes.start_worker(directory, self.home, device, chosen=device != need.wanted)
        except OSError as error:
            self._not_started(directory, status, error)
            return
        self._active[run_id] = _Active(directory, device, status.attempt, process)
        self._anyway.discard(run_id)
        self._queue.remove(run_id)
        self._changed.append(run_id)
        self._queue.write()

    def _not_started(self, directory: RunDirectory, status: RunStatus, error: OSError) -> None:
        """A folder that cannot be written to, say: this run fails, not the queue. A full disk is waited for."""
        _log.error("The worker of run %s cannot be started.", directory.id, exc_info=error)
        if disk_is_full(error):
            self._say({directory.id: str(disk_full(self.runs))})
            return
        self._queue.remove(directory.id)  # whatever comes of the next line
        why = f"Its worker cannot be started: {error}."
        self._end_waiting(directory, status, State.FAILED, why, "See that the run's folder can be written to.")

    def _need_of(self, directory: RunDirectory) -> Need | None:
        """What a waiting run asks for; None, and the run fails, if there is no such device."""
        run_id = directory.id
        if run_id not in self._needs:
            try:
                wanted = directory.experiment().device
                resolve_device(wanted)
            except EspalierError as error:
                message, advice = error.message, error.advice
                self._end_waiting(directory, directory.status(), State.FAILED, message, advice, cause_of(error))
                return None
            self._needs[run_id] = Need.of(wanted, (directory.read_state() or {}).get("resolved"))
        return self._needs[run_id]

    def _working(self, active: "_Active") -> Working:
        directory = active.directory
        need = self._needs.get(directory.id) or Need.of("auto", (directory.read_state() or {}).get("resolved"))
        self._needs[directory.id] = need
        held = directory.recorded().memory
        return Working(active.device, need, held.get("rss_bytes", 0), held.get("device_bytes", 0))

    def _say(self, waits: dict[str, str]) -> None:
        """Keep why runs wait, in the queue's file too, for those who only look. New words for old reasons can wait."""
        now = time.monotonic()
        same = waits.keys() == self._queue.waits.keys() and now - self._said_at < SAY_EVERY_S
        if same or waits == self._queue.waits:
            return
        self._queue.waits, self._said_at = waits, now
        self._queue.write()
