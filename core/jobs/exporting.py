"""Exports of runs and models: finding what is meant, doing it with a card, and doing it in the background for a page.

    runs/<id>/export/<format>-<dtype>/        the export, whole or not there; of a run with recovery
                     <stage>-<format>-<dtype>/, stage pruned or recovered
    runs/<id>/export/<format>-<dtype>.json    where it stands; written by the process that exports
    runs/<id>/export/<format>-<dtype>.log     that process's output, where a page started it

No torch until an export is really done.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from core import settings
from core.errors import Cancelled, EspalierError, QueueError
from core.jobs.export_source import PRUNED, RECOVERED, ExportChoice, choices, find_run, folder_of, stage_of
from core.jobs.processes import ask_to_stop, find, identity, kill_group
from core.jobs.rundir import RunDirectory, read_json, to_json, write_atomic
from core.jobs.status import now_iso
from core.models.export import FORMATS, Exported, Stage, require_format, staged, write_manifest
from core.progress import Progress

__all__ = [
    "ExportChoice", "ExportStatus", "Order", "cancel", "cancel_all", "choices", "ended_by_signals", "exports",
    "find_run", "folder_of", "log_tail", "perform", "start",
]  # fmt: skip

_EVERY_S = 0.3
_LOG_BYTES = 20_000
_FIELDS = ("format", "dtype", "state", "stage", "done", "total", "unit", "path", "bytes", "message", "advice",
           "checks", "notes", "agreement", "url", "started", "finished", "pid", "pid_created")  # fmt: skip


@dataclass(frozen=True)
class ExportStatus:
    """Where one export of a run stands. state: RUNNING, COMPLETE, FAILED or CANCELLED; sizes in bytes.

    of: `pruned` or `recovered` where the run has both, else ''; stage: what the export does now.
    """

    format: str
    dtype: str
    state: str
    stage: str = ""
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    path: str = ""
    bytes: int = 0
    message: str = ""
    advice: str = ""
    checks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    agreement: dict[str, Any] | None = None
    url: str = ""
    started: str = ""
    finished: str = ""
    pid: int | None = None
    pid_created: float | None = None
    of: str = ""

    @property
    def name(self) -> str:
        return name_of(self.format, self.dtype, self.of)


@dataclass(frozen=True)
class Order:
    """What is to be exported, and how. Either a run or a dense model; dtype '' is the one on disk.

    stage: `pruned` or `recovered` of a run with recovery; '' is the last.
    """

    run: RunDirectory | None
    model: str | None
    format: str
    dtype: str = ""
    out: Path | None = None
    push: str | None = None
    private: bool = True
    trust: bool = False
    stage: str = ""


# -------------------------------------------------------------------------------------------------------- what is meant


def source_of(order: Order, progress: Progress) -> Path:
    """The folder with the weights: the run's, or the dense model's (converted or downloaded if need be)."""
    from core.experiment import Experiment
    from core.models.catalogue import resolve
    from core.models.loading import weights_directory

    if order.run is not None:
        folder = folder_of(order.run, order.stage)
        if folder is not None:
            return folder
        choice = order.run.experiment().model
    else:
        fields = {"name": order.model, "trust_remote_code": order.trust}
        choice = Experiment.parse({"model": fields}).model
    return weights_directory(resolve(choice), choice.trust_remote_code, progress)


def destination_of(order: Order, dtype: str) -> Path:
    """Where the export goes: `out`, or beside the run's files, or under exports/ for a dense model."""
    if order.out is not None:
        return order.out.expanduser().resolve()
    if order.run is not None:
        return order.run.path / "export" / name_of(order.format, dtype, order.stage)
    from core.jobs.export_facts import slug, title_of

    return settings.home() / "exports" / slug(title_of(None, order.model)) / name_of(order.format, dtype)


def name_of(format_: str, dtype: str, stage: str = "") -> str:
    """Folder and name of an export: `gguf-q8_0`, `recovered-gguf-q8_0`."""
    return "-".join(filter(None, (stage, format_, dtype)))


# ------------------------------------------------------------------------------------------------------------ doing it


def perform(order: Order, hear: Callable[[str, float, float, str], None]) -> tuple[Exported, str]:
    """Export, and upload where asked; returns what was made and the upload's address or ''.

    `hear(stage, done, total, unit)` may raise Cancelled. Errors leave what was exported before untouched; a failed
    upload (`PushError`) leaves the new export, whole.
    """
    from core.jobs.export_facts import card_facts, gguf_about, slug, title_of
    from core.models.loading import stored_dtype
    from core.models.push import push, require_repo

    if order.push is not None:
        require_repo(order.push)
    stage = _stage(hear)
    if order.run is not None:
        folder_of(order.run, order.stage)
        order = replace(order, stage=stage_of(order.run, order.stage))
    source = source_of(order, stage("load"))
    dtype = order.dtype or stored_dtype(source)
    require_format(order.format, dtype)
    destination = destination_of(order, dtype)
    title = title_of(order.run, order.model, order.stage)
    with _reported(order, dtype, destination) as report:
        with staged(destination) as folder:
            about = gguf_about(order.run, order.model, order.stage)
            exported = _export(order.format, source, folder, dtype, slug(title), about, report.listen(stage))
            facts = card_facts(order.run, order.model, source, exported, title, order.stage)
            from core.models.card import card

            (folder / "README.md").write_text(card(facts), encoding="utf-8")
            if facts.yaml is not None:
                (folder / "experiment.yaml").write_text(facts.yaml, encoding="utf-8")
            write_manifest(folder, exported)
            for path in folder.iterdir():
                path.chmod(0o644)
        path = destination if exported.path == folder else destination / exported.path.name
        exported = replace(exported, path=path)
        report.made(exported)
        url = ""
        if order.push is not None:
            report.listen(stage)("upload")(0, 1, "steps")
            url = push(destination, order.push, private=order.private)
            report.pushed(url)
    return exported, url


def _export(
    format_: str, source: Path, folder: Path, dtype: str, name: str, about: dict[str, str], stage: Stage
) -> Exported:
    from core.models.export import export_gguf, export_hf

    if format_ == "hf":
        return export_hf(source, folder, dtype, stage)
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    return export_gguf(source, folder, dtype, name, about, stage, threads)  # type: ignore[arg-type]


def _stage(hear: Callable[[str, float, float, str], None]) -> Stage:
    return lambda name: lambda done, total, unit: hear(name, done, total, unit)


class _Report:
    """The status file of an export; without a place it writes nothing."""

    def __init__(self, place: Path | None, first: ExportStatus) -> None:
        self._place = place
        self._last = 0.0
        self.status = first
        self._write()

    def listen(self, stage: Stage) -> Stage:
        """The same stages, which also go into the file, at most three times a second."""

        def named(name: str) -> Progress:
            inner = stage(name)

            def heard(done: float, total: float, unit: str) -> None:
                inner(done, total, unit)
                changed = name != self.status.stage
                self.status = replace(self.status, stage=name, done=done, total=total, unit=unit)
                if changed or time.monotonic() - self._last >= _EVERY_S:
                    self._write()

            return heard

        return named

    def made(self, exported: Exported) -> None:
        self.status = replace(
            self.status, path=str(exported.path), bytes=exported.bytes, checks=exported.checks, notes=exported.notes,
            agreement=exported.agreement,
        )  # fmt: skip
        self._write()

    def pushed(self, url: str) -> None:
        self.status = replace(self.status, url=url)

    def end(self, state: str, error: BaseException | None = None) -> None:
        message, advice = ("", "")
        if isinstance(error, EspalierError):
            message, advice = error.message, error.advice
        elif error is not None:
            message, advice = f"The export failed: {error or type(error).__name__}", "See the end of its log."
        self.status = replace(self.status, state=state, message=message, advice=advice, finished=now_iso())
        self._write()

    def _write(self) -> None:
        self._last = time.monotonic()
        if self._place is not None and self._place.parent.parent.is_dir():  # the run may be deleted meanwhile
            write_atomic(self._place, to_json({name: getattr(self.status, name) for name in _FIELDS}))


@contextmanager
def _reported(order: Order, dtype: str, destination: Path) -> Iterator[_Report]:
    """The report of this export, ended as the work inside ends."""
    place = None
    if order.run is not None and order.out is None:
        place = destination.with_name(f"{destination.name}.json")
        refuse_a_second(order.run, destination.name)
    first = ExportStatus(order.format, dtype, "RUNNING", "start", started=now_iso(), of=order.stage, **identity())
    report = _Report(place, first)
    try:
        yield report
    except (Cancelled, KeyboardInterrupt) as error:
        report.end("CANCELLED", error if isinstance(error, Cancelled) else Cancelled())
        raise
    except BaseException as error:
        report.end("FAILED", error)
        raise
    report.end("COMPLETE")


@contextmanager
def ended_by_signals() -> Iterator[Callable[[], None]]:
    """Yields a check that raises Cancelled once SIGTERM has come.

    Raised where the work looks, not where the signal falls: an exception in the middle of loading a library can end
    the process before it has cleared up.
    """
    asked: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    def check() -> None:
        if asked:
            raise Cancelled

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield check
    finally:
        signal.signal(signal.SIGTERM, before)


# ------------------------------------------------------------------------------------------------- in the background


def start(run: RunDirectory, home: Path, format_: str, dtype: str, stage: str = "") -> None:
    """Export in a process of its own, which outlives the app. InputError or QueueError if that cannot be."""
    require_format(format_, dtype)
    folder_of(run, stage)
    stage = stage_of(run, stage)
    name = name_of(format_, dtype, stage)
    refuse_a_second(run, name)
    folder = run.path / "export"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "core", "export", str(run.path), "--to", format_, "--dtype", dtype]
    command += ["--stage", stage] if stage else []
    environment = settings.child_environment() | {"ESPALIER_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=settings.REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _CHILDREN.append(process)
    first = ExportStatus(format_, dtype, "RUNNING", "start", started=now_iso(), of=stage, **identity(process.pid))
    content = {field: getattr(first, field) for field in _FIELDS}
    write_atomic(folder / f"{name}.json", to_json(content))


_CHILDREN: list["subprocess.Popen[bytes]"] = []  # so that those that ended are not left as zombies


def exports(run: RunDirectory) -> list[ExportStatus]:
    """Every export of a run, in the order of formats. One whose process is gone without a word is FAILED."""
    _CHILDREN[:] = [child for child in _CHILDREN if child.poll() is None]
    found = []
    for stage in ("", RECOVERED, PRUNED):
        for format_, dtypes in FORMATS.items():
            for dtype in dtypes:
                content = read_json(run.path / "export" / f"{name_of(format_, dtype, stage)}.json")
                if content is not None:
                    found.append(_status(run, format_, dtype, stage, content))
    return found


def _status(run: RunDirectory, format_: str, dtype: str, stage: str, content: Mapping[str, Any]) -> ExportStatus:
    state = content.get("state")
    state = state if state in ("RUNNING", "COMPLETE", "CANCELLED") else "FAILED"
    status = ExportStatus(**{**_sound(content), "format": format_, "dtype": dtype, "state": state, "of": stage})
    if status.state == "RUNNING" and find(status.pid, status.pid_created) is None:
        again = read_json(run.path / "export" / f"{status.name}.json") or {}
        if again.get("state") not in (None, "RUNNING"):  # it ended well between the two looks
            return _status(run, format_, dtype, stage, again)
        last = log_tail(run, status.name, 1)
        return replace(status, state="FAILED", message=f"The export ended without a result. {last}".strip(),
                       advice="Export it again; memory may have run out.")  # fmt: skip
    if status.state == "COMPLETE" and not Path(status.path).exists():
        return replace(status, state="FAILED", message="The exported files are gone.", advice="Export it again.")
    return status


def _sound(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a status file says, without values of another type than they should have: a file may be damaged."""
    kinds: dict[str, Any] = dict.fromkeys(
        ("stage", "unit", "path", "message", "advice", "url", "started", "finished"), str
    )
    kinds |= {"done": int | float, "total": int | float, "pid_created": int | float, "bytes": int, "pid": int}
    kinds |= {"agreement": dict}
    found = {name: content[name] for name, kind in kinds.items() if isinstance(content.get(name), kind)}
    for name in ("checks", "notes"):
        if isinstance(content.get(name), list):
            found[name] = [str(text) for text in content[name]]
    return found


def refuse_a_second(run: RunDirectory, name: str) -> None:
    """QueueError if another process does this very export now."""
    for status in exports(run):
        if status.name == name and status.state == "RUNNING" and status.pid != os.getpid():
            raise QueueError(f"Run {run.id} is being exported as {status.name} already.", "Wait for it, or stop it.")


def cancel(run: RunDirectory, name: str) -> None:
    """Ask a running export to stop; it removes what it has half written."""
    for status in exports(run):
        if status.name == name and status.state == "RUNNING":
            process = find(status.pid, status.pid_created)
            if process is not None:
                ask_to_stop(process)


def cancel_all(run: RunDirectory, wait_s: float = 5.0) -> None:
    """Stop every export of a run, and wait for them: before its folder is removed."""
    for status in exports(run):
        process = find(status.pid, status.pid_created) if status.state == "RUNNING" else None
        if process is not None:
            ask_to_stop(process)
            deadline = time.monotonic() + wait_s
            while find(status.pid, status.pid_created) is not None and time.monotonic() < deadline:
                time.sleep(0.05)
            if (process := find(status.pid, status.pid_created)) is not None:
                kill_group(process)


def log_tail(run: RunDirectory, name: str, lines: int = 20) -> str:
    """The last lines of the log of an export that a page started."""
    try:
        with (run.path / "export" / f"{name}.log").open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _LOG_BYTES, 0))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])
