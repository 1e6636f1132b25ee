"""The Experiment: one frozen object that is the whole configuration of a run.

The form, the YAML file, the command line and the database column are views of it. Every field is described once, here;
the form's help, the JSON schema and docs/experiment.md are made from that description.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from core import yaml_text
from core.errors import ExperimentError, InputError, Problem
from core.models.sizes import parse_pattern

Auto = Literal["auto"]
Part = Literal["attention", "mlp"]
BatchSize = Auto | Annotated[int, Field(ge=1, le=65536)]
S = TypeVar("S", bound=BaseModel)
BUILTIN_MODEL = "builtin:smollm2-135m-instruct"
SEVEN_TASKS = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=4096)


class ModelChoice(_Section):
    """Which model, and how it is loaded."""

    name: str = Field(
        BUILTIN_MODEL,
        min_length=1,
        description="A built-in model, a hub id (organisation/name), or the path of a local folder in Hugging Face form.",
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of a hub model; empty takes the default branch and stores the commit it stood at.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of the weights in the run. auto: float32 on a CPU, bfloat16 on GPUs that have it, else float16.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Allow this model's folder to bring Python code that is executed when it is loaded. Off unless you have read that code.",
    )


class _Text(_Section):
    corpus: str | None = Field("passages", description="Name of a text corpus.")
    path: str | None = Field(
        None, description="A text file, or a JSONL file with a field `text`, in place of a corpus."
    )

    @model_validator(mode="before")
    @classmethod
    def _path_replaces_corpus(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("path") is None:
            return data
        if data.get("corpus") not in (None, "passages"):
            raise ValueError("give either corpus or path, not both")
        return {**data, "corpus": None}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.corpus is None and self.path is None:
            raise ValueError("give a corpus or a path")
        return self


class Calibration(_Text):
    """The text that calibrated methods look at."""

    split: str = Field(
        "train",
        description="Part of the corpus: train, heldout (the part kept for judging), or a split that the corpus names. A path is read whole.",
    )
    samples: int = Field(
        32, ge=1, le=100_000, description="Number of calibration windows, drawn at random places with the seed."
    )
    length: int = Field(512, ge=8, le=131_072, description="Tokens in each calibration window.")
    batch_size: BatchSize = Field("auto", description="Windows in one forward pass; auto fits it to the device.")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="Seed of the windows' places; empty takes the experiment's seed."
    )


class Pruning(_Section):
    """What is removed, where, and by which criterion."""

    method: str = Field(description="Name of a pruning method: it decides what is least important.")
    ratio: float = Field(
        0.3, gt=0, lt=1, description="Fraction removed of what the method cuts in the selected layers."
    )
    target: Literal["selected", "model"] = Field(
        "selected",
        description="What the ratio is a fraction of: the selected layers' prunable parameters, or the parameters of the whole model.",
    )
    layers: tuple[int, int] | None = Field(
        None, description="First and last decoder layer to prune, 0-based, both included; empty is all layers."
    )
    parts: tuple[Part, ...] = Field(
        ("attention", "mlp"), min_length=1, description="Which parts of a layer are pruned."
    )
    heads: Literal["kv_groups", "query_heads"] = Field(
        "kv_groups",
        description="Unit of attention pruning: a KV head with all its query heads, or the same number of query heads inside every KV group.",
    )
    round_to: int = Field(
        32,
        ge=1,
        le=4096,
        description="Kept MLP widths are rounded up to a multiple of this; 32 suits fast kernels and Q8_0 files, 1 is exactly LLM-Pruner's.",
    )
    pattern: Literal["unstructured", "2:4", "4:8"] = Field(
        "unstructured",
        description="Where zeros may stand: anywhere, or a fixed number in every group of consecutive inputs.",
    )
    allocation: Literal["uniform", "global", "owl"] = Field(
        "uniform",
        description="How the ratio is shared over the layers: the same in each, one ranking over all, or by outlier share.",
    )
    same_sizes: bool = Field(
        False,
        description="Every layer of the model ends with the same sizes, so that engines that only know stock classes can load it.",
    )
    reconstruct: bool = Field(
        False,
        description="Refit the layers that read the removed units (o_proj, down_proj) by least squares on the calibration text.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="The method's own options.")
    calibration: Calibration = Field(
        default_factory=Calibration, description="The text that calibrated methods look at."
    )

    @field_validator("layers")
    @classmethod
    def _ordered(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 0 <= value[0] <= value[1]:
            raise ValueError(
                f"layers {value[0]}–{value[1]} is no range: the first must not be negative or above the last"
            )
        return value

    @field_validator("parts")
    @classmethod
    def _parts_once(cls, value: tuple[Part, ...]) -> tuple[Part, ...]:
        return tuple(part for part in get_args(Part) if part in value)

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        from core.pruning.registry import get

        method = get(self.method)
        options = _validated(method.options, self.options, f"options of {self.method}")
        object.__setattr__(
            self,
            "options",
            _without_defaults(options.model_dump(mode="json"), method.options().model_dump(mode="json")),
        )
        self._ratio_of_the_pattern()
        for name in inapplicable(method.kind):
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not apply to {self.method}, a {method.kind} method; leave it out"
                )
        return self

    def _ratio_of_the_pattern(self) -> None:
        n_of_m = parse_pattern(self.pattern)
        if n_of_m is None:
            return
        n, m = n_of_m
        fixed = (m - n) / m
        if "ratio" in self.model_fields_set and self.ratio != fixed:
            raise ValueError(
                f"pattern {self.pattern} always removes {fixed:g}, but ratio is {self.ratio:g}; leave ratio out"
            )
        object.__setattr__(self, "ratio", fixed)


_APPLIES: dict[str, frozenset[str]] = {
    "heads": frozenset({"width"}),
    "round_to": frozenset({"width"}),
    "same_sizes": frozenset({"width"}),
    "reconstruct": frozenset({"width"}),
    "pattern": frozenset({"mask"}),
    "parts": frozenset({"width", "mask"}),
    "allocation": frozenset({"width", "mask"}),
}


def inapplicable(kind: str) -> list[str]:
    """Fields of `pruning` that a method of this kind ignores, and refuses when set."""
    return [name for name, kinds in _APPLIES.items() if kind not in kinds]


class RecoveryData(_Section):
    """What the pruned model learns from."""

    corpus: str | None = Field(None, description="Name of a text corpus or an instruction set.")
    path: str | None = Field(None, description="A local text or JSONL file in place of a corpus.")
    format: Literal["instructions", "chat", "text"] = Field(
        "text", description="Rows of instruction/input/output, chat messages, or plain text."
    )
    max_samples: int | None = Field(None, ge=1, description="Use at most this many rows; empty is all.")


class Recovery(_Section):
    """Training after the cut."""

    kind: Literal["lora", "distillation"] = Field(
        description="LoRA on the pruned model, or distillation from the dense one."
    )
    data: RecoveryData = Field(default_factory=RecoveryData, description="What the pruned model learns from.")
    rank: int = Field(8, ge=1, le=1024, description="Rank of the LoRA matrices.")
    alpha: float = Field(16, gt=0, description="LoRA scale: updates are multiplied by alpha / rank.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the LoRA inputs.")
    target_modules: Literal["all-linear", "attention", "mlp"] = Field(
        "all-linear", description="Which linear layers get LoRA matrices."
    )
    learning_rate: float = Field(1e-4, gt=0, le=1, description="Peak learning rate.")
    batch_size: int = Field(64, ge=1, description="Samples an optimiser step.")
    micro_batch: BatchSize = Field("auto", description="Samples in one forward pass; auto fits it to the device.")
    epochs: float = Field(2, gt=0, description="Passes over the data.")
    max_minutes: float | None = Field(
        None, gt=0, description="Stop training after this many minutes; empty is no limit."
    )
    cutoff: int = Field(256, ge=8, description="Longest sample, in tokens.")
    warmup_steps: int = Field(100, ge=0, description="Optimiser steps of linear warm-up.")
    temperature: float = Field(2.0, gt=0, description="Softmax temperature of distillation.")
    loss_mix: float = Field(
        0.5, ge=0, le=1, description="Share of the distillation loss in the whole; the rest is the language-model loss."
    )
    full_weights: bool = Field(False, description="Distil into the weights of the cut layers themselves, without LoRA.")
    validation: float = Field(0.02, ge=0, lt=1, description="Share of the data kept for validation.")


class PerplexityCorpus(_Text):
    """One perplexity measurement."""

    split: str = Field(
        "heldout",
        description="Part of the corpus: heldout (what calibration never sees; the test split where the corpus has one) or a split that the corpus names. A path is read whole.",
    )
    window: int = Field(512, ge=8, le=131_072, description="Tokens in each window; the value depends strongly on it.")
    max_tokens: int | None = Field(
        None, ge=8, description="Read only the first windows, up to this many tokens; empty is all."
    )
    bos: bool = Field(False, description="Put the beginning-of-sequence token before each window.")

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, data: Any) -> Any:
        return {"corpus": data} if isinstance(data, str) else data


class Evaluation(_Section):
    """What is measured, and how."""

    perplexity: tuple[PerplexityCorpus, ...] = Field(
        (PerplexityCorpus(),),
        description="Corpora to measure perplexity on; a bare corpus name stands for its entry with defaults.",
    )
    tasks: tuple[str, ...] = Field(SEVEN_TASKS, description="lm-eval tasks.")
    limit: int | None = Field(
        None,
        ge=1,
        description="Only the first N documents of each task; empty is all. 100 documents mean about ±10 points.",
    )
    shots: int = Field(0, ge=0, le=64, description="Solved examples put before each question.")
    chat_template: bool = Field(False, description="Wrap each question in the model's chat template.")
    fidelity: bool = Field(
        True,
        description="Measure how far the pruned model's next-token distribution is from the dense model's: KL divergence and top-1 agreement.",
    )
    speed: bool = Field(
        True, description="Measure prefill and decode tokens/s and peak memory, dense and pruned in turn."
    )
    batch_size: BatchSize = Field("auto", description="Sequences in one forward pass; auto fits it to the device.")

    @field_validator("tasks")
    @classmethod
    def _tasks_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))


class Experiment(_Section):
    """The whole configuration of one run."""

    name: str = Field("", max_length=200, description="Free text, shown to people.")
    model: ModelChoice = Field(default_factory=ModelChoice, description="Which model, and how it is loaded.")
    pruning: Pruning | None = Field(None, description="What is removed; empty judges the dense model, as a baseline.")
    recovery: Recovery | None = Field(None, description="Training after the cut; empty is none.")
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

    @property
    def calibration_seed(self) -> int:
        """The seed that the calibration windows are drawn with."""
        own = self.pruning.calibration.seed if self.pruning else None
        return self.seed if own is None else own

    # --- in and out
    @classmethod
    def parse(cls, data: Any) -> "Experiment":
        """Build from plain data. ExperimentError lists every problem, unknown keys with the nearest known one."""
        return _validated(cls, data, "")

    @classmethod
    def from_yaml(cls, text: str) -> "Experiment":
        """Read YAML 1.2 (at most 64 KiB, no aliases). ExperimentError says what is wrong and where."""
        return cls.parse(yaml_text.load_mapping(text))

    def to_dict(self) -> dict[str, Any]:
        """Plain data of every field that applies."""
        data = self.model_dump(mode="json")
        if self.pruning is not None:
            method = _method(self.pruning)
            for name in inapplicable(method.kind):
                del data["pruning"][name]
            if not method.calibrated(self.pruning.options):
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


def _method(pruning: Pruning) -> Any:
    from core.pruning.registry import get

    return get(pruning.method)


# --- descriptions


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as `Pruning | None` or `tuple[PerplexityCorpus, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := section_of(inner)) is not None), None)


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


# --- problems


def _validated(section: type[S], data: Any, where: str) -> S:
    """Validate, turning pydantic's report into one ExperimentError that lists every problem by field."""
    try:
        return section.model_validate(data)
    except ValidationError as error:
        problems = [problem for item in error.errors() for problem in _problems(section, item, where)]
        raise ExperimentError.of(problems) from None


def _problems(section: type[BaseModel], item: Any, where: str) -> list[Problem]:
    path = ".".join(str(part) for part in item["loc"] if not _is_union_tag(part))
    field = f"{where}.{path}".strip(".") if where else path
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, ExperimentError) and cause.problems:
        return [Problem(field, problem.message, problem.advice) for problem in cause.problems]
    if isinstance(cause, InputError):
        return [Problem(field, cause.message, cause.advice)]
    if item["type"] == "extra_forbidden":
        *parents, last = path.split(".")
        known = _fields_at(section, parents)
        near = get_close_matches(last, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
        return [Problem(field, f"There is no setting {field!r}.", hint)]
    if item["type"] == "missing":
        return [Problem(field, f"{field} is missing.", "Give it a value.")]
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = "" if cause is not None else f" {item['input']!r}"
    return [Problem(field, f"{field or 'The experiment'}{shown[:80]}: {message}.".replace("..", "."))]


def _is_union_tag(part: Any) -> bool:
    return isinstance(part, str) and (part.startswith(("literal[", "constrained-")) or part == "int")


def _fields_at(section: type[BaseModel], parents: list[str]) -> list[str]:
    current: type[BaseModel] | None = section
    for name in parents:
        if current is None or name.isdigit():
            continue
        info = current.model_fields.get(name)
        current = section_of(info.annotation) if info else None
    return list(current.model_fields) if current else []


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
    data["evaluation"]["tasks"] = sorted(data["evaluation"]["tasks"])
    reference["evaluation"]["tasks"] = sorted(reference["evaluation"]["tasks"])
    entry = PerplexityCorpus().model_dump(mode="json")
    data["evaluation"]["perplexity"] = sorted(
        (_without_defaults(text, entry) for text in data["evaluation"]["perplexity"]), key=json.dumps
    )
    reference["evaluation"]["perplexity"] = [{}]
    if not _seed_matters(experiment):
        data["seed"] = 0
    return _without_defaults(data, reference)


def _seed_matters(experiment: Experiment) -> bool:
    pruning = experiment.pruning
    if experiment.recovery is not None or experiment.evaluation.shots:
        return True
    if pruning is None:
        return False
    method = _method(pruning)
    return method.seeded or (method.calibrated(pruning.options) and pruning.calibration.seed is None)


def _without_defaults(data: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """`data` without the entries that equal `reference`'s, sections likewise; an empty section goes."""
    kept: dict[str, Any] = {}
    for name, value in data.items():
        default = reference.get(name, ...)
        if isinstance(value, dict) and isinstance(default, dict):
            inner = _without_defaults(value, default)
            if inner:
                kept[name] = inner
        elif value != default:
            kept[name] = value
    return kept
