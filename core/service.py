"""The only door for pages: every question a page asks, and everything it may do, is one method here.

Light: nothing here, nor anything it imports, loads torch, transformers, peft, lm_eval or datasets.
Safe to call from many threads at once.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core import board, estimate, history, pairs, presets, roots, settings, talkers
from core import preview as previews
from core.anatomies import Anatomies
from core.chat.client import ChatClient
from core.comparing import Comparisons
from core.data import corpora as texts
from core.data import tasks as task_names
from core.device import info, resolve_device
from core.errors import InputError, QueueError
from core.experiment import Experiment
from core.exports import ExportsOfRuns
from core.jobs import ownership
from core.jobs.after_queue import AfterQueue
from core.jobs.cluster import ClusterView
from core.jobs.exporting import ExportChoice, ExportStatus
from core.jobs.ownership import Owner
from core.jobs.rundir import RunDirectory
from core.jobs.supervisor import Supervisor
from core.keeping import Weights
from core.live import Live, Now
from core.making_room import unload_idle
from core.models import catalogue
from core.models.sizes import Architecture
from core.pairs import Flip, PerplexityPair, RunPair, TaskPair
from core.places import Places
from core.preferences import Preferences
from core.pruning import registry
from core.queueing import QueueOfRuns
from core.rebuilds import Rebuilds
from core.recoveries import Recoveries
from core.reports import Reports
from core.storage.finding import Measure, Wanted
from core.storage.store import Store
from core.studies import Studies
from core.talks import Talks
from core.travel import Travel
from core.views import ChatModel, Preview, RunDetail, StatusLine

__all__ = [
    "ChatModel",
    "ClusterView",
    "ExportChoice",
    "ExportStatus",
    "Flip",
    "Measure",
    "Now",
    "Owner",
    "PerplexityPair",
    "Preview",
    "RunDetail",
    "RunPair",
    "Service",
    "StatusLine",
    "TaskPair",
    "Wanted",
    "close_service",
    "get_service",
    "reopen_service",
]

SYNC_EVERY_S = 0.5


class Service(QueueOfRuns, ExportsOfRuns):
    """One per process and home. `supervisor=False` shows a home without running its queue.

    Where another process owns the queue, this one shows everything and changes nothing: `read_only`.
    """

    def __init__(self, home: Path | None = None, supervisor: bool = True) -> None:
        self.home = (settings.home() if home is None else home).resolve()
        self._supervisor, why = self._claimed() if supervisor else (None, "")
        try:
            self._store = Store.open(self.home, owned=not why)
        except BaseException:
            if self._supervisor is not None:
                self._supervisor.stop()
            raise
        self.recovery = Recoveries(self._store, self.home)
        self.anatomy = Anatomies(self._store, self.home)
        self.studies = Studies(self._store, self.home, self._owner, self.preview)
        self.preferences = Preferences(self.home)
        self.places = Places(self.preferences, self._owner)
        self.rebuilds = Rebuilds(self.home, self._owner)
        self.weights = Weights(self.home, self._owner)
        self.after_queue = AfterQueue(self.home) if self._supervisor is None else self._supervisor.after
        self.travel = Travel(self._store, self.home, self.studies)
        self.reports = Reports(self._store, self.home, self.studies, self.travel)
        self._notice = why or ("" if self._store.read_only else self._store.notice)
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._synced = time.monotonic()
        self._chat: ChatClient | None = None
        self.talks = Talks(self._store, self.home, self._sync, self.chat_client)
        self._pace: tuple[tuple[str, str, int], estimate.Pace] | None = None
        self._frame: tuple[int, pd.DataFrame] | None = None
        self.live = Live(self._store, self.home, self._sync, self._line)
        self._paired: pairs.Known = {}
        self.compare = Comparisons(self._store, self.home, self._sync, self._paired)
        if self._supervisor is not None:
            self._supervisor.start()
            self.rebuilds.settle_all()

    flips_at_once = pairs.PAGE

    @property
    def read_only(self) -> bool:
        """Whether this process only shows the home."""
        return self._supervisor is None

    def close(self) -> None:
        """Stop the supervisor's thread (workers go on), the chat's worker, and close the store. May be called twice."""
        if self._supervisor is not None:
            self._supervisor.halt()
        with self._lock:
            chat, self._chat = self._chat, None
        if chat is not None:
            chat.close()
        with self._syncing:
            self._store.close()
        if self._supervisor is not None:
            self._supervisor.stop()  # only now: who comes next opens the database

    # --- what can be chosen

    def catalogue(self) -> list[catalogue.Entry]:
        """Models that the form offers by name; any hub id or folder can be typed."""
        return catalogue.entries()

    def architecture(self, model_name: str, trust: bool = False) -> Architecture:
        """Sizes of a model, without loading it. InputError where it cannot be had."""
        roots.require_model(model_name)
        model = {"name": model_name, "trust_remote_code": trust}
        return catalogue.resolve(Experiment.parse({"model": model}).model).architecture

    def methods(self) -> list[registry.Method]:
        """All pruning methods: masks, then width, then depth."""
        return list(registry.methods().values())

    def corpora(self) -> list[texts.CorpusInfo]:
        """Texts for calibration and perplexity."""
        return texts.corpora()

    def tasks(self, matching: str | None = None) -> list[task_names.TaskInfo]:
        """Tasks of lm-eval, those whose data is on this machine first; or the few whose names match best."""
        return task_names.available() if matching is None else task_names.search(matching)

    # --- before a run

    def preview(self, experiment: Experiment) -> Preview:
        """What an experiment would do. Whatever is wrong with it is in `problems`, not raised."""
        try:
            setting = previews.settle(experiment)
        except InputError as error:
            return _unsettled(experiment, error)
        cut = previews.planned(setting)
        work = previews.work_of(setting, cut)
        pace = self._pace_on(work)
        stages = estimate.capped(pace.apply(estimate.stage_seconds(work)), work)
        found = previews.problems_of(setting)
        errors = [problem for problem in found if problem.level == "error"]
        cautions = [problem for problem in found if problem.level != "error"]
        memory = estimate.memory_bytes(work)
        self._sync()
        return Preview(
            plan=cut,
            problems=errors,
            memory_bytes=memory,
            seconds=sum(stages.values()),
            seconds_basis=pace.basis(work.device, work.dtype),
            smaller=previews.smaller(cut, setting),
            faster=previews.faster(cut, experiment),
            loads_in=previews.opens_in(setting, cut),
            yaml=experiment.to_yaml(),
            command=previews.command(experiment),
            identical=history.identical(self._store, setting.hash),
            warnings=[
                *(f"{problem.message} {problem.advice}".strip() for problem in cautions),
                *previews.warnings_of(setting, cut, memory, found),
            ],
            cautions=cautions,
            stage_seconds=stages,
            disk_bytes=estimate.disk_bytes(work),
            device=setting.device,
            dtype=setting.dtype,
        )

    def zeros_in_words(self, pattern: str) -> str:
        """What the zeros of a pattern such as `2:4` are worth to which engines; '' for zeros that stand anywhere."""
        return previews.zeros(pattern)

    def smaller_and_faster(self, keep: float, stock: bool = False) -> dict[str, Any]:
        """`pruning` of the best known recipe that keeps this share of the parameters; stock: all layers alike."""
        return presets.smaller_and_faster(keep, stock=stock)

    def quick_look(self) -> list[Experiment]:
        """The runs behind "prune SmolLM2 to see how it works"."""
        return presets.quick_look()

    # --- the queue

    def status_line(self) -> StatusLine:
        """Device, what runs, and the queue."""
        self._sync()
        device = info(resolve_device("auto"))
        now = self.live.now()
        running = now.running
        names = now.runs.loc[now.runs["id"] == running[0].id, "name"].tolist() if running else []
        line = self._line()
        return StatusLine(
            device=device.name,
            free_bytes=device.free_bytes,
            total_bytes=device.total_bytes,
            running=running[0] if running else None,
            running_name=str(names[0]) if names else "",
            queue_length=len(line.waiting),
            paused=line.paused,
            read_only=self.read_only,
            notice=self._notice or self._store.behind,
            owner=ownership.owner_of(self.home) if self.read_only else None,
            cluster=self.places.cluster(),
        )

    # --- runs

    def run_list(self) -> pd.DataFrame:
        """Running, waiting and finished runs; columns of `runs` without `experiment`, and `board.LIVE_COLUMNS`."""
        self._sync()
        statuses = board.live(self._store, self.home)
        return board.run_list(self.runs(), statuses, self._line())

    def run_detail(self, run_id: str) -> RunDetail:
        """Everything one run shows. InputError if there is no such run."""
        self._sync()
        return board.run_detail(self._store, self.home, run_id)

    def log_tail(self, run_id: str, n: int = board.LOG_LINES) -> str:
        """The last lines of a run's log, as plain text."""
        return board.existing(self.home, run_id).log_tail(n)

    # --- compare

    def runs(self) -> pd.DataFrame:
        """One row a run, newest first. Times are UTC, ratios fractions removed, sizes bytes."""
        self._sync()
        version, kept = self._store.version, self._frame
        if kept is None or kept[0] != version:
            kept = self._frame = (version, self._store.runs())
        return kept[1].copy()

    def metrics(self, run_ids: Sequence[str]) -> pd.DataFrame:
        """One row a measured number of these runs."""
        return self._store.metrics(run_ids)

    def layers(self, run_ids: Sequence[str]) -> pd.DataFrame:
        """One row a decoder layer of these runs."""
        return self._store.layers(run_ids)

    def stages(self, run_ids: Sequence[str]) -> pd.DataFrame:
        """One row a finished stage of these runs, with its seconds."""
        return self._store.stages(run_ids)

    def baseline_for(self, run_id: str) -> str | None:
        """The complete dense run to compare with: same model, dtype, kind of device, protocol. None without one."""
        return history.baseline_for(self._store, run_id)

    def differences(self, baselines: Mapping[str, str | None]) -> pd.DataFrame:
        """Certainty of each run's differences to its dense run, taken on the documents that both answered."""
        return pairs.differences(self._store, self.home, baselines, self._paired)

    def pair(self, first: str, second: str) -> RunPair:
        """The second run against the first, on the same documents and windows."""
        return pairs.pair(self._store, self.home, *(board.existing(self.home, run).id for run in (first, second)))

    def flips(self, first: str, second: str, task: str, metric: str, lost: bool, offset: int = 0) -> list[Flip]:
        """Documents that only the first run (`lost`), or only the second, got right; `flips_at_once` at most."""
        known = [board.existing(self.home, run).id for run in (first, second)]
        return pairs.flips(self._store, self.home, known[0], known[1], task, metric, lost=lost, offset=offset)

    # --- chat

    def chat_models(self) -> list[ChatModel]:
        """Models that can be talked to: dense ones that are on this machine, then saved runs, newest first."""
        names = [entry.name for entry in self.catalogue() if entry.offline]
        return talkers.of(self.home, self.runs(), names)

    def talker(self, run_id: str) -> str | None:
        """The key of a run's model, the last one, in `chat_models`; None where it kept none."""
        return talkers.key(self.home, self._store.runs("id = ?", [run_id]))

    def chat_client(self) -> ChatClient:
        """The inference worker's client, one for the process."""
        with self._lock:
            if self._chat is None:
                self._chat = ChatClient(self.home)
            return self._chat

    # --- inside

    def _claimed(self) -> tuple[Supervisor | None, str]:
        """Own the home before its database is opened; or why that cannot be."""
        supervisor = Supervisor(self.home, on_change=self._changed, make_room=self._make_room)
        try:
            supervisor.claim()
        except QueueError as error:
            return None, error.message
        return supervisor, ""

    def _owner(self) -> Supervisor:
        if self._supervisor is None:
            raise QueueError(
                f"This Espalier only shows {self.home}. {self._notice}".strip(),
                "Change the queue in the one that owns it.",
            )
        return self._supervisor

    def _changed(self, run_id: str) -> None:
        """The supervisor says that a run's state changed."""
        self._store.ingest(RunDirectory.of(self.home / "runs", run_id).path)
        self.rebuilds.settle_quietly(run_id)

    def _make_room(self, kinds: frozenset[str]) -> bool:
        """The supervisor says that a run waits for memory of these kinds of device."""
        with self._lock:
            chat = self._chat
        return chat is not None and unload_idle(chat, kinds)

    def _sync(self) -> None:
        """Look for changed run directories, at most every half second and from one thread; others use what there is."""
        if time.monotonic() - self._synced < SYNC_EVERY_S or not self._syncing.acquire(blocking=False):
            return
        try:
            self._store.sync(self.home)
            self._synced = time.monotonic()
        finally:
            self._syncing.release()

    def _line(self) -> board.Line:
        if self._supervisor is None:
            return board.Line.read(self.home)
        view = self._supervisor.view()
        return board.Line(view.waiting, view.paused, view.waits)

    def _pace_on(self, work: estimate.Work) -> estimate.Pace:
        key = (work.device.key, work.dtype, self._store.version)
        kept = self._pace
        if kept is None or kept[0] != key:
            kept = self._pace = (key, history.pace(self._store, work.device, work.dtype))
        return kept[1]


def _unsettled(experiment: Experiment, error: InputError) -> Preview:
    """The preview of an experiment whose model or device cannot be had."""
    field = "device" if "device" in error.message.lower() else "model.name"
    return Preview(
        plan=None,
        problems=previews.problem_of(error, field),
        memory_bytes=0,
        seconds=0.0,
        seconds_basis="",
        smaller="",
        faster="",
        loads_in=[],
        yaml=experiment.to_yaml(),
        command=previews.command(experiment),
        identical=None,
    )


_service: Service | None = None
_service_lock = threading.Lock()


def get_service() -> Service:
    """The process's one Service, for the home that the settings name; made on the first call."""
    global _service
    with _service_lock:
        if _service is None or _service.home != settings.home().resolve():
            if _service is not None:
                _service.close()
            _service = Service()
        return _service


def close_service() -> None:
    """Close the process's Service, if there is one."""
    global _service
    with _service_lock:
        if _service is not None:
            _service.close()
        _service = None


def reopen_service() -> Service:
    """The process's Service made anew: it owns the home if nobody else does any more."""
    close_service()
    return get_service()
