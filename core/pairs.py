"""Two runs on the same documents: differences with their certainty, and the documents that flipped.

Numbers come from the rows beside the runs (core/storage/outcomes.py), statistics from core/evaluation/paired.py.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from core import settings
from core.errors import StoreError
from core.evaluation.averages import AVERAGE_METRIC, AVERAGE_TASK, SEVEN_METRICS
from core.evaluation.metrics import text_key
from core.evaluation.outcomes import documents_folder
from core.evaluation.paired import (
    Paired,
    PairedMean,
    compare,
    compare_perplexity,
    difference_stderr,
    holm,
    mcnemar,
    mean_of,
    normal_p,
)
from core.storage import outcomes
from core.storage.store import Store

PAGE = 20
"""Flipped documents shown at once."""
AT_ONCE = 50
"""Runs whose rows one question is about: 122 of the reference took 3.8 s one by one, and take 1.1 s so."""
_COMPARABLE = ("limit", "seed", "versions")
"""What two protocols may differ in where documents are paired one by one."""


@dataclass(frozen=True)
class TaskPair:
    """One task and metric of two runs. `corrected` is Holm's p over the reported metrics of all tasks, else nan."""

    task: str
    metric: str
    reported: bool
    """Whether it is the metric that the literature reports of this task."""
    paired: Paired
    corrected: float
    differing: tuple[str, ...] = ()
    """Names of settings in which the two measurements differ."""


@dataclass(frozen=True)
class PerplexityPair:
    """One corpus of two runs: how many times as large the second's perplexity is, with its 95 % interval."""

    corpus: str
    windows: int
    first: float
    second: float
    low: float
    high: float
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """How the first was measured; the second read the same tokens."""

    @property
    def ratio(self) -> float:
        """Second over first."""
        return self.second / self.first


@dataclass(frozen=True)
class RunPair:
    """Two runs, the second against the first. `mean`: over the reported metric of the tasks they share."""

    first: str
    second: str
    tasks: tuple[TaskPair, ...] = ()
    mean: PairedMean | None = None
    perplexities: tuple[PerplexityPair, ...] = ()
    problem: str = ""
    """Why there is nothing, in a sentence, or ''."""


@dataclass(frozen=True)
class Flip:
    """A document that one of two runs got right and the other wrong. Texts are the task's own: show them as text."""

    doc: int
    prompt: str
    choices: tuple[str, ...]
    target: int | None
    first_choice: int | None
    second_choice: int | None
    first_logs: tuple[float, ...] = ()
    second_logs: tuple[float, ...] = ()
    known: bool = field(default=True)
    """False: the document's text was not kept."""


def pair(store: Store, home: Path, first: str, second: str) -> RunPair:
    """Hold the second run against the first, on the documents and windows that both answered."""
    try:
        counted = outcomes.counts(store, home, first, [second])
        windows = outcomes.windows(store, home, first, [second])
    except StoreError:
        return RunPair(
            first, second, problem="The rows of one of these runs cannot be read: samples.parquet is damaged."
        )
    if counted.empty and windows.empty:
        return RunPair(first, second, problem="These runs share no document: they were judged on different tasks.")
    protocols = _protocols(store, first, second)
    texts = _texts(store, first)
    found = {key: compare(n, both, lost, won) for key, (n, both, lost, won) in _counts(counted).items()}
    reported = {key for key in found if SEVEN_METRICS.get(key[0], "acc") == key[1]}
    corrected = holm({f"{task} {metric}": found[task, metric].p for task, metric in sorted(reported)})
    rows = [
        TaskPair(
            task, metric, (task, metric) in reported, paired, corrected.get(f"{task} {metric}", math.nan),
            _differing(*protocols.get((task, metric), ({}, {}))),
        )
        for (task, metric), paired in found.items()
    ]  # fmt: skip
    order = {task: place for place, task in enumerate(SEVEN_METRICS)}
    rows.sort(key=lambda row: (order.get(row.task, 99), row.task, not row.reported, row.metric))
    main = [row.paired for row in rows if row.reported]
    return RunPair(
        first, second, tuple(rows), mean_of(main) if len(main) > 1 else None,
        tuple(_perplexity(task, group, texts.get(text, {})) for (task, text), group in _by_text(windows)),
    )  # fmt: skip


def flips(
    store: Store, home: Path, first: str, second: str, task: str, metric: str, *, lost: bool, offset: int = 0
) -> list[Flip]:
    """Documents that the first run got right and the second wrong (`lost`), or the other way round; `PAGE` at most."""
    try:
        rows = outcomes.flips(store, home, first, second, task, metric, lost, limit=PAGE, offset=max(offset, 0))
        folders = [documents_folder(home / settings.documents_dir().name, each, task) for each in _harnesses(store)]
        known = outcomes.texts(store, home, folders, [str(row["doc_hash"]) for row in rows])
    except StoreError:
        return []
    return [_flip(row, known.get(str(row["doc_hash"]))) for row in rows]


_DIFFERENCE = ("run_id", "task", "metric", "text", "baseline", "n", "paired_stderr", "paired_p")
Known = dict[tuple[Any, ...], list[tuple[Any, ...]]]
"""Differences that were computed before, by the two runs and the state of their files."""


def differences(
    store: Store, home: Path, baselines: Mapping[str, str | None], known: Known | None = None
) -> pd.DataFrame:
    """For runs with a dense run: standard error and p of each difference, taken on the same documents and windows.

    Columns: run_id, task, metric, text (of perplexity, its windows, `text_key`, else ''), baseline, n, paired_stderr,
    paired_p (exact McNemar for tasks, normal for means and perplexity). What was not kept document by document has no
    row. `known` remembers what was computed, for the next question.
    """
    known = {} if known is None else known
    keys: dict[str, tuple[Any, ...]] = {}
    wanted: dict[str, list[str]] = {}
    for run_id, dense in baselines.items():
        if dense is None or dense == run_id:
            continue
        keys[run_id] = (dense, run_id, *(stamp(home, each) for each in (dense, run_id)))
        if keys[run_id] not in known:
            wanted.setdefault(dense, []).append(run_id)
    for dense, run_ids in wanted.items():
        for start in range(0, len(run_ids), AT_ONCE):
            found = _differences(store, home, dense, run_ids[start : start + AT_ONCE])
            known.update({keys[run_id]: rows for run_id, rows in found.items()})
    return pd.DataFrame([row for key in keys.values() for row in known[key]], columns=list(_DIFFERENCE))


def gains(store: Store, home: Path, run_ids: Iterable[str], known: Known | None = None) -> pd.DataFrame:
    """The same of each run that was judged before and after recovery, between the two: what training changed.

    Columns as of `differences`, with baseline being the run itself. Other runs have no rows.
    """
    known = {} if known is None else known
    rows: list[tuple[Any, ...]] = []
    for run_id in dict.fromkeys(run_ids):
        key = (run_id, stamp(home, run_id))
        if key not in known:
            known[key] = _differences(store, home, run_id, [run_id])[run_id]
        rows += known[key]
    return pd.DataFrame(rows, columns=list(_DIFFERENCE))


def stamp(home: Path, run_id: str) -> tuple[int, int] | None:
    """State of the file of a run's documents: time and size; None where there is none."""
    path = outcomes.samples_file(home, run_id)
    if path is None:
        return None
    info = path.stat()
    return info.st_mtime_ns, info.st_size


def _differences(store: Store, home: Path, dense: str, run_ids: Sequence[str]) -> dict[str, list[tuple[Any, ...]]]:
    """Rows of each run; all are asked for at once, and one by one where a file of one is damaged."""
    try:
        counted = dict(list(outcomes.counts(store, home, dense, run_ids).groupby("run")))
        windows = dict(list(outcomes.windows(store, home, dense, run_ids).groupby("run")))
    except StoreError:  # the differences of a damaged one are shown without pairing
        if len(run_ids) == 1:
            return {run_ids[0]: []}
        return {run_id: _differences(store, home, dense, [run_id])[run_id] for run_id in run_ids}
    return {run_id: _rows(dense, run_id, counted.get(run_id), windows.get(run_id)) for run_id in run_ids}


def _rows(dense: str, run_id: str, counted: pd.DataFrame | None, windows: pd.DataFrame | None) -> list[tuple[Any, ...]]:
    own = {} if counted is None else {key: (n, lost, won) for key, (n, _, lost, won) in _counts(counted).items()}
    rows: list[tuple[Any, ...]] = [
        (run_id, task, metric, "", dense, n, difference_stderr(n, lost, won), mcnemar(lost, won))
        for (task, metric), (n, lost, won) in own.items()
    ]
    rows += [(run_id, *row, "", dense, n, stderr, p) for row, n, stderr, p in _mean_row(own)]
    for (task, text), group in [] if windows is None else _by_text(windows):
        difference, error = _perplexity_difference(group)
        rows.append((run_id, task, "perplexity", text, dense, len(group), error, normal_p(difference, error)))
    return rows


def _counts(counted: pd.DataFrame) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    """By task and metric: documents, right for both, lost, won."""
    columns = (counted[name].tolist() for name in ("task", "metric", "n", "both_right", "lost", "won"))
    return {(task, metric): rest for task, metric, *rest in zip(*columns, strict=True)}  # type: ignore[misc]


def _mean_row(
    own: Mapping[tuple[str, str], tuple[int, int, int]],
) -> list[tuple[tuple[str, str], int, float | None, float]]:
    """The mean over the seven tasks, where all seven are there."""
    parts = [own.get((task, metric)) for task, metric in SEVEN_METRICS.items()]
    if None in parts:
        return []
    counts = [part for part in parts if part is not None]
    errors = [difference_stderr(*part) for part in counts]
    difference = math.fsum((won - lost) / n for n, lost, won in counts) / len(counts)
    stderr = None if None in errors else math.sqrt(math.fsum((e or 0.0) ** 2 for e in errors)) / len(counts)
    n = sum(part[0] for part in counts)
    return [((AVERAGE_TASK, AVERAGE_METRIC), n, stderr, normal_p(difference, stderr))]


def _perplexity_difference(group: pd.DataFrame) -> tuple[float, float | None]:
    """Difference of two perplexities and its standard error, by the delta method over shared windows.

    exp(m₂) − exp(m₁) changes with a window's NLL pair by exp(m₂)·x₂ − exp(m₁)·x₁: the spread of that, over √windows.
    """
    first, second = (math.exp(min(float(group[side].mean()), 700.0)) for side in ("first", "second"))
    if len(group) < 2:
        return second - first, None
    spread = (second * group["second"] - first * group["first"]).std(ddof=1)
    return second - first, float(spread) / math.sqrt(len(group))


def _by_text(windows: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Windows by task and by their text: one corpus may have been read in several window lengths."""
    groups = windows.groupby(["task", "text"], sort=True)
    return [((str(task), str(text)), group) for (task, text), group in groups]


def _texts(store: Store, run_id: str) -> dict[str, dict[str, Any]]:
    """Protocols of a run's perplexities by their text, as windows have it."""
    found = (json.loads(str(text)) for text in store.metrics([run_id])["protocol"])
    return {text_key(protocol): protocol for protocol in found}


def _perplexity(task: str, group: pd.DataFrame, protocol: Mapping[str, Any]) -> PerplexityPair:
    first, second = group["first"].tolist(), group["second"].tolist()
    low, high = compare_perplexity(first, second)
    means = [math.exp(math.fsum(values) / len(values)) for values in (first, second)]
    return PerplexityPair(task.partition("/")[2], len(group), means[0], means[1], low, high, protocol)


def _protocols(store: Store, first: str, second: str) -> dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]]:
    """Both runs' protocols of each task and metric that both have; of several stages the last."""
    found: dict[str, dict[tuple[str, str], dict[str, Any]]] = {first: {}, second: {}}
    for row in store.metrics([first, second]).itertuples():
        if row.stage != "dense":
            found[str(row.run_id)][str(row.task), str(row.metric)] = json.loads(str(row.protocol))
    return {key: (found[first][key], found[second][key]) for key in found[first].keys() & found[second].keys()}


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, ...]:
    names = sorted(first.keys() | second.keys())
    return tuple(name for name in names if name not in _COMPARABLE and first.get(name) != second.get(name))


def _harnesses(store: Store) -> list[str]:
    """Versions of the harness that runs were judged with, the newest run's first."""
    rows = store.rows("SELECT protocol, max(run_id) AS last FROM metrics GROUP BY protocol ORDER BY last DESC")
    found = (json.loads(str(protocol)).get("harness") for protocol, _ in rows)
    return list(dict.fromkeys(str(each) for each in found if each))


def _flip(row: Mapping[str, Any], text: Mapping[str, Any] | None) -> Flip:
    target = str(row["target"])
    logs = [tuple(float(each) for each in _list(row[name])) for name in ("first_logs", "second_logs")]
    known = text or {"prompt": "", "choices": [f"choice {place + 1}" for place in range(len(logs[0]))]}
    return Flip(
        doc=int(row["doc"]),
        prompt=str(known["prompt"]),
        choices=tuple(str(each) for each in known["choices"]),
        target=int(target) if target.isdecimal() else None,
        first_choice=_number(row["first_choice"]),
        second_choice=_number(row["second_choice"]),
        first_logs=logs[0],
        second_logs=logs[1],
        known=text is not None,
    )


def _list(value: Any) -> list[Any]:
    return [] if value is None else list(value)


def _number(value: Any) -> int | None:
    return None if value is None or pd.isna(value) else int(value)
