"""The parts of an Experiment: model, calibration, pruning, recovery, evaluation. Every field is described once, here."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from core.models.plans import parse_pattern
from core.validated import validated

Auto = Literal["auto"]
Part = Literal["attention", "mlp"]
BatchSize = Auto | Annotated[int, Field(ge=1, le=65536)]
BUILTIN_MODEL = "builtin:smollm2-135m-instruct"
MANY = 1_000_000_000  # more than anybody means: beyond it numbers stop being exact
SEVEN_TASKS = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=4096)


class ModelChoice(Section):
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
    quantised: Literal["q8_0", "q4_0"] | None = Field(
        None,
        description="Round the dense model's weights to this GGUF format (blocks of 32 with a common scale) and judge them as rounded: a baseline beside pruning. Empty: as they are.",
    )


class _Text(Section):
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


class Pruning(Section):
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
    allocation: Literal["uniform", "global", "measured", "owl"] = Field(
        "uniform",
        description="How the ratio is shared over the layers. uniform: the same in each; global (width): one ranking over all layers; measured (width): each layer is cut alone, and what that costs on calibration text decides; owl (mask): layers with more outliers lose less.",
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
        options = validated(method.options, self.options, f"options of {self.method}")
        object.__setattr__(
            self,
            "options",
            without_defaults(options.model_dump(mode="json"), method.options().model_dump(mode="json")),
        )
        self._ratio_of_the_pattern()
        self._fitting_allocation(method.kind, bool(method.needs_for(self.options)))
        for name in inapplicable(method.kind):
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not apply to {self.method}, a {method.kind} method; leave it out"
                )
        return self

    @property
    def reads_text(self) -> bool:
        """Whether anything about this cut looks at calibration text: the method, the allocation or the refit."""
        from core.pruning.registry import get

        return get(self.method).calibrated(self.options) or self.reconstruct or self.allocation in ("owl", "measured")

    def _fitting_allocation(self, kind: str, calibrated: bool) -> None:
        allowed = ALLOCATIONS.get(kind, ("uniform",))
        if self.allocation not in allowed:
            raise ValueError(
                f"allocation: {self.allocation} does not apply to {self.method}, a {kind} method; "
                f"choose {' or '.join(allowed)}"
            )
        fixed = self.pattern != "unstructured"
        if fixed and self.allocation != "uniform":
            raise ValueError(f"pattern {self.pattern} removes the same share of every layer; leave allocation out")
        if fixed and self.target == "model":
            raise ValueError(f"pattern {self.pattern} fixes the share of zeros; leave target out")
        if self.same_sizes and self.allocation != "uniform":
            raise ValueError("same_sizes gives every layer the same sizes; leave allocation out")
        if self.allocation == "owl" and not calibrated:
            raise ValueError(
                f"allocation: owl ranks layers by what calibration shows, and {self.method} looks at no text; "
                "choose a calibrated method"
            )

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
    "layers": frozenset({"width", "mask", "depth"}),
    "heads": frozenset({"width"}),
    "round_to": frozenset({"width"}),
    "same_sizes": frozenset({"width"}),
    "reconstruct": frozenset({"width"}),
    "pattern": frozenset({"mask"}),
    "parts": frozenset({"width", "mask"}),
    "allocation": frozenset({"width", "mask"}),
}
ALLOCATIONS: dict[str, tuple[str, ...]] = {"width": ("uniform", "global", "measured"), "mask": ("uniform", "owl")}


def inapplicable(kind: str) -> list[str]:
    """Fields of `pruning` that a method of this kind ignores, and refuses when set."""
    return [name for name, kinds in _APPLIES.items() if kind not in kinds]


GENERATED_PROMPT = 128
"""Tokens of a passage that generated documents begin with where nobody asks for others (docs/recovery.md: why)."""


class RecoveryData(Section):
    """What the pruned model learns from."""

    corpus: str | None = Field(
        None,
        description="Name of a text corpus or an instruction set (alpaca-cleaned, or a hub id); generated is text that the dense model writes; empty is the built-in passages.",
    )
    path: str | None = Field(None, description="A local text or JSONL file in place of a corpus.")
    format: Literal["instructions", "chat", "text"] = Field(
        "text", description="Rows of instruction/input/output, chat messages, or plain text."
    )
    max_samples: int | None = Field(None, ge=1, le=MANY, description="Use at most this many rows; empty is all.")
    prompt_tokens: int | None = Field(
        None,
        ge=1,
        le=MANY,
        description="Of `generated`: tokens of a passage that each document begins with, at most half of cutoff; empty is 128. More keeps the text nearer to what people wrote.",
    )


class Recovery(Section):
    """Training after the cut."""

    kind: Literal["lora", "distillation"] = Field(
        "distillation",
        description="LoRA on the pruned model, or distillation from the dense one. Left out: LoRA where the data are instructions or chats, else distillation.",
    )
    data: RecoveryData = Field(default_factory=RecoveryData, description="What the pruned model learns from.")
    rank: int = Field(8, ge=1, le=1024, description="Rank of the LoRA matrices.")
    alpha: float = Field(16, gt=0, le=MANY, description="LoRA scale: updates are multiplied by alpha / rank.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the LoRA inputs.")
    target_modules: Literal["all-linear", "attention", "mlp"] = Field(
        "all-linear", description="Which linear layers get LoRA matrices."
    )
    learning_rate: float = Field(1e-4, gt=0, le=1, description="Peak learning rate.")
    batch_size: int = Field(64, ge=1, le=MANY, description="Samples an optimiser step.")
    micro_batch: BatchSize = Field("auto", description="Samples in one forward pass; auto fits it to the device.")
    epochs: float = Field(2, gt=0, le=MANY, description="Passes over the data.")
    max_minutes: float | None = Field(
        None, gt=0, le=MANY, description="Stop training after this many minutes; empty is no limit."
    )
    cutoff: int = Field(256, ge=8, le=MANY, description="Longest sample, in tokens.")
    warmup_steps: int = Field(100, ge=0, le=MANY, description="Optimiser steps of linear warm-up.")
    temperature: float = Field(2.0, gt=0, le=MANY, description="Softmax temperature of distillation.")
    loss_mix: float = Field(
        0.5, ge=0, le=1, description="Share of the distillation loss in the whole; the rest is the language-model loss."
    )
    hidden_mix: float = Field(
        0.0,
        ge=0,
        le=MANY,
        description="Weight of the distance between the last hidden states in distillation, as a share of their size.",
    )
    full_weights: bool = Field(False, description="Distil into the weights of the cut layers themselves, without LoRA.")
    validation: float = Field(0.02, ge=0, lt=1, description="Share of the data kept for validation.")

    @model_validator(mode="before")
    @classmethod
    def _answers_are_for_lora(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "kind" in data:
            return data
        lesson = data.get("data")
        form = lesson.get("format") if isinstance(lesson, Mapping) else getattr(lesson, "format", None)
        return {**data, "kind": "lora"} if form in ("instructions", "chat") else data

    @property
    def prompt(self) -> int | None:
        """Tokens of a passage that each generated document begins with; None where none is generated."""
        if self.data.corpus != "generated":
            return None
        return min(self.data.prompt_tokens or GENERATED_PROMPT, self.cutoff // 2)

    def inapplicable(self) -> list[str]:
        """Fields that this kind of training ignores, and that are refused when set."""
        if self.kind == "lora":
            return ["full_weights", "temperature", "loss_mix", "hidden_mix"]
        return ["rank", "alpha", "dropout"] if self.full_weights else []


class PerplexityCorpus(_Text):
    """One perplexity measurement."""

    split: str = Field(
        "heldout",
        description="Part of the corpus: heldout (what calibration never sees; the test split where the corpus has one) or a split that the corpus names. A path is read whole.",
    )
    window: int = Field(512, ge=8, le=131_072, description="Tokens in each window; the value depends strongly on it.")
    max_tokens: int | None = Field(
        None, ge=8, le=MANY, description="Read only the first windows, up to this many tokens; empty is all."
    )
    bos: bool = Field(False, description="Put the beginning-of-sequence token before each window.")

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, data: Any) -> Any:
        return {"corpus": data} if isinstance(data, str) else data


class Evaluation(Section):
    """What is measured, and how."""

    perplexity: tuple[PerplexityCorpus, ...] = Field(
        (PerplexityCorpus(),),
        description="Corpora to measure perplexity on; a bare corpus name stands for its entry with defaults.",
    )
    tasks: tuple[str, ...] = Field(SEVEN_TASKS, description="lm-eval tasks.")
    limit: int | None = Field(
        None,
        ge=1,
        le=MANY,
        description="Only the first N documents of each task; empty is all. 100 documents mean about ±10 points.",
    )
    shots: int = Field(0, ge=0, le=64, description="Solved examples put before each question.")
    chat_template: bool = Field(False, description="Wrap each question in the model's chat template.")
    fidelity: bool = Field(
        True,
        description="Measure how far the pruned model's next-token distribution is from the dense model's: KL divergence and top-1 agreement.",
    )
    speed: bool = Field(
        True,
        description="Measure prefill and decode tokens/s, time to the first token and peak memory, dense and pruned in turn with the device to itself.",
    )
    batch_size: BatchSize = Field("auto", description="Sequences in one forward pass; auto fits it to the device.")

    @field_validator("tasks")
    @classmethod
    def _tasks_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))


class Scan(Section):
    """What each layer alone is worth, in place of a pruned model: every chosen layer is pruned by itself and the first text of evaluation.perplexity read; nothing is saved."""

    by: Literal["layer", "part"] = Field(
        "layer",
        description="layer: all chosen parts of a layer at once; part: each of them by itself as well.",
    )


def without_defaults(data: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """`data` without the entries that equal `reference`'s, sections likewise; an empty section goes."""
    kept: dict[str, Any] = {}
    for name, value in data.items():
        default = reference.get(name, ...)
        if isinstance(value, dict) and isinstance(default, dict):
            inner = without_defaults(value, default)
            if inner:
                kept[name] = inner
        elif value != default:
            kept[name] = value
    return kept
