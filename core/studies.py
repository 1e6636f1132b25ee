"""What pages and the command line ask about studies, and may do with them: preview, queue, stop, see as one. No torch.

A study's runs are found by what they compute. A run that another study, or a person, made already counts for it and is
not made again; a run that the study queued says so in its study.json.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from core import settings
from core.device import devices
from core.errors import EspalierError, ExperimentError, InputError, Problem, UnknownNameError
from core.experiment import Experiment
from core.jobs import places
from core.jobs.failures import full_disk_told
from core.jobs.rundir import RunDirectory, new_run_id, to_json, write_atomic
from core.origins import distrusted, study_came
from core.preferences import Preferences
from core.preview import Setting, problem_of, problems_of, settle
from core.storage.store import FINISHED, Store
from core.study import Planned, Study, expand, keeping, key_of, shipped
from core.study_keep import weighs
from core.study_shares import shared
from core.views import Preview

_log = logging.getLogger(__name__)
_RANK = {"COMPLETE": 0, "RUNNING": 1, "WAITING": 2, "INTERRUPTED": 3, "FAILED": 4, "CANCELLED": 5}
_THERE = ("COMPLETE", "RUNNING", "WAITING", "INTERRUPTED")
TO_DO = "NOT QUEUED"
SUFFIX = ".yaml"


class Queueing(Protocol):
    """Whoever puts runs into the queue and takes them out: the supervisor, or letters to it."""

    def enqueue(self, run_id: str, *, hash: str = "", resolved: Mapping[str, Any] | None = None) -> None: ...

    def cancel(self, run_id: str) -> None: ...


@dataclass(frozen=True)
class StudyPreview:
    """What a study would do. `rows`: key, name, seconds, disk_bytes, memory_bytes, done, keeps, problem.

    key: as in `StudyStatus.rows`; '' for what cannot work anywhere. done: id of a complete run that computes the same,
    or stands for it in the study, wherever that was; ''. keeps: whether it is to keep its weights; None where there are
    none of its own. problem: why it cannot run here; '' for what is done.
    Totals are of what is still to do; a problem is a reason why a run is left out. seconds: by the clock, with
    `at_once` runs side by side (each GPU takes one). money: for those seconds; None without a price.
    shared: what several of its runs need and is computed once, a sentence each.
    """

    rows: pd.DataFrame
    to_do: int
    seconds: float
    disk_bytes: int
    memory_bytes: int
    money: float | None
    basis: str
    shared: tuple[str, ...] = ()
    at_once: int = 1


@dataclass(frozen=True)
class StudyStatus:
    """Where a study stands. `rows`: key (no two alike), name, state, run_id (or ''); `counts`: runs by state."""

    rows: pd.DataFrame
    counts: dict[str, int]

    @property
    def over(self) -> bool:
        """Whether nothing of it waits or runs."""
        return not any(self.counts.get(state) for state in ("RUNNING", "WAITING", "INTERRUPTED"))


class Studies:
    """A room of the service (core/service.py). Safe to call from many threads at once."""

    def __init__(
        self, store: Store, home: Path, owner: Callable[[], Queueing], preview: Callable[[Experiment], Preview]
    ) -> None:
        self._store, self._home = store, home
        self._owner, self._preview = owner, preview
        self._keys: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    # --- which there are

    def all(self) -> list[Study]:
        """Studies of this home, then those that come with Espalier. A file that cannot be read is said in the log."""
        own: dict[str, Study] = {}
        for path in sorted((self._home / "studies").glob(f"*{SUFFIX}")):
            try:
                own[path.stem] = Study.from_yaml(path.read_text(encoding="utf-8"))
            except (EspalierError, OSError, UnicodeDecodeError) as error:
                _log.warning("%s is no study: %s", path.name, error)
        return [*own.values(), *(study for study in shipped() if study.id not in own)]

    def find(self, name: str) -> Study:
        """A study by its name or id. UnknownNameError lists what there is."""
        known = self.all()
        for study in known:
            if name in (study.id, study.name):
                return study
        raise UnknownNameError("study", name, [study.id for study in known])

    @full_disk_told()
    def save(self, study: Study) -> Path:
        """Keep a study in the home, in place of one of the same name."""
        path = self._home / "studies" / f"{study.id}{SUFFIX}"
        write_atomic(path, study.to_yaml())
        return path

    def read(self, text: str) -> Study:
        """A study from YAML that somebody gave. ExperimentError says what is wrong with it and where."""
        study = Study.from_yaml(text)
        expand(study)
        return study

    def count(self, study: Study) -> int:
        """How many runs a study stands for."""
        key = study.model_dump_json()
        if key not in self._counts:
            self._counts[key] = len(expand(study).runs)
        return self._counts[key]

    def stamp(self) -> int:
        """Grows with every change of a run: whoever keeps a preview keeps it with the stamp it was given at."""
        return self._store.version

    def is_own(self, study: Study) -> bool:
        """Whether the study is kept in this home, and so can be deleted; those that come with Espalier cannot."""
        return (self._home / "studies" / f"{study.id}{SUFFIX}").is_file()

    @full_disk_told()
    def delete(self, study: Study) -> None:
        """Forget a study's YAML; its runs stay."""
        self._owner()
        (self._home / "studies" / f"{study.id}{SUFFIX}").unlink(missing_ok=True)

    # --- before

    def preview(self, study: Study, price_per_hour: float | None = None) -> StudyPreview:
        """Every run with its cost, and what cannot work with its reason. ExperimentError if nothing of it can."""
        price = Preferences(self._home).price_per_hour() if price_per_hour is None else price_per_hour
        expansion = expand(study)
        rows: list[dict[str, Any]] = []
        basis, wanted = "", set()
        self._store.sync(self._home)
        complete = {run.key: run_id for run, run_id, state in self._matched(study) if state == "COMPLETE"}
        for run in expansion.runs:
            found = self._preview(run.experiment)
            wanted.add(run.experiment.device)
            basis = basis or found.seconds_basis
            works = not found.problems
            done = complete.get(run.key) or found.identical or ""
            problems = [] if done else dict.fromkeys(str(problem) for problem in found.problems)
            rows.append({
                "key": run.key,
                "name": run.name,
                "seconds": found.seconds if works else 0.0,
                "disk_bytes": found.disk_bytes if works else 0,
                "memory_bytes": found.memory_bytes if works else 0,
                "done": done,
                "keeps": run.experiment.save_model if weighs(run.experiment) else None,
                "problem": " ".join(problems),
            })  # fmt: skip
        for left in expansion.left_out:
            nothing = {"key": "", "seconds": 0.0, "disk_bytes": 0, "memory_bytes": 0, "done": "", "keeps": None}
            rows.append({"name": left.name, **nothing, "problem": f"{left.place}: {left.reason}"})
        frame = pd.DataFrame(rows)
        ahead = frame[(frame["done"] == "") & (frame["problem"] == "")]
        at_once = min(_side_by_side(wanted), max(len(ahead), 1))
        seconds = max(float(ahead["seconds"].sum()) / at_once, float(ahead["seconds"].max()) if len(ahead) else 0.0)
        return StudyPreview(
            rows=frame,
            to_do=len(ahead),
            seconds=seconds,
            disk_bytes=int(ahead["disk_bytes"].sum()),
            memory_bytes=int(ahead["memory_bytes"].max()) if len(ahead) else 0,
            money=None if price is None else price * seconds / 3600,
            basis=basis,
            shared=tuple(shared([run.experiment for run in expansion.runs])),
            at_once=at_once,
        )

    # --- the queue

    @full_disk_told()
    def queue(self, study: Study, by: Queueing | None = None) -> list[str]:
        """Queue what no run that is complete, runs or waits has computed, here or where the study was imported from;
        returns the new ids, in order.

        So a study that was stopped, or failed in part, goes on by being queued again. What cannot work is left out;
        ExperimentError if nothing can. The study is kept in the home.
        """
        queue = self._owner() if by is None else by
        there = self._hashes()
        wanted: list[Setting] = []
        problems: list[Problem] = []
        works = False
        foreign = study_came(self._home, study.id)
        for run, _, state in self._matched(study):
            if state in _THERE:
                works = True
                continue
            setting, wrong = _settled(distrusted(run.experiment) if foreign else run.experiment)
            problems += wrong
            if setting is None:
                continue
            works = True
            if setting.hash not in there:
                there.add(setting.hash)
                wanted.append(setting)
        if not works:
            raise ExperimentError.of(list(dict.fromkeys(problems)))
        self.save(study)
        return [self._enqueue(queue, study.id, setting) for setting in wanted]

    @full_disk_told()
    def keep(self, study: Study, names: Collection[str]) -> Study:
        """Mark the runs called so, and no others, as those that keep their weights; the changed study is kept.

        Runs that the study queued and that are not over hear of it. What is complete stays as it is.
        """
        self._owner()
        marked = keeping(study, names)
        self.save(marked)
        own = self._queued_by(study)
        for run, run_id, state in self._matched(marked):
            if run_id in own and state not in FINISHED and weighs(run.experiment):
                RunDirectory.of(self._home / "runs", run_id).write_keep(run.experiment.save_model)
        return marked

    @full_disk_told()
    def stop(self, study: Study, by: Queueing | None = None) -> list[str]:
        """Cancel the runs that this study queued and that are not over, the last first; returns their ids."""
        queue = self._owner() if by is None else by
        ids = self._queued_by(study)
        for run_id in ids:
            queue.cancel(run_id)
        return ids

    def status(self, study: Study) -> StudyStatus:
        """The runs of a study with their states, and how many are in which."""
        self._store.sync(self._home)
        rows = []
        for run, run_id, state in self._matched(study):
            rows.append({"key": run.key, "name": run.name, "state": state, "run_id": run_id})
        frame = pd.DataFrame(rows, columns=["key", "name", "state", "run_id"])
        return StudyStatus(frame, dict(Counter(frame["state"])))

    def run_ids(self, study: Study) -> list[str]:
        """Ids of the runs that stand for a study now, in its order, each once: `auto` may be another entry's device."""
        self._store.sync(self._home)
        return list(dict.fromkeys(run_id for _, run_id, _ in self._matched(study) if run_id))

    # --- inside

    def _queued_by(self, study: Study) -> list[str]:
        """Ids of the runs that this study queued and that are not over, the last first."""
        marks = ", ".join("?" * len(FINISHED))
        query = f"SELECT id FROM runs WHERE study = ? AND state NOT IN ({marks}) ORDER BY created DESC, id DESC"
        self._store.sync(self._home)
        return [
            str(run_id)
            for (run_id,) in self._store.rows(query, [study.id, *FINISHED])
            if not RunDirectory.of(self._home / "runs", run_id).status().state.finished
        ]

    def _matched(self, study: Study) -> Sequence[tuple[Planned, str, str]]:
        """Each run of the study with the id and state of the best run that computes it: by hash, or by its own word."""
        by_key: dict[str, list[tuple[str, str]]] = {}
        query = "SELECT id, state, experiment FROM runs WHERE study = ? ORDER BY id DESC"
        for run_id, state, text in self._store.rows(query, [study.id]):
            if (key := self._key(run_id, text)) is not None:
                by_key.setdefault(key, []).append((run_id, self._live(run_id, state)))
        found = []
        for run in expand(study).runs:
            candidates = list(by_key.get(run.key, ()))
            if not any(state == "COMPLETE" for _, state in candidates):
                candidates += self._same_hash(run.experiment)
            best = min(candidates, key=lambda each: _RANK.get(each[1], len(_RANK)), default=("", TO_DO))
            found.append((run, *best))
        return found

    def _same_hash(self, experiment: Experiment) -> list[tuple[str, str]]:
        try:
            setting = settle(experiment)
        except InputError:  # the model is not to be had here: what the study itself queued is known all the same
            return []
        rows = self._store.rows("SELECT id, state FROM runs WHERE hash = ? ORDER BY id DESC", [setting.hash])
        return [(str(run_id), self._live(str(run_id), str(state))) for run_id, state in rows]

    def _live(self, run_id: str, state: str) -> str:
        """The state of a run that was not over when the store looked, from its files."""
        return state if state in FINISHED else str(RunDirectory.of(self._home / "runs", run_id).status().state)

    def _key(self, run_id: str, text: str) -> str | None:
        if run_id not in self._keys:
            try:
                self._keys[run_id] = key_of(Experiment.from_yaml(text))
            except EspalierError:
                return None
        return self._keys[run_id]

    def _hashes(self) -> set[str]:
        self._store.sync(self._home)
        query = "SELECT hash, id, state FROM runs WHERE list_contains(?::VARCHAR[], state) AND hash IS NOT NULL"
        return {str(hash_) for hash_, run_id, state in self._store.rows(query, [list(_THERE)])
                if self._live(run_id, state) in _THERE}  # fmt: skip

    def _enqueue(self, queue: Queueing, study_id: str, setting: Setting) -> str:
        run_id = new_run_id(setting.hash)
        directory = RunDirectory.of(self._home / "runs", run_id)
        write_atomic(directory.study_file, to_json({"v": 1, "study": study_id}))
        directory.write_experiment(setting.experiment)
        queue.enqueue(run_id, hash=setting.hash, resolved=setting.resolved())
        return run_id


def _side_by_side(wanted: Iterable[str]) -> int:
    cpu_runs = places.cpu_runs(settings.cpu_runs())
    return places.side_by_side(wanted, devices(), cpu_runs=cpu_runs, gpu_runs=settings.runs_per_gpu())


def _settled(experiment: Experiment) -> tuple[Setting | None, list[Problem]]:
    """The experiment on this machine, or what stands in its way."""
    try:
        setting = settle(experiment)
    except InputError as error:
        return None, problem_of(error, "model.name")
    wrong = [problem for problem in problems_of(setting) if problem.level == "error"]
    return (None if wrong else setting), wrong


def as_json(value: StudyPreview | StudyStatus) -> str:
    """A preview or a status for other programs."""
    data = {name: getattr(value, name) for name in value.__dataclass_fields__ if name != "rows"}
    return json.dumps({**data, "runs": value.rows.to_dict("records")}, ensure_ascii=False, indent=1, default=str)
