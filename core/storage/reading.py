"""A run directory as rows for the store. Tolerant: what cannot be read is left empty and said, never an exception.

Files may have been edited, cut short or made by another version, so every value is checked for its type on the way in.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.errors import EspalierError
from core.experiment import Experiment
from core.jobs.rundir import RunDirectory, RunStatus, read_json
from core.pruning.registry import get

RUN_COLUMNS = {
    "id": "VARCHAR", "name": "VARCHAR", "state": "VARCHAR",
    "created": "TIMESTAMP", "started": "TIMESTAMP", "finished": "TIMESTAMP", "seconds": "DOUBLE",
    "model": "VARCHAR", "method": "VARCHAR", "kind": "VARCHAR", "ratio": "DOUBLE",
    "layer_first": "INTEGER", "layer_last": "INTEGER", "model_layers": "INTEGER",
    "pattern": "VARCHAR", "target": "VARCHAR", "seed": "BIGINT",
    "hash": "VARCHAR", "device": "VARCHAR", "device_name": "VARCHAR", "dtype": "VARCHAR",
    "params_before": "BIGINT", "params_after": "BIGINT", "nonzero_after": "BIGINT",
    "achieved_ratio": "DOUBLE", "achieved_model_ratio": "DOUBLE", "bytes": "BIGINT", "layout": "VARCHAR",
    "reason": "VARCHAR", "advice": "VARCHAR", "experiment": "VARCHAR", "study": "VARCHAR", "fingerprint": "VARCHAR",
    "recovery": "VARCHAR",
}  # fmt: skip
METRIC_COLUMNS = {
    "run_id": "VARCHAR", "stage": "VARCHAR", "task": "VARCHAR", "metric": "VARCHAR",
    "value": "DOUBLE", "stderr": "DOUBLE", "n": "BIGINT", "protocol": "VARCHAR", "protocol_key": "VARCHAR",
    "details": "VARCHAR",
}  # fmt: skip
LAYER_COLUMNS = {
    "run_id": "VARCHAR", "layer": "INTEGER", "heads_before": "INTEGER", "heads_after": "INTEGER",
    "kv_before": "INTEGER", "kv_after": "INTEGER", "mlp_before": "INTEGER", "mlp_after": "INTEGER", "density": "DOUBLE",
    "hidden_before": "INTEGER", "hidden_after": "INTEGER",
}  # fmt: skip
SCAN_COLUMNS = {
    "run_id": "VARCHAR", "layer": "INTEGER", "part": "VARCHAR", "perplexity": "DOUBLE", "stderr": "DOUBLE",
    "cost": "DOUBLE", "cost_stderr": "DOUBLE", "removed": "BIGINT",
}  # fmt: skip
STAGE_COLUMNS = {"run_id": "VARCHAR", "position": "INTEGER", "stage": "VARCHAR", "seconds": "DOUBLE"}
_STREAM = ("hidden_before", "hidden_after")
_SIZES = [column for column in LAYER_COLUMNS if column.endswith(("_before", "_after")) and column not in _STREAM]
QUANTISED = "quantised"
"""`kind` of the dense model rounded to a GGUF format; `method` is the format, e.g. `q8_0`."""
SCAN = "scan"
"""`kind` of a run that tries each layer by itself; `method` and `ratio` say how."""
_LIMITS = {"INTEGER": 2**31, "BIGINT": 2**63}
_LONGEST = 200_000
"""Longest text that is stored, in characters; an experiment is at most 64 KiB."""


@dataclass(frozen=True)
class RunRows:
    """The rows of one run, column order as in the `*_COLUMNS`."""

    run: Mapping[str, Any]
    metrics: Sequence[tuple[Any, ...]]
    layers: Sequence[tuple[Any, ...]]
    stages: Sequence[tuple[Any, ...]]
    scans: Sequence[tuple[Any, ...]] = ()

    @property
    def run_id(self) -> str:
        return str(self.run["id"])


def read_run(directory: Path) -> RunRows | None:
    """The rows of one run directory; None if it is no run (it has no experiment.yaml)."""
    folder = RunDirectory(directory)
    try:
        text = folder.experiment_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    try:
        experiment: Experiment | None = Experiment.from_yaml(text)
        problem = ""
    except EspalierError as error:
        experiment, problem = None, f"experiment.yaml cannot be read: {error.message}"
    status = folder.status()
    results = _results(folder)
    row = _run_row(folder, status, experiment, results)
    row["experiment"] = text[:_LONGEST]
    if problem and not row["reason"]:
        row["reason"] = problem
    return RunRows(
        run={column: row[column] for column in RUN_COLUMNS},
        metrics=_metrics(directory.name, results.get("metrics")),
        layers=_layers(directory.name, _mapping(results.get("pruning"))),
        stages=_stages(directory.name, results.get("timings"), folder),
        scans=_scans(directory.name, _mapping(results.get("scan"))),
    )


def _results(folder: RunDirectory) -> Mapping[str, Any]:
    try:
        return folder.results() or {}
    except OSError:
        return {}


def title_of(experiment: Experiment) -> str:
    """What a run without a name is called: what it does."""
    model = experiment.model.name.rpartition("/")[2]
    pruning = experiment.pruning
    if pruning is None:
        return f"{model}, {quantised_title(experiment.model.quantised) or 'dense'}"
    layers = "" if pruning.layers is None else f", layers {pruning.layers[0]}–{pruning.layers[1]}"
    of = " of the model" if pruning.target == "model" else ""
    if experiment.scan is not None:
        return f"{model}, scan of layers, {pruning.method} {pruning.ratio * 100:g} %{layers}"
    return f"{model}, {pruning.method} {pruning.ratio * 100:g} %{of}{layers}"


def quantised_title(quantised: str | None) -> str:
    """`Q8_0` for `q8_0`; '' for a model that is not quantised."""
    return "" if quantised is None else quantised.upper()


def signature(directory: Path) -> str:
    """Sizes and times of the files that rows come from; equal signatures mean equal rows."""
    parts = []
    for name in ("experiment.yaml", "events.jsonl", "state.json", "results.json", "study.json", "stages"):
        try:
            info = os.stat(f"{directory}/{name}")  # noqa: PTH116 - three times as fast, and there are ten thousand
        except OSError:
            parts.append("-")
        else:
            parts.append(f"{info.st_mtime_ns}:{info.st_size}")
    return " ".join(parts)


def protocol_key(protocol: Mapping[str, Any]) -> str:
    """Short hash of how a number was measured: numbers with different keys do not belong in one comparison."""
    text = json.dumps(protocol, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _run_row(
    folder: RunDirectory, status: RunStatus, experiment: Experiment | None, results: Mapping[str, Any]
) -> dict[str, Any]:
    environment = _mapping(results.get("environment"))
    resolved = _mapping(_mapping(folder.read_state()).get("resolved"))
    pruned = _mapping(results.get("pruning"))
    study = _mapping(read_json(folder.study_file))
    started, finished = _time(status.started), _time(status.finished)
    row: dict[str, Any] = dict.fromkeys(RUN_COLUMNS)
    row |= _choices(experiment) if experiment is not None else {}
    row |= {
        "id": folder.path.name,
        "name": folder.path.name if experiment is None else experiment.name or title_of(experiment),
        "state": str(status.state),
        "created": _time(status.created),
        "started": started,
        "finished": finished,
        "seconds": (finished - started).total_seconds() if started and finished else None,
        "hash": _text(environment.get("hash")) or _text(status.hash),
        "device": _text(environment.get("device")) or _text(resolved.get("device")),
        "device_name": _text(environment.get("device_name")),
        "dtype": _text(environment.get("dtype")) or _text(resolved.get("dtype")),
        "fingerprint": _text(_mapping(environment.get("model")).get("fingerprint")) or _text(resolved.get("model")),
        "study": _text(study.get("study")),
        "reason": _text(status.reason),
        "advice": _text(status.advice),
    }
    for column in ("params_before", "params_after", "nonzero_after", "bytes"):
        row[column] = _count(pruned.get(column), "BIGINT")
    for column in ("achieved_ratio", "achieved_model_ratio"):
        row[column] = _number(pruned.get(column))
    row["layout"] = _text(pruned.get("layout"))
    row["model_layers"] = _count(pruned.get("model_layers"), "INTEGER")
    if row["layer_first"] is None and row["kind"] not in (None, "hidden") and row["model_layers"]:
        row["layer_first"], row["layer_last"] = 0, row["model_layers"] - 1
    return row


def _choices(experiment: Experiment) -> dict[str, Any]:
    """The columns that the experiment alone decides; those of pruning stay empty for the dense model."""
    row: dict[str, Any] = {"model": experiment.model.name, "seed": experiment.seed}
    pruning = experiment.pruning
    if pruning is None:
        quantised = experiment.model.quantised
        return row | ({} if quantised is None else {"method": quantised, "kind": QUANTISED})
    kind = SCAN if experiment.scan is not None else get(pruning.method).kind
    if experiment.recovery is not None:
        row["recovery"] = experiment.recovery.kind
    first, last = pruning.layers if pruning.layers is not None else (None, None)
    return row | {
        "method": pruning.method,
        "kind": kind,
        "ratio": pruning.ratio,
        "layer_first": first,
        "layer_last": last,
        "pattern": pruning.pattern if get(pruning.method).kind == "mask" else None,
        "target": pruning.target,
    }


def _metrics(run_id: str, entries: Any) -> list[tuple[Any, ...]]:
    rows = []
    for entry in _sequence(entries):
        entry = _mapping(entry)
        task, metric = _text(entry.get("task")), _text(entry.get("metric"))
        if not task or not metric:
            continue
        protocol = _mapping(entry.get("protocol"))
        text = json.dumps(protocol, sort_keys=True, ensure_ascii=False, default=str)
        value, stderr, n = _number(entry.get("value")), _number(entry.get("stderr")), _count(entry.get("n"), "BIGINT")
        stage = _text(entry.get("stage")) or "pruned"
        details = json.dumps(_mapping(entry.get("details")), sort_keys=True, ensure_ascii=False, default=str)
        key = protocol_key(protocol)
        rows.append((run_id, stage, task, metric, value, stderr, n, text[:_LONGEST], key, details[:_LONGEST]))
    return rows


def _layers(run_id: str, pruned: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """One row a decoder layer, with 0 after the cut where it is gone; the stream's width stands in every row."""
    rows = []
    stream = [_count(pruned.get(column), "INTEGER") for column in _STREAM]
    for entry in map(_mapping, _sequence(pruned.get("layers"))):
        layer = _count(entry.get("layer"), "INTEGER")
        if layer is None:
            continue
        sizes = [_count(entry.get(column), "INTEGER") for column in _SIZES]
        rows.append((run_id, layer, *sizes, _number(entry.get("density")), *stream))
    return sorted(rows, key=lambda row: int(row[1]))


def _scans(run_id: str, scan: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """One row a layer and part that was pruned by itself."""
    rows = []
    for entry in map(_mapping, _sequence(scan.get("layers"))):
        layer, part = _count(entry.get("layer"), "INTEGER"), _text(entry.get("part"))
        if layer is None or part is None:
            continue
        numbers = [_number(entry.get(name)) for name in ("perplexity", "stderr", "cost", "cost_stderr")]
        rows.append((run_id, layer, part[:40], *numbers, _count(entry.get("removed"), "BIGINT")))
    return rows


def _stages(run_id: str, timings: Any, folder: RunDirectory) -> list[tuple[Any, ...]]:
    """Seconds a stage, parts of the evaluation too, as the stages say; without them, results.json's timings."""
    seconds = {name: _number(content.get("seconds")) for name, content in folder.stages().items()}
    if not seconds:
        seconds = {str(name): _number(value) for name, value in _mapping(timings).items()}
    return [(run_id, position, name[:200], value) for position, (name, value) in enumerate(seconds.items())]


# --- values as the columns take them


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value[:_LONGEST] if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _count(value: Any, column_type: str) -> int | None:
    number = _number(value)
    if number is None or number != int(number) or abs(number) >= _LIMITS[column_type]:
        return None
    return int(value)


def _time(value: Any) -> datetime | None:
    """ISO-8601 text as a UTC time without zone, as the TIMESTAMP columns hold it."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
