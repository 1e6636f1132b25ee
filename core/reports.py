"""What pages and the command line ask about reports: gathers what one is made from, out of the store and the files."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from core import charts_images, history, pairs
from core.board import existing
from core.charts_frames import points
from core.charts_images import ImageFormat
from core.errors import EspalierError, InputError
from core.experiment import Experiment
from core.files import write_atomic
from core.jobs.rundir import RunDirectory, is_run_id
from core.pairs import RunPair
from core.pruning import registry
from core.report import html, writing
from core.report.compose import compose
from core.report.document import LANGUAGES, Document, Language
from core.report.gallery import gallery
from core.report.material import Material, NotMade
from core.report.writing import FORMATS, Format
from core.storage.store import Store
from core.studies import TO_DO, Studies
from core.study import Study
from core.travel import Travel

__all__ = ["FORMATS", "LANGUAGES", "Document", "Format", "Language", "Report", "Reports"]
KEPT = 6
"""Reports that are kept for the next question."""


@dataclass(frozen=True)
class Report:
    """A report that was made: its document, and what it is called as a file."""

    document: Document
    stem: str
    points: pd.DataFrame = field(compare=False, repr=False)
    """Every number, as Compare draws it."""
    articles: dict[bool, str] = field(default_factory=dict, compare=False, repr=False)
    """Its HTML for a page, light and dark, once it was shown: figures of 300 runs take a sixth of a second."""

    def file(self, form: Format) -> tuple[str, bytes]:
        """Name and content of a download: HTML as it is, the others as a zip."""
        if form == "html":
            return f"{self.stem}.html", writing.files(self.document, form, self.stem)[f"{self.stem}.html"]
        return f"{self.stem}-{form}.zip", writing.zipped(self.document, form)


class Reports:
    """A room of the service (core/service.py). Safe to call from many threads at once."""

    def __init__(self, store: Store, home: Path, studies: Studies, travel: Travel) -> None:
        self._store, self._home = store, home
        self._studies, self._travel = studies, travel
        self._paired: pairs.Known = {}
        self._gained: pairs.Known = {}
        self._made: OrderedDict[tuple[Any, ...], Report] = OrderedDict()
        self._lock = threading.Lock()

    def of_study(self, study: Study, language: Language = "en", *, mark_tasks: bool = False) -> Report:
        """The report of a study's runs. InputError where none of them has numbers."""
        rows = self._studies.status(study).rows
        ids = [str(run) for run in rows.loc[rows["state"] == "COMPLETE", "run_id"]]
        missing = [NotMade(str(row["name"]), str(row["state"]), self._reason(str(row["run_id"])), str(row["run_id"]))
                   for row in rows.to_dict("records") if row["state"] != "COMPLETE"]  # fmt: skip
        return self._report(ids, study.name, study.note, study.id, missing, language, mark_tasks)

    def of_runs(self, run_ids: Sequence[str], language: Language = "en", *, mark_tasks: bool = False) -> Report:
        """The report of some runs, each by its id or the beginning of one. InputError for one that is not there."""
        ids = list(dict.fromkeys(self._found(run_id) for run_id in run_ids))
        if not ids:
            raise InputError("No run was chosen.", "Choose at least one.")
        states = dict(self._store.rows("SELECT id, state FROM runs"))
        names = dict(self._store.rows("SELECT id, name FROM runs"))
        done = [run for run in ids if states.get(run) == "COMPLETE"]
        missing = [NotMade(str(names.get(run, run)), str(states.get(run, "")), self._reason(run), run)
                   for run in ids if run not in done]  # fmt: skip
        title = str(names.get(ids[0], ids[0])) if len(ids) == 1 else f"{len(ids)} runs"
        if language == "de" and len(ids) > 1:
            title = f"{len(ids)} Läufe"
        return self._report(done, title, "", "report", missing, language, mark_tasks)

    def shown(self, report: Report, *, dark: bool = False) -> str:
        """The report as HTML for a page of the app: figures as images, every text escaped, no script."""
        if dark not in report.articles:
            report.articles[dark] = html.article(report.document, dark=dark, images=True)
        return report.articles[dark]

    style = html.ARTICLE
    """Style sheet of what `shown` gives; colours come from the page."""

    def why_no_images(self) -> str:
        """Why charts cannot be saved as images here, with what to do; '' where they can."""
        return charts_images.problem()

    def charts(self, report: Report, form: ImageFormat) -> dict[str, bytes]:
        """Compare's charts of a report as images, by file name. InputError where Kaleido or a Chrome is missing."""
        drawn = charts_images.images(gallery(report.points), form)
        return {f"{name}.{form}": content for name, content in drawn.items()}

    def write_charts(self, report: Report, folder: Path, form: ImageFormat) -> list[Path]:
        """The same as files in a folder."""
        found = []
        for name, content in self.charts(report, form).items():
            write_atomic(folder / name, content)
            found.append(folder / name)
        return found

    # --- inside

    def _report(
        self, ids: Sequence[str], title: str, note: str, stem: str, missing: Sequence[NotMade], language: Language,
        mark_tasks: bool,
    ) -> Report:  # fmt: skip
        key = (tuple(ids), title, note, tuple(missing), language, mark_tasks, self._store.version)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        material = self.material(ids, title, note, missing)
        report = Report(compose(material, language, mark_tasks=mark_tasks), stem, material.points)
        with self._lock:
            self._made[key] = report
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
        return report

    def material(self, ids: Sequence[str], title: str, note: str = "", missing: Sequence[NotMade] = ()) -> Material:
        """Everything that a report of these complete runs is made from, the dense runs that they need included."""
        known = {str(run) for (run,) in self._store.rows("SELECT id FROM runs WHERE state = 'COMPLETE'")}
        baselines = history.baselines_for(self._store, ids)
        wanted = [run for run in dict.fromkeys([*ids, *(each for each in baselines.values() if each)]) if run in known]
        for run in wanted:
            baselines.setdefault(run, run)
        experiments, results = self._read(wanted)
        runs = self._store.runs("list_contains(?::VARCHAR[], id)", [list(experiments)])
        methods = registry.methods()
        titles = {name: method.title for name, method in methods.items()}
        metrics = self._store.metrics(list(experiments))
        paired = pairs.differences(self._store, self._home, baselines, self._paired)
        imports = self._travel.runs()
        return Material(
            title=title,
            note=note,
            runs=runs,
            points=points(runs, metrics, baselines, titles, paired),
            gained=pairs.gains(self._store, self._home, list(experiments), self._gained),
            experiments=experiments,
            results=results,
            methods=methods,
            baselines=baselines,
            pair=self._pair_of(),
            not_made=missing,
            origins={run: _origin(imports[run]) for run in experiments if run in imports},
        )

    def _read(self, wanted: Sequence[str]) -> tuple[dict[str, Experiment], dict[str, Mapping[str, Any]]]:
        """Experiment and results of runs whose files can be read. A run that is being deleted is left out, and so is
        a scan of layers, which judges no one model."""
        experiments: dict[str, Experiment] = {}
        results: dict[str, Mapping[str, Any]] = {}
        for run in wanted:
            try:
                directory = existing(self._home, run)
                results[run] = directory.results() or {}
                experiments[run] = _experiment(directory, results[run])
            except EspalierError:
                results.pop(run, None)
                continue
            if experiments[run].scan is not None:
                del experiments[run], results[run]
        return experiments, results

    def _pair_of(self) -> Callable[[str, str], RunPair]:
        """Pairs of runs on shared documents, each computed once."""
        known: dict[tuple[str, str], RunPair] = {}

        def pair(first: str, second: str) -> RunPair:
            if (first, second) not in known:
                known[first, second] = pairs.pair(self._store, self._home, first, second)
            return known[first, second]

        return pair

    def _found(self, run_id: str) -> str:
        """A run's id by its beginning. InputError for none, or for several."""
        if is_run_id(run_id):
            return existing(self._home, run_id).id
        rows = self._store.rows("SELECT id FROM runs WHERE starts_with(id, ?) ORDER BY id", [run_id])
        if len(rows) != 1 or not run_id:
            found = "No run's id begins" if not rows else f"The ids of {len(rows)} runs begin"
            raise InputError(f"{found} with {run_id!r}.", "Give a run's whole id.")
        return str(rows[0][0])

    def _reason(self, run_id: str) -> str:
        if not run_id or run_id == TO_DO:
            return ""
        return str(RunDirectory.of(self._home / "runs", run_id).status().reason)


def _experiment(directory: RunDirectory, results: Mapping[str, Any]) -> Experiment:
    """A run's experiment: from results.json, which is read much faster than YAML, else from its own file."""
    content = results.get("experiment")
    return Experiment.parse(content) if isinstance(content, Mapping) else directory.experiment()


def _origin(came: Any) -> str:
    """Who measured an imported run, where and when it was packed."""
    said = [came.origin or came.file, *came.devices[:2], came.packed[:10]]
    return ", ".join(str(word) for word in said if word)
