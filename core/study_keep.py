"""Which runs of a study keep their weights: a mark, written as fields and values that tell them from the others.

    keep: [{pruning.method: taylor, pruning.ratio: 0.3}]

An entry marks every run that has all its values. The pages write the shortest entry that marks one run alone.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from core.errors import EspalierError
from core.experiment import Experiment

Entry = Mapping[str, Any]
_NONE = object()


def weighs(experiment: Experiment) -> bool:
    """Whether a run leaves weights that could be kept: a dense model has its own, a scan makes none."""
    return not experiment.dense and experiment.scan is None


def marks(entry: Entry, experiment: Experiment) -> bool:
    """Whether the run has all values of the entry, in whatever way they are written."""
    data = experiment.to_dict()
    return all(_at(data, path) == value or _says(experiment, path, value) for path, value in entry.items())


def entries_for(
    chosen: Collection[str], runs: Sequence[Experiment], paths: Sequence[str], keep: Sequence[Entry]
) -> list[dict[str, Any]]:
    """Entries that mark the runs called `chosen` and no others; of those in `keep` the ones that still hold stay.

    paths: the fields in which the runs differ.
    """
    found: list[dict[str, Any]] = []
    left = {run.name: run for run in runs if run.name in chosen}
    for entry in keep:
        names = {run.name for run in runs if marks(entry, run)}
        if names and names <= set(chosen):
            found.append(dict(entry))
            left = {name: run for name, run in left.items() if name not in names}
    table = {run.name: _values(run.to_dict(), paths) for run in runs}
    return found + [_shortest(name, table) for name in left]


def _shortest(name: str, table: Mapping[str, Entry]) -> dict[str, Any]:
    """Of the values of a run as few as tell it from all others; the first fields are kept rather than the last."""
    entry = dict(table[name])
    for path in reversed(list(entry)):
        fewer = {each: value for each, value in entry.items() if each != path}
        if fewer and sum(_has(row, fewer) for row in table.values()) == 1:
            entry = fewer
    return entry


def _has(row: Entry, entry: Entry) -> bool:
    return all(row.get(path, _NONE) == value for path, value in entry.items())


def _values(data: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """Path → value; where a section is empty its own path → None stands for all fields of it."""
    found: dict[str, Any] = {}
    for path in paths:
        parts = path.split(".")
        for depth in range(1, len(parts)):
            if _at(data, above := ".".join(parts[:depth])) is None:
                found[above] = None
                break
        else:
            value = _at(data, path)
            if value is not _NONE:
                found[path] = value
    return found


def _at(data: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(data, Mapping) or part not in data:
            return _NONE
        data = data[part]
    return data


def _says(experiment: Experiment, path: str, value: Any) -> bool:
    """Whether a list or a mapping means what the run has: `[passages]` stands for a whole entry."""
    if not isinstance(value, list | dict):
        return False
    try:
        return experiment.with_changes({path: value}) == experiment
    except EspalierError:
        return False
