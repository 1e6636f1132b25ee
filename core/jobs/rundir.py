"""The run directory: everything that a run produced, and the only thing that its parts say to one another.

    experiment.yaml     the service (or the command line), once
    events.jsonl        the worker, appended
    log.txt             the worker's output
    stages/<name>.json  the worker, atomic, one a finished stage or task
    results.json        the worker, atomic, last
    model/              the worker: the weights as saved
    samples.parquet     the worker: outcomes per document
    anatomy.parquet     the worker, atomic, once: what the method saw when it chose (core/anatomy_file.py)
    state.json          the supervisor, atomic, only while no worker lives
    freed.json          the supervisor, once: whether a cancelled run gave its memory back (core/jobs/freeing.py)
    study.json          the service: which study queued the run (core/studies.py), once
    keep.json           the service: whether its weights are kept, if that was changed (core/keeping.py)
    export/             exports of the model, with where each stands (core/jobs/exporting.py)
    worker.lock         held by the worker all its life: "the worker lives" means that this lock is held

Readers take no lock, may read at any time, and skip a torn last line.
"""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from core.errors import InputError, QueueError
from core.files import write_atomic
from core.jobs.states import State, transition
from core.jobs.status import RunStatus, finite, fold_of, join, now_iso, parse_lines, to_iso

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from core.experiment import Experiment

__all__ = ["RunDirectory", "RunStatus", "is_run_id", "list_runs", "new_run_id", "write_atomic"]

_RUN_ID = re.compile(r"(\d{8}-\d{6})-[0-9a-f]{8}-[a-z0-9]{4}")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_LOG_BYTES_A_LINE = 400
_LAST_EVENT_BYTES = 8192
_NUMBERS = re.compile(r"\[\n *(-?\d[\d.eE+-]*(?:,\n *-?\d[\d.eE+-]*)*)\n *\]")  # strings hold no bare line end
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LOCK_WAIT_S = 2.0  # readers hold the lock for microseconds while they look whether it is free


def new_run_id(hash_: str, now: datetime | None = None) -> str:
    """`YYYYMMDD-HHMMSS-<hash8>-<rand4>` (UTC); `hash_` is the experiment's hash."""
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    suffix = "".join(secrets.choice(_ALPHABET) for _ in range(4))
    return f"{moment:%Y%m%d-%H%M%S}-{hash_[:8].lower()}-{suffix}"


def is_run_id(text: str) -> bool:
    """Whether `text` has the form of a run id, and so is safe as the name of a folder."""
    return _RUN_ID.fullmatch(text) is not None


def to_json(value: Any) -> str:
    """JSON for files: indented, lists of numbers on one line, nan and inf as null (other readers refuse them)."""
    text = json.dumps(finite(value), ensure_ascii=False, indent=1, allow_nan=False)
    return _NUMBERS.sub(lambda match: "[" + ", ".join(map(str.strip, match[1].split(","))) + "]", text) + "\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


class RunDirectory:
    """A run's folder. Making the object touches no file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()

    @classmethod
    def of(cls, runs: Path, run_id: str) -> "RunDirectory":
        """The folder of a run by its id; raises InputError if `run_id` is no id (and might be a path)."""
        if not is_run_id(run_id):
            raise InputError(f"{run_id!r} is not the id of a run.", "Ids look like 20261123-201854-1a2b3c4d-x7y9.")
        return cls(runs / run_id)

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @property
    def id(self) -> str:
        """The run's id: the folder's name, or what state.json says where a folder was named by hand."""
        if is_run_id(self.path.name):
            return self.path.name
        return str((self.read_state() or {}).get("run_id") or self.path.name)

    @property
    def experiment_file(self) -> Path:
        return self.path / "experiment.yaml"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def stages_dir(self) -> Path:
        return self.path / "stages"

    @property
    def results_file(self) -> Path:
        return self.path / "results.json"

    @property
    def samples_file(self) -> Path:
        return self.path / "samples.parquet"

    @property
    def model_dir(self) -> Path:
        return self.path / "model"

    @property
    def recovered_dir(self) -> Path:
        """The model after recovery."""
        return self.path / "recovered"

    @property
    def recovery_dir(self) -> Path:
        """What recovery leaves beside its model: the adapter, the curve, checkpoints while it works."""
        return self.path / "recovery"

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    @property
    def study_file(self) -> Path:
        return self.path / "study.json"

    @property
    def keep_file(self) -> Path:
        return self.path / "keep.json"

    @property
    def lock_file(self) -> Path:
        return self.path / "worker.lock"

    def exists(self) -> bool:
        """Whether this is the folder of a run: it has an experiment."""
        return self.experiment_file.is_file()

    # --- the experiment

    def experiment(self) -> "Experiment":
        """The run's Experiment; raises ExperimentError if the file is damaged, InputError if there is none."""
        from core.experiment import Experiment

        try:
            text = self.experiment_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(
                f"{self.path} is not a run: it has no experiment.yaml.", "Choose another folder."
            ) from None
        return Experiment.from_yaml(text)

    def write_experiment(self, experiment: "Experiment") -> None:
        """Write experiment.yaml; the folder is made if need be."""
        write_atomic(self.experiment_file, experiment.to_yaml())

    def keeps_weights(self) -> bool:
        """Whether the run is to keep its weights, once they are judged: what was said last, else its experiment."""
        said = (read_json(self.keep_file) or {}).get("keep")
        return said if isinstance(said, bool) else self.experiment().save_model

    def write_keep(self, keep: bool) -> None:
        """Say whether the run is to keep its weights; heard until its last stage is done."""
        write_atomic(self.keep_file, to_json({"v": 1, "keep": keep}))

    # --- events and status

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """Events with seq > `after`, oldest first."""
        try:
            data = self.events_file.read_bytes()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        return [event for event in parse_lines(complete) if event["seq"] > after]

    def status(self) -> RunStatus:
        """Where the run stands now. RUNNING is said only while its worker lives; otherwise it is INTERRUPTED."""
        status = self.recorded()
        if status.state is State.RUNNING and not self.worker_lives():
            status = self.recorded()  # the worker may have ended well between the two looks
            if status.state is State.RUNNING:
                reason = "The worker ended without a result."
                status = replace(status, state=State.INTERRUPTED, reason=reason, eta_s=None)
        return status

    def recorded(self) -> RunStatus:
        """What the files say, without a look at whether the worker lives: RUNNING may be the word of a dead one."""
        fold = fold_of(self.events_file)
        fold.update(self.events_file)
        status = join(fold, self.read_state())
        match = _RUN_ID.fullmatch(self.path.name)
        created = status.created or status.started
        if created is None and match:
            with contextlib.suppress(ValueError):  # a folder that was named by hand: 20261123-999999-…
                created = to_iso(datetime.strptime(match[1], "%Y%m%d-%H%M%S").replace(tzinfo=UTC))
        return replace(status, id=self.id, created=created, attempt=max(status.attempt, 1))

    def ended(self) -> bool:
        """Whether the run is over, told from the ends of two files: fast enough to ask ten thousand runs."""
        state = (self.read_state() or {}).get("state")
        try:
            with self.events_file.open("rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - _LAST_EVENT_BYTES, 0))
                last = [event for event in parse_lines(file.read()) if event["kind"] == "state"][-1:]
        except FileNotFoundError:
            last = []
        words = {state, *(event.get("state") for event in last)}
        return bool(words & {str(state) for state in State if state.finished})

    # --- stages and results

    def stage_file(self, name: str) -> Path:
        """Where a finished stage's word stands. InputError for a name that cannot be one."""
        safe = quote(name, safe="")
        if not name or len(safe) > 200:
            raise InputError(f"{name!r} cannot be the name of a stage.", "Use 1 to 200 characters.")
        return self.stages_dir / f"{safe}.json"

    def stage(self, name: str) -> dict[str, Any] | None:
        """What a finished stage left, or None if it is not finished."""
        return read_json(self.stage_file(name))

    def stages(self) -> dict[str, dict[str, Any]]:
        """All finished stages by name, in the order in which they finished."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.stages_dir.iterdir():
                if (
                    path.suffix == ".json"
                    and not path.name.startswith(".")
                    and (content := read_json(path)) is not None
                ):
                    found.append((str(content.get("finished", "")), unquote(path.stem), content))
        return {name: content for _, name, content in sorted(found, key=lambda item: item[:2])}

    def write_stage(self, name: str, content: Mapping[str, Any]) -> None:
        """Mark a stage as finished, with what it found."""
        write_atomic(self.stage_file(name), to_json({"v": 1, "stage": name, "finished": now_iso(), **content}))

    def results(self) -> dict[str, Any] | None:
        """results.json, or None while there is none."""
        return read_json(self.results_file)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json: the last file of a complete run."""
        write_atomic(self.results_file, to_json(results))

    def log_tail(self, lines: int = 50) -> str:
        """The last `lines` lines of log.txt without terminal codes; what a bar overwrote is left out."""
        try:
            with self.log_file.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(size - _LOG_BYTES_A_LINE * lines, 0))
                data = file.read()
        except FileNotFoundError:
            return ""
        text = _ANSI.sub("", data.decode("utf-8", errors="replace"))
        kept = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
        return "\n".join(kept[:-1][-lines:] if kept[-1] == "" else kept[-lines:])

    # --- what the supervisor says

    def read_state(self) -> dict[str, Any] | None:
        """state.json, or None."""
        return read_json(self.state_file)

    def write_state(self, state: State, *, attempt: int = 1, reason: str = "", advice: str = "", **more: Any) -> None:
        """Write state.json for a run without a living worker; keeps what it said of hash, resolved and created.

        Raises QueueError if the run's present state does not allow `state`. Only the process that holds the
        supervisor's lock, or the worker's, may call it.
        """
        old = self.read_state() or {}
        known = bool(old) or fold_of(self.events_file).update(self.events_file).attempt > 0
        transition(self.recorded().state if known else None, state)
        kept = {key: old[key] for key in ("run_id", "hash", "resolved", "created") if key in old}
        content = {
            "v": 1,
            "state": str(state),
            "time": now_iso(),
            "attempt": attempt,
            "reason": reason,
            "advice": advice,
        }
        write_atomic(self.state_file, to_json({"created": now_iso(), **kept, **content, **more}))

    # --- the worker's lock

    def lock(self) -> "BaseFileLock":
        """Take the worker's lock for the life of this process; raises QueueError if another worker holds it."""
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_file, timeout=_LOCK_WAIT_S, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            fold = fold_of(self.events_file)
            pid = fold.update(self.events_file).pid
            who = f"process {pid}" if pid else "another process"
            message = f"Run {self.id} already has a worker ({who})."
            raise QueueError(message, "Wait for it, cancel it, or start a new run.") from None
        return lock

    def worker_lives(self) -> bool:
        """Whether a worker holds the lock now."""
        return held(self.lock_file)


def held(lock: Path) -> bool:
    """Whether somebody holds the file as a lock now. Looking does not disturb other lookers."""
    try:
        handle = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _free(handle)
    finally:
        os.close(handle)


def _free(handle: int) -> bool:
    """Whether nobody holds an exclusive lock on the open file."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(handle, fcntl.LOCK_UN)
    return True


def list_runs(runs: Path) -> Iterator[RunDirectory]:
    """Every run under `runs`, newest first."""
    try:
        names = sorted((entry.name for entry in os.scandir(runs) if is_run_id(entry.name)), reverse=True)
    except FileNotFoundError:
        return
    for name in names:
        if (directory := RunDirectory(runs / name)).exists():
            yield directory
