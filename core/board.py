"""Runs as pages list and open them: what the store holds, joined with what the files of live runs say this moment."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from core import history
from core.errors import EspalierError, InputError, StoreError
from core.experiment import Experiment
from core.jobs import freeing
from core.jobs.rundir import RunDirectory, RunStatus, is_run_id
from core.jobs.states import State
from core.models.catalogue import resolve
from core.models.plans import Plan
from core.models.sizes import Architecture
from core.preview import command_of_file, plan_of
from core.storage.store import FINISHED, Store
from core.views import RunDetail

LIVE_COLUMNS = ("position", "stage", "task", "done", "total", "unit", "fraction", "eta_s", "updated", "spoke")
_NUMBERS = ("position", "done", "total", "fraction", "eta_s")
LOG_LINES = 200


@dataclass(frozen=True)
class Line:
    """The queue: ids of what waits, in order, whether it is paused, and why a run waits although its turn has come."""

    waiting: tuple[str, ...] = ()
    paused: bool = False
    waits: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, home: Path) -> "Line":
        """From queue.json, for a process that does not own the queue. A file that cannot be read is an empty queue."""
        try:
            content = json.loads((home / "queue.json").read_bytes())
            order = [run_id for run_id in content.get("order", ()) if isinstance(run_id, str) and is_run_id(run_id)]
            waits = {run_id: why for run_id, why in content.get("waits", {}).items() if isinstance(why, str)}
            return cls(tuple(order), content.get("paused") is True, waits)
        except (OSError, ValueError, AttributeError, TypeError):
            return cls()


def live(store: Store, home: Path) -> list[RunStatus]:
    """Status of every run that is not over, from its files. Those that just ended are taken into the store instead."""
    marks = ", ".join("?" * len(FINISHED))
    found = []
    for (run_id,) in store.rows(f"SELECT id FROM runs WHERE state NOT IN ({marks}) ORDER BY id", FINISHED):
        directory = RunDirectory.of(home / "runs", run_id)
        status = directory.status()
        if status.state.finished:
            with suppress(StoreError):  # a full disk, say: the store's next look takes it, or says why not
                store.ingest(directory.path)
        else:
            found.append(status)
    return found


def run_list(runs: pd.DataFrame, statuses: Sequence[RunStatus], line: Line) -> pd.DataFrame:
    """Running first, then what waits in the queue's order, then finished runs, newest first.

    Columns of the store's runs without the experiment's text, and `LIVE_COLUMNS`: what runs has stage to eta_s
    (seconds), what waits has its position from 1.
    """
    frame = runs.drop(columns="experiment").set_index("id", drop=False)
    frame.index.name = None
    places = {run_id: place for place, run_id in enumerate(line.waiting, 1)}
    now = pd.DataFrame([_live_row(status, places) for status in statuses], columns=["id", "state", *LIVE_COLUMNS])
    now = now.set_index("id").astype(dict.fromkeys(_NUMBERS, "float64"))
    frame = frame.join(now.drop(columns="state"))
    known = now.index.intersection(frame.index)
    frame.loc[known, "state"] = now.loc[known, "state"]
    frame["position"] = frame["position"].astype("Int64")
    rank = frame["state"].map({"RUNNING": 0, "WAITING": 1, "INTERRUPTED": 1}).fillna(2)
    order = frame.assign(_rank=rank, _place=frame["position"].astype("float64"))
    return (
        order.sort_values(["_rank", "_place"], kind="stable").drop(columns=["_rank", "_place"]).reset_index(drop=True)
    )


def _live_row(status: RunStatus, places: dict[str, int]) -> tuple[Any, ...]:
    where = (status.stage, status.task, status.done, status.total, status.unit, status.fraction, status.eta_s)
    running = status.state is State.RUNNING
    # A run that waits again still says where its last attempt was: that is no progress.
    return (
        status.id,
        str(status.state),
        None if running else places.get(status.id),
        *(where if running else (None, None, None, None, "", None, None)),
        status.updated,
        status.spoke if running else None,
    )


def run_detail(store: Store, home: Path, run_id: str) -> RunDetail:
    """Everything one run shows. InputError if there is no such run."""
    directory = existing(home, run_id)
    status = directory.status()
    text = directory.experiment_file.read_text(encoding="utf-8", errors="replace")
    experiment, cut, architecture = _understood(text)
    names = store.rows("SELECT name FROM runs WHERE id = ?", [run_id])
    return RunDetail(
        status=status,
        name=str(names[0][0]) if names else run_id,
        experiment=experiment,
        yaml=text,
        command=command_of_file(shown_path(directory.experiment_file)),
        results=directory.results(),
        stages=directory.stages(),
        metrics=store.metrics([run_id]),
        layers=store.layers([run_id]),
        log_tail=directory.log_tail(LOG_LINES),
        plan=cut,
        architecture=architecture,
        baseline=history.baseline_for(store, run_id),
        freed=freeing.read(directory),
    )


def existing(home: Path, run_id: str) -> RunDirectory:
    """The folder of a run that is there. InputError for anything else: no text of a URL becomes a path."""
    directory = RunDirectory.of(home / "runs", run_id)
    if (home / "runs" / run_id).is_symlink() or not directory.exists():
        raise InputError(f"There is no run {run_id}.", "It may have been deleted: choose one from the list.")
    return directory


def shown_path(path: Path) -> str:
    """A path as a terminal in the project's folder would take it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _understood(text: str) -> tuple[Experiment | None, Plan | None, Architecture | None]:
    try:
        experiment = Experiment.from_yaml(text)
    except EspalierError:
        return None, None, None
    try:
        architecture = resolve(experiment.model).architecture
        cut = None if experiment.pruning is None else plan_of(architecture, experiment.pruning)
    except EspalierError:  # the model is not to be had any more: the run's numbers still are
        return experiment, None, None
    return experiment, cut, architecture
