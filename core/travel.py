"""Studies that travel: packed into one file without weights, unpacked elsewhere as runs that never change. No torch.

What was unpacked lies in files like everything else: a folder a run, the study's YAML, and `studies/<id>.import.json`,
which says which runs came from where and when. So the store equals its files as ever, and an import can be taken back
as a whole and made again.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core import __version__, settings
from core.errors import EspalierError, InputError, QueueError
from core.jobs.rundir import RunDirectory, is_run_id, read_json, to_json, write_atomic
from core.jobs.status import now_iso
from core.origins import RECORD, came
from core.storage import archive
from core.storage.archive import Archive
from core.storage.store import Store
from core.studies import SUFFIX, Studies
from core.study import Study
from core.travel_runs import (
    FORMAT,
    PACKED_STATES,
    bad_content,
    checked,
    json_of,
    mapping_of,
    text_of,
    things_of,
    write_run,
)

OFFERED = ".offered.json"
_STAGING = ".importing-"
_OR = " / "
_MOST_VERSIONS = 4  # of one package
_ADVICE = "Nothing was imported."
_writing = threading.Lock()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packed:
    """What went into a file: runs by state, and runs of the study that have nothing to pack yet."""

    file: Path
    bytes: int
    runs: int
    missing: int


@dataclass(frozen=True)
class Import:
    """A study that came from another machine. `runs` are those that came with it, not what was here before.

    devices, packages: of all of them; `2.11.0 / 2.13.0` where they had several versions of a package.
    """

    study: str
    name: str
    imported: str
    file: str
    sha256: str
    origin: str = ""
    packed: str = ""
    espalier: str = ""
    devices: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    here_before: int = 0
    wrote_study: bool = True


class Travel:
    """A room of the service (core/service.py). Safe to call from many threads at once."""

    def __init__(self, store: Store, home: Path, studies: Studies) -> None:
        self._store, self._home, self._studies = store, home, studies
        self._known: tuple[tuple[Any, ...], list[Import]] = ((), [])
        self.arriving = False
        """Whether the study that comes along is being unpacked: a home that seems empty will not be, in seconds."""

    # --- away

    def pack(self, study: Study, file: Path, documents: str = "outcomes", origin: str = "") -> Packed:
        """Write what the study's runs came to, all but weights and logs, as one file. InputError where nothing has.

        documents: "outcomes" (whether each was right, and its score), "full" (every choice's log-likelihood, too), or
        "none". origin: a line that says who measured it, shown where it is imported.
        """
        if documents not in archive.DETAILS:
            raise InputError(f"documents is {documents!r}.", f"Choose one of {', '.join(archive.DETAILS)}.")
        rows = self._studies.status(study).rows
        ended = rows[rows["state"].isin(PACKED_STATES)]
        once = ended["run_id"].unique()  # a run may stand for two entries: `auto` and the device that this is here
        directories = [RunDirectory.of(self._home / "runs", run_id) for run_id in once]
        if not directories:
            raise InputError(f"No run of {study.name} is over.", "Run it first: there is nothing to pack.")
        about = {"format": FORMAT, "study": study.id, "name": study.name, "origin": origin[:500],
                 "packed": now_iso(), "espalier": __version__}  # fmt: skip
        things: list[dict[str, Any]] = [
            {"kind": "archive", "text": json_of(about)},
            {"kind": "study", "name": study.name, "text": study.to_yaml()},
        ]
        for directory in directories:
            things += things_of(directory)
        samples = {each.id: each.samples_file for each in directories if each.samples_file.is_file()}
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".packing-", suffix=".parquet", dir=file.parent)
        os.close(handle)
        try:
            archive.write(Path(temporary), things, samples, documents)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(file)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return Packed(file, file.stat().st_size, len(directories), len(rows) - len(ended))

    # --- and back

    def take_in(self, file: Path, name: str = "") -> Import:
        """Unpack a file into this home, all of it or nothing; runs that are here already stay as they are.

        name: what the file is called, if not by its path. InputError says why a file is refused.
        """
        with _writing:
            self._clear_staging()
            staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=_made(self._home / "runs")))
            try:
                own = staging / "archive.parquet"  # a name without surprises, that nobody swaps meanwhile
                archive.copy_bounded(file, own)
                with Archive(own, staging) as opened:
                    found = self._unpack(opened, staging, name or file.name)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            self._store.sync(self._home)
        return found

    def take_in_once(self, file: Path) -> Import | None:
        """Unpack a file that comes with Espalier, the first time this home sees it; None afterwards, or without it.

        So one that was taken back stays away until somebody imports it again.
        """
        if not file.is_file():
            return None
        mark = hashlib.sha256(file.read_bytes()).hexdigest()
        path = self._home / "studies" / OFFERED
        seen = read_json(path) or {}
        if mark in seen:
            return None
        self.arriving = True
        try:
            found = self.take_in(file)
        finally:
            self.arriving = False
        write_atomic(path, to_json({**seen, mark: now_iso()}))
        return found

    def take_reference_in(self) -> None:
        """The reference study, the first time that this home is opened by who may write to it. Never raises."""
        file = settings.reference_file()
        if file is not None and not self._store.read_only:
            try:
                self.take_in_once(file)
            except (EspalierError, OSError):
                _log.exception("The reference study was not taken in.")

    def remove(self, study_id: str) -> Import:
        """Take an import back: its runs with their files, and the study where it came along. InputError without one."""
        found = next((each for each in self.all() if each.study == study_id), None)
        if found is None:
            raise InputError(f"No study {study_id!r} was imported.", "Choose one from the list.")
        with _writing:
            for run_id in found.runs:
                directory = RunDirectory.of(self._home / "runs", run_id)
                if directory.worker_lives():  # it was deleted, and a run of that name is at work: not ours
                    raise QueueError(f"Run {run_id} is running.", "Cancel it first.")
                if came(directory):
                    gone = directory.path.rename(self._home / "runs" / f".deleted-{run_id}")
                    shutil.rmtree(gone, ignore_errors=True)
            if found.wrote_study:
                (self._home / "studies" / f"{study_id}{SUFFIX}").unlink(missing_ok=True)
            (self._home / "studies" / f"{study_id}{RECORD}").unlink(missing_ok=True)
            self._store.sync(self._home)
        return found

    def all(self) -> list[Import]:
        """What was imported, the newest first."""
        folder = self._home / "studies"
        try:
            files = sorted(folder.glob(f"*{RECORD}"))
            stamp = tuple((path.name, path.stat().st_mtime_ns) for path in files)
        except OSError:
            return []
        if self._known[0] != stamp:
            read = [found for path in files if (found := _read_record(path)) is not None]
            self._known = stamp, sorted(read, key=lambda each: each.imported, reverse=True)
        return self._known[1]

    def of_run(self, run_id: str) -> Import | None:
        """The import that a run came with; None for a run of this machine."""
        return next((each for each in self.all() if run_id in each.runs), None)

    def runs(self) -> dict[str, Import]:
        """Every run that came from elsewhere."""
        return {run_id: each for each in self.all() for run_id in each.runs}

    def nothing_of_this_machine(self) -> bool:
        """Whether every run came from elsewhere, or there is none."""
        ((count,),) = self._store.rows("SELECT count(*) FROM runs", [])
        return int(count) <= len(self.runs())

    # --- inside

    def _unpack(self, opened: Archive, staging: Path, name: str) -> Import:
        contents = opened.contents()
        about, study, experiments = checked(contents)
        here = {run_id for run_id in experiments if (self._home / "runs" / run_id).exists()}
        new = [run_id for run_id in experiments if run_id not in here]
        study, wrote = self._place_for(study)
        before = next((each for each in self.all() if each.study == study.id), None)
        devices: Counter[str] = Counter(before.devices if before else ())
        packages = dict(before.packages) if before else {}
        with bad_content():
            for run_id in new:
                environment = write_run(RunDirectory(staging / run_id), contents, run_id, study.id, experiments[run_id])
                devices.update(filter(None, [text_of(environment.get("device_name"))]))
                _note_versions(packages, mapping_of(environment.get("packages")))
        places = {run: staging / run / "samples.parquet" for run in contents.documents if run in new}
        opened.write_samples(places)
        kept = [run for run in before.runs if run in here] if before is not None else []
        found = Import(
            study=study.id,
            name=study.name,
            imported=now_iso(),
            file=name[:200],
            sha256=hashlib.sha256(opened.file.read_bytes()).hexdigest(),
            origin=text_of(about.get("origin")) or "",
            packed=text_of(about.get("packed")) or "",
            espalier=text_of(about.get("espalier")) or "",
            devices=tuple(each for each, _ in devices.most_common(8)),
            packages=packages,
            runs=(*kept, *new),
            here_before=len(here) - len(kept),
            wrote_study=wrote or (before is not None and before.wrote_study),
        )
        os.sync()
        # The record first: a crash in between leaves runs that are known to be imported, and the rest for next time.
        if wrote:
            self._studies.save(study)
        write_atomic(self._home / "studies" / f"{study.id}{RECORD}", to_json({"v": 1, **asdict(found)}))
        for run_id in new:
            with contextlib.suppress(FileExistsError):
                (staging / run_id).rename(self._home / "runs" / run_id)
        return found

    def _place_for(self, study: Study) -> tuple[Study, bool]:
        """The study under a name that is free here, or taken by the same study; and whether it is to be written."""
        known = {each.id: each for each in self._studies.all()}
        for title in (study.name, *(f"{study.name[:100]} (imported{more})" for more in ("", *map(str, range(2, 100))))):
            mine = study.model_copy(update={"name": title})
            there = known.get(mine.id)
            if there is None:
                return mine, True
            if there == mine:
                return there, False
        raise InputError(f"There are too many studies called {study.name}.", "Remove some.")

    def _clear_staging(self) -> None:
        for old in (self._home / "runs").glob(f"{_STAGING}*"):
            shutil.rmtree(old, ignore_errors=True)


def _note_versions(known: dict[str, str], found: Mapping[str, Any]) -> None:
    """Add a run's packages to those of an import: `2.11.0 / 2.13.0` where its runs had several versions of one."""
    for name, version in ((str(name)[:60], str(version)[:60]) for name, version in found.items()):
        versions = known[name].split(_OR) if name in known else []
        if version not in versions and len(versions) < _MOST_VERSIONS:
            known[name] = _OR.join([*versions, version])


def _read_record(path: Path) -> Import | None:
    content = read_json(path) or {}
    runs = content.get("runs")
    if content.get("study") != path.name.removesuffix(RECORD) or not isinstance(runs, list):
        return None
    known: dict[str, Any] = {name: content[name] for name in Import.__dataclass_fields__ if name in content}
    known |= {
        "runs": tuple(run for run in runs if isinstance(run, str) and is_run_id(run)),
        "devices": tuple(map(str, content.get("devices") or ())),
        "packages": {str(name): str(version) for name, version in mapping_of(content.get("packages")).items()},
    }
    try:
        return Import(**known)
    except TypeError:
        return None


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
