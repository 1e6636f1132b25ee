"""The Experiment: one frozen object that is the whole configuration of a run.

The form, the YAML file, the command line and the database column are views of it. Its parts are in core/sections.py; the
form's help, the JSON schema and docs/experiment.md are made from the descriptions there and here.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from core import yaml_text
from core.errors import ExperimentError
from core.sections import (
    ALLOCATIONS,
    BUILTIN_MODEL,
    SEVEN_TASKS,
    Calibration,
    Evaluation,
    ModelChoice,
    PerplexityCorpus,
    Pruning,
    Recovery,
    RecoveryData,
    Scan,
    Section,
    inapplicable,
    without_defaults,
)
from core.validated import section_of, validated

__all__ = [
    "ALLOCATIONS",
    "BUILTIN_MODEL",
    "SEVEN_TASKS",
    "Calibration",
    "Evaluation",
    "Experiment",
    "ModelChoice",
    "PerplexityCorpus",
    "Pruning",
    "Recovery",
    "RecoveryData",
    "Resolved",
    "Scan",
    "canonical",
    "describe",
    "experiment_hash",
    "inapplicable",
    "schema",
]


class Experiment(Section):
    """The whole configuration of one run."""

    name: str = Field("", max_length=200, description="Free text, shown to people.")
    model: ModelChoice = Field(default_factory=ModelChoice, description="Which model, and how it is loaded.")
    pruning: Pruning | None = Field(None, description="What is removed; empty judges the dense model, as a baseline.")
    recovery: Recovery | None = Field(None, description="Training after the cut; empty is none.")
    scan: Scan | None = Field(
        None,
        description="Prune one layer at a time and measure what it costs, in place of a pruned model; empty is none.",
    )
    evaluation: Evaluation = Field(default_factory=Evaluation, description="What is measured, and how.")
    save_model: bool = Field(True, description="Keep the pruned weights. Off: they go once verified and judged.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of everything that is drawn at random.")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$", description="Where it runs: auto, cpu, cuda or cuda:1."
    )

    @model_validator(mode="after")
    def _recovery_needs_pruning(self) -> Self:
        if self.recovery is not None and self.pruning is None:
            raise ValueError("recovery is set, but pruning is empty: there is nothing to recover from")
        return self

    @model_validator(mode="after")
    def _scans_measure_perplexity(self) -> Self:
        if self.scan is None:
            return self
        found = without_scan(self)
        if found:
            raise ValueError(f"scan is set, and {found}")
        given = self.evaluation.model_fields_set
        quiet: dict[str, Any] = {"tasks": (), "limit": None, "shots": 0, "chat_template": False}
        quiet |= {"fidelity": False, "speed": False}
        for name, nothing in quiet.items():
            if name in given and getattr(self.evaluation, name) != nothing:
                raise ValueError(f"scan measures perplexity alone; leave evaluation.{name} out")
        object.__setattr__(self, "evaluation", self.evaluation.model_copy(update=quiet))
        return self

    @model_validator(mode="after")
    def _quantised_is_a_baseline(self) -> Self:
        if self.model.quantised is not None and self.pruning is not None:
            raise ValueError(
                f"model.quantised is {self.model.quantised}, and pruning is set: rounded weights are judged as a "
                "baseline and are not pruned; leave one out"
            )
        return self

    @property
    def dense(self) -> bool:
        """Whether the model is judged as it is: neither pruned nor quantised, so that others compare with it."""
        return self.pruning is None and self.model.quantised is None

    @property
    def calibration_seed(self) -> int:
        """The seed that the calibration windows are drawn with."""
        own = self.pruning.calibration.seed if self.pruning else None
        return self.seed if own is None else own

    # --- in and out
    @classmethod
    def parse(cls, data: Any) -> "Experiment":
        """Build from plain data. ExperimentError lists every problem, unknown keys with the nearest known one."""
        return validated(cls, data, "")

    @classmethod
    def from_yaml(cls, text: str) -> "Experiment":
        """Read YAML 1.2 (at most 64 KiB, no aliases). ExperimentError says what is wrong and where."""
        return _read(text)

    def to_dict(self) -> dict[str, Any]:
        """Plain data of every field that applies."""
        data = self.model_dump(mode="json")
        if self.pruning is not None:
            method = _method(self.pruning)
            for name in inapplicable(method.kind):
                del data["pruning"][name]
            if not self.pruning.reads_text:
                del data["pruning"]["calibration"]
        for entry in (data["evaluation"]["perplexity"], [(data["pruning"] or {}).get("calibration") or {}]):
            for text in entry:
                if text.get("path") is None:
                    text.pop("path", None)
                else:
                    text.pop("corpus", None)
        return data

    def to_yaml(self) -> str:
        """YAML that `from_yaml` reads back to an equal Experiment."""
        return yaml_text.dump(self.to_dict())

    def with_changes(self, changes: Mapping[str, Any]) -> "Experiment":
        """A copy with dotted fields replaced, e.g. {"pruning.ratio": 0.4}; checked anew."""
        data = self.to_dict()
        for path, value in changes.items():
            *parents, last = path.split(".")
            node = data
            for parent in parents:
                if parent not in node or node[parent] is None:
                    node[parent] = {}
                node = node[parent]
                if not isinstance(node, dict):
                    raise ExperimentError(
                        f"{path} cannot be set: {parent} has no fields.", "Check the spelling.", field=path
                    )
            node[last] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            if path == "pruning.pattern" and "pruning.ratio" not in changes:
                node.pop("ratio", None)
            if path.endswith(".path") and value is not None and f"{'.'.join(parents)}.corpus" not in changes:
                node.pop("corpus", None)
        return type(self).parse(data)


@lru_cache(maxsize=512)
def _read(text: str) -> Experiment:
    """Runs are opened far more often than written, and an Experiment never changes."""
    return Experiment.parse(yaml_text.load_mapping(text))


def without_scan(experiment: Experiment) -> str:
    """Why one layer at a time cannot be pruned as the experiment says, in a sentence; '' where it can."""
    pruning = experiment.pruning
    if pruning is None:
        return "pruning is empty: there is nothing to try on each layer"
    if experiment.recovery is not None:
        return "recovery is set: a scan trains nothing; leave recovery out"
    if _method(pruning).kind == "hidden":
        return f"{pruning.method} cuts channels of the whole model: it has no single layers to try"
    if pruning.target == "model":
        return "target is model: a layer alone loses `ratio` of itself; leave target out"
    if pruning.allocation != "uniform":
        return f"allocation {pruning.allocation} shares a ratio out over layers; leave allocation out"
    if pruning.same_sizes:
        return "same_sizes is set: a layer that is cut alone differs from the others; leave same_sizes out"
    if len(experiment.evaluation.perplexity) != 1:
        return "evaluation.perplexity must be one text: each layer is judged on it"
    return ""


def _method(pruning: Pruning) -> Any:
    from core.pruning.registry import get

    return get(pruning.method)


# --- descriptions


def describe(path: str) -> str:
    """The description of a field by its dotted path, e.g. `pruning.ratio`. KeyError if there is no such field."""
    section: type[BaseModel] | None = Experiment
    description = ""
    for name in path.split("."):
        if section is None or name not in section.model_fields:
            raise KeyError(path)
        info = section.model_fields[name]
        description, section = info.description or "", section_of(info.annotation)
    return description


def schema() -> dict[str, Any]:
    """The JSON schema of the YAML file."""
    return Experiment.model_json_schema()


# --- hash


@dataclass(frozen=True)
class Resolved:
    """What `auto` and a model's name turned out to be: part of what is computed, so part of the hash.

    `model` is a hub commit or the hash of a folder's files.
    """

    model: str
    dtype: str
    device_type: str
    n_layers: int


def experiment_hash(experiment: Experiment, resolved: Resolved) -> str:
    """SHA-256 (hex) of what is computed: equal for two Experiments exactly if they compute the same.

    Canonical JSON with defaults left out, settings that the method ignores left out, and what `resolved` says; without
    name, save_model and the device's index. Defaults are frozen: changing one would rename every stored run.
    """
    text = json.dumps(canonical(experiment, resolved), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(experiment: Experiment, resolved: Resolved) -> dict[str, Any]:
    """The mapping that is hashed."""
    data = experiment.to_dict()
    for name in ("name", "save_model", "device"):
        del data[name]
    data["model"] = {"fingerprint": resolved.model, "dtype": resolved.dtype, "device_type": resolved.device_type}
    if experiment.model.quantised is not None:
        data["model"]["quantised"] = experiment.model.quantised
    reference = Experiment().to_dict()
    pruning = experiment.pruning
    if pruning is not None:
        reference["pruning"] = Pruning.model_construct(method="").model_dump(mode="json") | {"method": None}
        if pruning.layers == (0, resolved.n_layers - 1):
            data["pruning"]["layers"] = None
        calibration = data["pruning"].get("calibration")
        if calibration and calibration["seed"] == experiment.seed:
            calibration["seed"] = None
    if experiment.recovery is not None:
        reference["recovery"] = Recovery.model_construct(kind="").model_dump(mode="json") | {"kind": None}  # type: ignore[arg-type]
        if experiment.recovery.prompt is not None:  # what an empty field means has changed once
            data["recovery"]["data"]["prompt_tokens"] = experiment.recovery.prompt
    data["evaluation"]["tasks"] = sorted(data["evaluation"]["tasks"])
    reference["evaluation"]["tasks"] = sorted(reference["evaluation"]["tasks"])
    entry = PerplexityCorpus().model_dump(mode="json")
    data["evaluation"]["perplexity"] = sorted(
        (without_defaults(text, entry) for text in data["evaluation"]["perplexity"]), key=json.dumps
    )
    reference["evaluation"]["perplexity"] = [{}]
    if not _seed_matters(experiment):
        data["seed"] = 0
    return without_defaults(data, reference)


def _seed_matters(experiment: Experiment) -> bool:
    pruning = experiment.pruning
    if experiment.recovery is not None or experiment.evaluation.shots:
        return True
    if pruning is None:
        return False
    method = _method(pruning)
    return method.seeded_for(pruning.options) or (pruning.reads_text and pruning.calibration.seed is None)
