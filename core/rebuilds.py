"""Making the model of a complete run again, where only its numbers were kept: its experiment without judging. No torch.

The work is a run like any other, through the queue. When it is complete, its weights go into the folder of the run
that they belong to, with a word on whether they are the same, and the helper run goes. Where the cut came out another,
or the numbers were measured on another machine, it stays a run of its own.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core import board, origins
from core.errors import EspalierError, ExperimentError, InputError, QueueError
from core.jobs.rundir import RunDirectory, new_run_id, read_json, to_json, write_atomic
from core.jobs.stages import EVALUATE
from core.jobs.states import State
from core.jobs.status import now_iso
from core.preview import problems_of, settle
from core.studies import Queueing

ORDER = "rebuild.json"
"""In the helper run: which run's model it makes."""
RESULT = "model_again.json"
"""In the run itself: who makes its model, and what came of it."""
NOTHING = {"evaluation.perplexity": [], "evaluation.tasks": [], "evaluation.fidelity": False, "evaluation.speed": False}
_FOLDERS = ("model", "recovered")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Again:
    """The making of a model again: by which run, and what came of it.

    state: of the helper run while it is there, else COMPLETE. weights: bit for bit the `same`, `alike` (the same units,
    other bits), or `` where nobody knows yet. trained: its recovery was trained again, so that numbers after recovery
    were measured on an earlier training.
    """

    run_id: str
    state: str
    weights: Literal["same", "alike", ""] = ""
    trained: bool = False
    apart: bool = False
    """The helper run keeps the model itself."""


class Rebuilds:
    """A room of the service (core/service.py). Safe to call from many threads at once."""

    def __init__(self, home: Path, owner: Callable[[], Any]) -> None:
        self._home, self._owner = home, owner

    def missing(self, run_id: str) -> bool:
        """Whether a run is complete, made a model, and did not keep it."""
        directory = board.existing(self._home, run_id)
        if directory.status().state is not State.COMPLETE:
            return False
        try:
            experiment = directory.experiment()
        except EspalierError:
            return False
        last = directory.model_dir if experiment.recovery is None else directory.recovered_dir
        return not experiment.dense and experiment.scan is None and not last.is_dir()

    def start(self, run_id: str, by: Queueing | None = None) -> str:
        """Queue the making of a run's model; returns the helper run's id. InputError, QueueError where it cannot be."""
        queue = self._owner() if by is None else by
        directory = board.existing(self._home, run_id)
        if not self.missing(run_id):
            raise InputError(f"Run {run_id} has its model, or never made one.", "There is nothing to make again.")
        now = self.of(run_id)
        if now is not None and (now.apart or now.state in ("WAITING", "RUNNING", "INTERRUPTED")):
            raise QueueError(f"The model of run {run_id} is made by run {now.run_id}.", "Wait for that one.")
        experiment = origins.experiment_to_run(directory)
        name = experiment.name or run_id
        setting = settle(experiment.with_changes({**NOTHING, "save_model": True, "name": f"{name}: its model again"}))
        errors = [problem for problem in problems_of(setting) if problem.level == "error"]
        if errors:
            raise ExperimentError.of(errors)
        helper = RunDirectory.of(self._home / "runs", new_run_id(setting.hash))
        write_atomic(helper.path / ORDER, to_json({"v": 1, "of": run_id}))
        write_atomic(directory.path / RESULT, to_json({"v": 1, "run": helper.id, "asked": now_iso()}))
        helper.write_experiment(setting.experiment)
        queue.enqueue(helper.id, hash=setting.hash, resolved=setting.resolved())
        return helper.id

    def of(self, run_id: str) -> Again | None:
        """How the making of a run's model again stands; None where nobody asked, or the helper run was deleted."""
        directory = RunDirectory.of(self._home / "runs", run_id)
        known = read_json(directory.path / RESULT) or {}
        try:
            helper = RunDirectory.of(self._home / "runs", str(known.get("run")))
        except InputError:
            return None
        weights = known.get("weights")
        if weights in ("same", "alike"):
            return Again(helper.id, "COMPLETE", weights, known.get("trained") is True)
        if not helper.exists():
            return None
        state = str(helper.status().state)
        return Again(helper.id, state, apart=state == "COMPLETE")

    def settle(self, run_id: str) -> None:
        """If this run made another one's model and is complete: hand the model over, and delete the helper.

        May be called again after any interruption.
        """
        helper = RunDirectory.of(self._home / "runs", run_id)
        order = read_json(helper.path / ORDER)
        if order is None or helper.recorded().state is not State.COMPLETE:
            return
        try:
            directory = board.existing(self._home, str(order.get("of")))
        except InputError:  # deleted meanwhile: the model stays where it was made
            return
        verdict = _verdict(directory, helper)
        if not verdict:
            return
        for name in _FOLDERS:
            source, target = helper.path / name, directory.path / name
            if source.is_dir() and not target.exists():
                source.rename(target)
        trained = directory.experiment().recovery is not None
        found = {"v": 1, "run": helper.id, "made": now_iso(), "weights": verdict, "trained": trained}
        write_atomic(directory.path / RESULT, to_json(found))
        self._owner().delete(helper.id)

    def settle_all(self) -> None:
        """The same for every helper run, after a restart."""
        for order in sorted((self._home / "runs").glob(f"*/{ORDER}")):
            self.settle_quietly(order.parent.name)

    def settle_quietly(self, run_id: str) -> None:
        """The same for the supervisor's thread: what goes wrong is said in the log, and the helper run stays."""
        with contextlib.suppress(InputError):
            try:
                self.settle(run_id)
            except (OSError, QueueError, shutil.Error) as error:
                _log.warning("The model of run %s could not be handed over: %s", run_id, error)


def _verdict(directory: RunDirectory, helper: RunDirectory) -> Literal["same", "alike", ""]:
    """Whether the helper made the run's model: by the weights' hash, or by the units that stayed; '' if it did not."""
    if origins.came(directory):
        return ""
    mine, made = (_weights(each) for each in (directory, helper))
    if mine and mine == made:
        return "same"
    cuts = [_cut((each.results() or {}).get("pruning")) for each in (directory, helper)]
    return "alike" if cuts[0] and cuts[0] == cuts[1] else ""


def _weights(directory: RunDirectory) -> str:
    return str((directory.stage(EVALUATE) or {}).get("weights_sha256") or "")


def _cut(pruned: Any) -> Mapping[str, Any]:
    names = ("params_before", "params_after", "nonzero_after", "layers", "hidden_after")
    return {name: pruned.get(name) for name in names} if isinstance(pruned, Mapping) else {}
