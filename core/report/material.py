"""What a report is made from, and its runs as groups: runs that differ in nothing but seeds are one row of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from core.charts_frames import Quality, qualities
from core.charts_recovery import gains
from core.charts_tables import leak, marks
from core.charts_words import canonical
from core.experiment import Experiment
from core.pairs import RunPair
from core.pruning.registry import Method

Family = Literal["dense", "quantised", "cut", "depth", "mask", "recovered"]
UNPRUNED: tuple[Family, ...] = ("dense", "quantised")
FAMILIES: tuple[Family, ...] = (*UNPRUNED, "cut", "depth", "mask", "recovered")
PairOf = Callable[[str, str], RunPair]
_SIZE = ("pruning.ratio", "pruning.target", "pruning.layers")


@dataclass(frozen=True)
class NotMade:
    """A run of the selection that has no numbers, and why."""

    name: str
    state: str
    reason: str = ""
    run_id: str = ""


@dataclass(frozen=True)
class Material:
    """Everything a report is made from. `points` and `gained`: core/charts_frames.py, core/pairs.py."""

    title: str
    runs: pd.DataFrame
    """Complete runs, as the store has them: those chosen, and the dense ones that they are held against."""
    points: pd.DataFrame
    gained: pd.DataFrame
    experiments: Mapping[str, Experiment]
    results: Mapping[str, Mapping[str, Any]]
    """results.json of each run: environment, training, sizes."""
    methods: Mapping[str, Method]
    baselines: Mapping[str, str | None]
    pair: PairOf
    note: str = ""
    not_made: Sequence[NotMade] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    """Of runs that were measured elsewhere, where."""
    trainings: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Group:
    """Runs that differ in seeds only. `settings`: dotted field → value, without seeds."""

    key: str
    family: Family
    kind: str
    method: str
    """Name in the registry; `dense`, or the format of a quantised model."""
    settings: Mapping[str, Any]
    runs: tuple[str, ...]
    removed: float
    """Share of the whole model that is gone, or zero; mean over the runs."""
    parameters: float
    bytes: float

    @property
    def size(self) -> tuple[Any, ...]:
        """What a block of a table has in common: rows of one block may be held against each other."""
        return (*self.model, *(canonical(self.settings.get(name)) for name in _SIZE))

    @property
    def model(self) -> tuple[Any, ...]:
        """Model and number format: rows of different ones are never held against each other."""
        return tuple(canonical(self.settings.get(name)) for name in ("model.name", "model.dtype"))

    @property
    def ratio(self) -> float:
        return float(self.settings.get("pruning.ratio") or 0.0)

    @property
    def masked(self) -> bool:
        """Whether what is gone is zeros, not smaller."""
        return self.kind == "mask"


@dataclass(frozen=True)
class Value:
    """A quality of a group: the mean over its runs. `stderr`: over seeds where there are several, else the value's own.

    `mark`: ▲ or ▼ where every run of the group differs significantly from dense in that direction. `signs`: † and ‡.
    """

    mean: float
    stderr: float
    runs: tuple[str, ...]
    delta: float
    delta_stderr: float
    paired: bool
    dense: float
    before: float = math.nan
    before_stderr: float = math.nan
    gain: float = math.nan
    gain_stderr: float = math.nan
    gain_paired: bool = False
    gain_mark: str = ""
    regained: float = math.nan
    mark: str = ""
    signs: str = ""

    @property
    def freedom(self) -> float:
        """Degrees of freedom of `stderr`: seeds less one; without end where it is the value's own."""
        return len(self.runs) - 1 if len(self.runs) > 1 else math.inf


class Numbers:
    """A Material's groups and their values."""

    def __init__(self, material: Material, *, mark_tasks: bool = False) -> None:
        self.material = material
        self.qualities = qualities(material.points)
        self.groups = groups_of(material)
        self._marks = marks(material.points, self.qualities, tasks=mark_tasks)
        gained = gains(material.points, material.gained)
        self._gain_marks = _gain_marks(gained, self.qualities, tasks=mark_tasks)
        self._rows = {(str(row["run_id"]), str(row["quality"])): row for _, row in material.points.iterrows()}
        self._gains = {(str(row["run_id"]), str(row["quality"])): row for _, row in gained.iterrows()}
        self._seeds = {run: seeds_of(experiment) for run, experiment in material.experiments.items()}
        self._known: dict[tuple[str, str], Value | None] = {}

    def of(self, *families: Family) -> list[Group]:
        """Groups of these families, in order."""
        return [group for group in self.groups if group.family in families]

    def value(self, group: Group, quality: Quality) -> Value | None:
        """What the group came to; None if none of its runs was measured so. Of runs with equal seeds the newest."""
        key = (group.key, quality.key)
        if key not in self._known:
            self._known[key] = self._value(group, quality)
        return self._known[key]

    def have(self, groups: Sequence[Group], quality: Quality) -> bool:
        """Whether any of the groups was measured so."""
        return any(self.value(group, quality) is not None for group in groups)

    def _value(self, group: Group, quality: Quality) -> Value | None:
        by_seed = {
            self._seeds.get(run): run for run in sorted(group.runs) if (run, quality.key) in self._rows
        }  # ids sort by time
        runs = tuple(sorted(by_seed.values()))
        if not runs:
            return None
        rows = [self._rows[run, quality.key] for run in runs]
        mean, stderr = _mean(rows, "value", "stderr")
        delta, delta_stderr = _mean(rows, "delta", "delta_stderr")
        marked = {self._marks.get((run, quality.key), "") for run in runs}
        known = Value(
            mean=mean, stderr=stderr, runs=runs, delta=delta, delta_stderr=delta_stderr,
            paired=all(bool(row["paired"]) for row in rows), dense=_mean(rows, "dense", "dense_stderr")[0],
            mark=marked.pop() if len(marked) == 1 else "", signs=_signs(rows),
        )  # fmt: skip
        gained = [self._gains[run, quality.key] for run in runs if (run, quality.key) in self._gains]
        return known if len(gained) != len(runs) else self._with_gain(known, quality, gained)

    def _with_gain(self, known: Value, quality: Quality, rows: list[pd.Series]) -> Value:
        before, before_stderr = _mean(rows, "before", "before_stderr")
        gain, gain_stderr = _mean(rows, "gain", "gain_stderr")
        marked = {self._gain_marks.get((run, quality.key), "") for run in known.runs}
        lost = before - known.dense
        worse = (lost > 0) == quality.lower_is_better and lost != 0
        return Value(
            **{**known.__dict__, "before": before, "before_stderr": before_stderr, "gain": gain,
               "gain_stderr": gain_stderr, "gain_paired": all(bool(row["gain_paired"]) for row in rows),
               "gain_mark": marked.pop() if len(marked) == 1 else "",
               "regained": -gain / lost if worse and math.isfinite(lost) else math.nan}
        )  # fmt: skip


def _gain_marks(gained: pd.DataFrame, chosen: Sequence[Quality], *, tasks: bool) -> dict[tuple[str, str], str]:
    from core.charts_recovery import gain_marks

    return gain_marks(gained, chosen, tasks=tasks)


def _mean(rows: Sequence[pd.Series], value: str, stderr: str) -> tuple[float, float]:
    """Mean and standard error: of one row its own, of several sd / √n over the rows."""
    values = [float(row[value]) for row in rows]
    if len(values) == 1:
        return values[0], float(rows[0][stderr])
    mean = math.fsum(values) / len(values)
    spread = math.fsum((each - mean) ** 2 for each in values) / (len(values) - 1)
    return mean, math.sqrt(spread / len(values))


def _signs(rows: Sequence[pd.Series]) -> str:
    found = [leak(row["details"]) for row in rows]
    return "".join(sign for sign in ("†", "‡") if any(sign in each for each in found))


# -------------------------------------------------------------------------------------------------------------- groups


def seeds_of(experiment: Experiment) -> tuple[int, int]:
    """The seed, and that of calibration."""
    return experiment.seed, experiment.calibration_seed


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """Dotted field → value of all that decides the model that is judged, without seeds."""
    data = experiment.to_dict()
    found: dict[str, Any] = {}
    for section in ("model", "pruning"):
        for name, value in (data[section] or {}).items():
            found[f"{section}.{name}"] = value
    calibration = found.get("pruning.calibration")
    if isinstance(calibration, dict):
        found["pruning.calibration"] = {name: value for name, value in calibration.items() if name != "seed"}
    found["recovery"] = data["recovery"]
    return found


def groups_of(material: Material) -> list[Group]:
    """The runs, gathered into groups: dense first, then family by family, by size and method."""
    members: dict[str, list[pd.Series]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for _, row in material.runs.iterrows():
        own = settings_of(material.experiments[str(row["id"])])
        device = str(row["device"]).partition(":")[0]
        key = canonical([own, str(row["dtype"]), device, str(row["fingerprint"])])
        members.setdefault(key, []).append(row)
        settings[key] = {**own, "model.dtype": str(row["dtype"]), "device": device}
    found = [_group(key, settings[key], rows) for key, rows in members.items()]
    return sorted(found, key=lambda group: _place(group, material.methods))


def _group(key: str, settings: Mapping[str, Any], rows: Sequence[pd.Series]) -> Group:
    first = rows[0]
    kind = "dense" if pd.isna(first["kind"]) else str(first["kind"])
    return Group(
        key=key,
        family=_family(kind, settings.get("recovery") is not None),
        kind=kind,
        method="dense" if pd.isna(first["method"]) else str(first["method"]),
        settings=settings,
        runs=tuple(sorted(str(row["id"]) for row in rows)),
        removed=0.0 if kind == "dense" else _average(rows, "achieved_model_ratio"),
        parameters=_average(rows, "params_after"),
        bytes=_average(rows, "bytes"),
    )


def _average(rows: Sequence[pd.Series], column: str) -> float:
    known = [float(row[column]) for row in rows if pd.notna(row[column])]
    return math.fsum(known) / len(known) if known else math.nan


def _family(kind: str, recovered: bool) -> Family:
    if recovered:
        return "recovered"
    match kind:
        case "dense" | "quantised" | "mask" | "depth":
            return kind
        case _:
            return "cut"


def _place(group: Group, methods: Mapping[str, Method]) -> tuple[Any, ...]:
    order = list(methods)
    layers = group.settings.get("pruning.layers") or [-1, -1]
    return (
        FAMILIES.index(group.family),
        str(group.settings.get("model.name")),
        str(group.settings.get("pruning.target")),
        group.ratio,
        layers,
        str(group.settings.get("model.dtype")),
        order.index(group.method) if group.method in order else -1,
        group.settings.get("pruning.pattern") not in (None, "unstructured"),
        group.key,
    )
