"""A study: one base Experiment and what differs from it, as a YAML file that stands for many runs.

    name: Ratios of Taylor
    base: {pruning: {method: taylor, layers: [4, 25]}}
    grid: {pruning.ratio: [0.1, 0.2, 0.3]}          # every value with every other; several grids as a list
    runs: [{pruning.ratio: 0.3, recovery.kind: lora}]  # and single runs
    seeds: [0, 1, 2]                                # each of them once per seed, where a seed matters
    keep: [{pruning.ratio: 0.3}]                    # whose weights are kept

Opening a study asks for no model. What cannot work by itself is listed as left out, with the reason; what is misspelt
is an error with its place in the file.
"""

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, field_validator

from core import yaml_text
from core.errors import EspalierError, ExperimentError, Problem
from core.experiment import Experiment, Resolved, describe, experiment_hash
from core.presets import dense_like
from core.preview import file_name
from core.sections import Section
from core.study_keep import entries_for, marks, weighs
from core.study_names import names_of
from core.validated import section_of, validated

SHIPPED = Path(__file__).resolve().parent / "study_files"
MAX_RUNS = 2000
Changes = Mapping[str, Any]


class Study(Section):
    """What the YAML file of a study holds."""

    name: str = Field(min_length=1, max_length=120, description="What it is called, and its runs by it.")
    note: str = Field("", description="What it is for.")
    base: dict[str, Any] = Field(default_factory=dict, description="An Experiment: what all runs share.")
    grid: list[dict[str, list[Any]]] = Field(
        default_factory=list,
        description="Dotted field → values, all with all. One mapping, or several as a list.",
    )
    runs: list[dict[str, Any]] = Field(default_factory=list, description="Single runs: dotted field → value.")
    seeds: list[int] = Field(default_factory=list, description="Every run once per seed, where its seed matters.")
    keep: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Runs that keep their weights: dotted field → value, and every run that has all of them is meant.",
    )
    baseline: bool = Field(True, description="Put the dense model, judged in the same way, before the others.")

    @field_validator("grid", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @property
    def id(self) -> str:
        """Its name as the name of a file: [a-z0-9-] only."""
        return file_name(self.name)

    @classmethod
    def parse(cls, data: Any) -> "Study":
        """Build from plain data. ExperimentError lists every problem by its place, such as `grid.0.pruning.ratio`."""
        study = validated(cls, data, "")
        problems = [*_base_problems(study.base), *_change_problems(study)]
        if problems:
            raise ExperimentError.of(problems)
        return study

    @classmethod
    def from_yaml(cls, text: str) -> "Study":
        """Read YAML 1.2 (at most 64 KiB, no aliases). ExperimentError says what is wrong and where."""
        return cls.parse(yaml_text.load_mapping(text))

    def to_yaml(self) -> str:
        """YAML that `from_yaml` reads back to an equal Study."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        if len(self.grid) == 1:
            data["grid"] = data["grid"][0]
        return yaml_text.dump({"name": data.pop("name"), **data})


@dataclass(frozen=True)
class Planned:
    """One run of a study. `key` names what it computes, whatever machine it runs on."""

    experiment: Experiment
    key: str

    @property
    def name(self) -> str:
        return self.experiment.name


@dataclass(frozen=True)
class LeftOut:
    """A combination that cannot work. `place` is where it stands in the file."""

    place: str
    changes: Changes
    reason: str

    @property
    def name(self) -> str:
        """What was asked for, in a line."""
        return ", ".join(f"{field}={_short(value)}" for field, value in self.changes.items()) or "the base"


@dataclass(frozen=True)
class Expansion:
    """All runs of a study, dense models first, each computation once; and what was left out."""

    runs: tuple[Planned, ...]
    left_out: tuple[LeftOut, ...]


def key_of(experiment: Experiment) -> str:
    """Equal for two Experiments that compute the same on any one machine; needs no model and no device."""
    model = json.dumps([experiment.model.name, experiment.model.revision])
    device = experiment.device.partition(":")[0]
    return experiment_hash(experiment, Resolved(model, experiment.model.dtype, device, 0))


def expand(study: Study) -> Expansion:
    """The runs of a study, named by what differs. ExperimentError if nothing of it can work."""
    wanted: list[tuple[Changes, Experiment]] = []
    left_out: list[LeftOut] = []
    seen: set[str] = set()
    for place, changes in combinations(study):
        try:
            experiment = Experiment.parse(_changed(study.base, changes))
        except EspalierError as error:
            left_out.append(LeftOut(place, changes, str(error)))
            continue
        if weighs(experiment) and any(marks(entry, experiment) for entry in study.keep):
            experiment = experiment.model_copy(update={"save_model": True})
        if experiment.dense and study.baseline:  # judged as a baseline is, so that one serves as both
            experiment = experiment.with_changes({"evaluation.fidelity": False})
        key = key_of(experiment)
        if key not in seen:
            seen.add(key)
            wanted.append((changes, experiment))
    if not wanted:
        raise ExperimentError.of([Problem(each.place, each.reason) for each in left_out[:5]])
    kept = [experiment for _, experiment in wanted if weighs(experiment)]
    for i, entry in enumerate(study.keep):
        if not any(marks(entry, experiment) for experiment in kept):
            left_out.append(LeftOut(f"keep.{i}", entry, "no run of this study has these values: nothing is kept"))
    titles = names_of(study.name, [(set(changes), experiment) for changes, experiment in wanted])
    runs = [
        Planned(experiment.model_copy(update={"name": title}), key_of(experiment))
        for title, (_, experiment) in zip(titles, wanted, strict=True)
    ]
    baselines = _baselines(runs, seen) if study.baseline else []
    ordered = sorted(runs, key=lambda run: not run.experiment.dense)
    return Expansion((*baselines, *ordered), tuple(left_out))


def keeping(study: Study, names: Collection[str]) -> Study:
    """The study with a mark on the runs called so, and no other; those that say `save_model` themselves keep theirs."""
    plain = study.model_copy(update={"keep": []})
    runs = [run.experiment for run in expand(plain).runs if weighs(run.experiment) and not run.experiment.save_model]
    paths = list(dict.fromkeys(path for _, changes in combinations(study) for path in changes))
    return study.model_copy(update={"keep": entries_for(names, runs, paths, study.keep)})


def combinations(study: Study) -> Iterator[tuple[str, Changes]]:
    """Every combination with its place in the file; the base alone where nothing differs."""
    seeds: list[Changes] = [{"seed": seed} for seed in study.seeds] or [{}]
    found: list[tuple[str, Changes]] = []
    for i, grid in enumerate(study.grid):
        place = "grid" if len(study.grid) == 1 else f"grid.{i}"
        found += [(place, dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]
    found += [(f"runs.{i}", changes) for i, changes in enumerate(study.runs)]
    for place, changes in found or [("base", {})]:
        for seed in seeds:
            yield place, {**changes, **seed}


def _baselines(runs: Sequence[Planned], seen: set[str]) -> list[Planned]:
    """The dense models that differences are taken to, where the study does not have them already."""
    found: list[Planned] = []
    for run in runs:
        if run.experiment.dense:
            continue
        dense = dense_like(run.experiment)
        key = key_of(dense)
        if key not in seen:
            seen.add(key)
            found.append(Planned(dense, key))
    return found


# --- changes


def _changed(base: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The base with dotted fields replaced, as plain data. Weights are kept only where the study says so."""
    data: dict[str, Any] = {"save_model": False, **deepcopy(dict(base))}
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = data
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = deepcopy(value)
        if path == "pruning.pattern" and value != "unstructured" and "pruning.ratio" not in changes:
            node.pop("ratio", None)
        if last == "path" and value is not None and f"{'.'.join(parents)}.corpus" not in changes:
            node.pop("corpus", None)
    return data


def _base_problems(base: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the base by itself; a method that only the grid names is not missing."""
    pruning = base.get("pruning")
    partial = isinstance(pruning, Mapping) and "method" not in pruning
    recovery = base.get("recovery")
    waits = partial or (isinstance(recovery, Mapping) and ("kind" not in recovery or pruning is None))
    try:
        if waits:
            Experiment.parse({key: value for key, value in base.items() if key not in ("pruning", "recovery")})
        else:
            Experiment.parse(base)
    except ExperimentError as error:
        return [Problem(f"base.{p.field}".rstrip("."), p.message, p.advice) for p in error.problems]
    if not waits:
        return []
    inside = [(name, key) for name in ("pruning", "recovery") for key in base.get(name) or ()]
    return list(filter(None, (_unknown(f"{name}.{key}", f"base.{name}.{key}") for name, key in inside)))


def _change_problems(study: Study) -> list[Problem]:
    problems: list[Problem] = []
    several = len(study.grid) > 1
    for i, grid in enumerate(study.grid):
        for path, values in grid.items():
            place = f"grid.{i}.{path}" if several else f"grid.{path}"
            problems += filter(None, [_unknown(path, place)])
            if not values:
                problems.append(Problem(place, f"{place} has no values.", "List at least one."))
    for i, changes in enumerate(study.runs):
        problems += filter(None, [_unknown(path, f"runs.{i}.{path}") for path in changes])
    for i, entry in enumerate(study.keep):
        problems += filter(None, [_unknown(path, f"keep.{i}.{path}") for path in entry])
    places = [("grid", path) for grid in study.grid for path in grid] + [
        (f"runs.{i}", path) for i, changes in enumerate(study.runs) for path in changes
    ]
    for place, path in places:
        if path in ("name", "seed" if study.seeds else "name"):
            why = "runs are named by what differs" if path == "name" else "seeds are given for all runs"
            problems.append(Problem(f"{place}.{path}", f"{place}.{path} cannot be set: {why}.", "Leave it out."))
    count = sum(_product(grid) for grid in study.grid) + len(study.runs)
    if count * max(len(study.seeds), 1) > MAX_RUNS:
        problems.append(Problem("grid", f"The study has {count * max(len(study.seeds), 1):,} combinations.",
                                f"At most {MAX_RUNS:,} are made."))  # fmt: skip
    return problems


def _product(grid: Mapping[str, Sequence[Any]]) -> int:
    count = 1
    for values in grid.values():
        count *= len(values)
    return count


def _unknown(path: str, place: str) -> Problem | None:
    """The problem of a dotted field that no Experiment has, or None."""
    if path.startswith("pruning.options."):
        return None  # the method's own: checked with the method
    try:
        describe(path)
    except KeyError:
        near = get_close_matches(path, sorted(_fields(Experiment)), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Write it as `pruning.ratio`: docs/experiment.md lists all."
        return Problem(place, f"There is no setting {path!r} (at {place}).", hint)
    return None


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        yield prefix + name
        inner = section_of(info.annotation)
        if inner is not None:
            yield from _fields(inner, f"{prefix}{name}.")


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- files


@cache
def shipped() -> tuple[Study, ...]:
    """The studies that come with Espalier, the quickest first."""
    found = [Study.from_yaml(path.read_text(encoding="utf-8")) for path in sorted(SHIPPED.glob("*.yaml"))]
    return tuple(sorted(found, key=lambda study: (len(expand(study).runs), study.name)))
