"""What pages do with the queue: one room of the service (core/service.py)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core import board, history, origins, presets
from core import preview as previews
from core.device import resolve_device, resolve_dtype
from core.errors import ExperimentError, InputError, QueueError
from core.experiment import Experiment
from core.jobs import exporting
from core.jobs.failures import full_disk_told
from core.jobs.rundir import RunDirectory, new_run_id
from core.jobs.supervisor import Supervisor
from core.remedies import Remedy, remedies
from core.storage.store import Store

ACTIVE = ("WAITING", "RUNNING", "INTERRUPTED")


class QueueOfRuns:
    """Part of the Service."""

    home: Path
    _store: Store

    def _owner(self) -> Supervisor:
        raise NotImplementedError

    def _sync(self) -> None:
        raise NotImplementedError

    def _line(self) -> board.Line:
        raise NotImplementedError

    @full_disk_told()
    def submit(self, experiments: list[Experiment], with_baseline: bool = False) -> list[str]:
        """Queue these runs, in this order; returns their ids. InputError, and nothing queued, if one cannot work.

        `with_baseline` puts the dense model, judged in the same way, before them, unless such a run is complete or in
        the queue.
        """
        supervisor = self._owner()
        known = [previews.settle(experiment) for experiment in experiments]
        if with_baseline:
            known = [*self._missing_baselines(known), *known]
        problems = [problem for setting in known for problem in previews.problems_of(setting)]
        errors = list(dict.fromkeys(problem for problem in problems if problem.level == "error"))
        if errors:
            raise ExperimentError.of(errors)
        return [self._enqueue(supervisor, setting) for setting in known]

    def missing_baselines(self, experiments: list[Experiment]) -> list[Experiment]:
        """The dense runs that `submit(…, with_baseline=True)` would put before these."""
        known = self._missing_baselines([previews.settle(experiment) for experiment in experiments])
        return [setting.experiment for setting in known]

    def submit_baselines(self, run_ids: Sequence[str]) -> list[str]:
        """Queue the dense models that these runs are to be compared with, unless they are there; returns their ids."""
        asked = [board.existing(self.home, run_id).experiment() for run_id in run_ids]
        return self.submit(self.missing_baselines(asked))

    @full_disk_told()
    def cancel(self, run_id: str) -> None:
        """Take a run out of the queue, or ask its worker to stop; after 20 s it is ended by force."""
        self._owner().cancel(board.existing(self.home, run_id).id)

    def retry(self, run_id: str) -> str:
        """Queue the same experiment as a new run; returns its id. QueueError while the old one is not over."""
        directory = board.existing(self.home, run_id)
        state = directory.status().state
        if not state.finished:
            raise QueueError(f"Run {run_id} is {state}.", "Cancel it first, or wait until it is over.")
        return self.submit([origins.experiment_to_run(directory)])[0]

    def remedies(self, run_id: str) -> list[Remedy]:
        """Changes that may help a failed run, the least of them first."""
        directory = board.existing(self.home, run_id)
        try:
            experiment = origins.experiment_to_run(directory)
            dtype = resolve_dtype(experiment.model.dtype, resolve_device(experiment.device))
        except InputError:  # a file that is no experiment, or a device that is gone
            return []
        return remedies(experiment, directory.status(), dtype)

    def retry_with(self, run_id: str, changes: Mapping[str, Any]) -> str:
        """Queue a run again as a new one, with these fields changed; returns its id."""
        return self.submit([self.experiment_to_run(run_id).with_changes(changes)])[0]

    def experiment_to_run(self, run_id: str) -> Experiment:
        """A run's experiment, to be changed and done again; of an imported one without leave to run foreign code."""
        return origins.experiment_to_run(board.existing(self.home, run_id))

    @full_disk_told()
    def delete(self, run_id: str) -> None:
        """Remove a run with all its files. QueueError while it is worked on."""
        owner, directory = self._owner(), board.existing(self.home, run_id)
        exporting.cancel_all(directory)
        owner.delete(directory.id)

    @full_disk_told()
    def move(self, run_id: str, by: int) -> None:
        """Move a waiting run by that many places; negative is towards the head."""
        self._owner().move(run_id, by)

    def waits(self) -> Mapping[str, str]:
        """Why runs wait although their turn has come, by id: for memory, for the disk."""
        return self._line().waits

    def start_anyway(self, run_id: str) -> None:
        """Let a run that waits for memory or disk start when its turn comes."""
        self._owner().start_anyway(run_id)

    @full_disk_told()
    def pause(self, paused: bool = True) -> None:
        """Start no more runs (what runs goes on), or start them again."""
        if paused:
            self._owner().pause()
        else:
            self._owner().resume()

    # --- inside

    def _missing_baselines(self, known: list[previews.Setting]) -> list[previews.Setting]:
        self._sync()
        taken = {setting.hash for setting in known}
        missing = []
        for setting in known:
            if setting.experiment.dense or setting.experiment.scan is not None:  # a scan judges the dense model itself
                continue
            dense = previews.settle(presets.dense_like(setting.experiment))
            if dense.hash not in taken and not history.identical(self._store, dense.hash, (*ACTIVE, "COMPLETE")):
                missing.append(dense)
            taken.add(dense.hash)
        return missing

    def _enqueue(self, supervisor: Supervisor, setting: previews.Setting) -> str:
        run_id = new_run_id(setting.hash)
        directory = RunDirectory.of(self.home / "runs", run_id)
        directory.write_experiment(setting.experiment)
        supervisor.enqueue(run_id, hash=setting.hash, resolved=setting.resolved())
        return run_id
