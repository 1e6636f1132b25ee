"""Rough time and memory of a run, from shapes alone. No model is loaded for it.

Time: multiply-accumulates of every pass (architecture × tokens), two FLOPs each, over the FLOP/s that the device
reaches with models of this kind; plus the seconds that starting, saving and verifying take. `Pace` corrects each kind
of work by what earlier runs on the same device took. Memory: weights, what the method keeps, and the largest tensors
of one pass.

Good to a factor of about two before the first run, and closer after it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from core.device import DeviceInfo
from core.estimate_cuts import cut_bytes, cut_seconds, layer_bytes, layerwise, streamed
from core.estimate_recovery import capped, recovery_bytes, recovery_seconds
from core.estimate_work import (
    LOGIT_BYTES,
    TOKENS_A_PASS,
    Work,
    activation_bytes,
    cores,
    flops_a_second,
    pass_seconds,
    weight_bytes,
)
from core.experiment import Evaluation, PerplexityCorpus
from core.models.gguf_layout import about_bytes

__all__ = [
    "Pace", "TaskSize", "Work", "by_kind", "capped", "disk_bytes", "judging_bytes", "layerwise", "memory_bytes",
    "perplexity_tokens", "pruning_bytes", "recovering_bytes", "stage_seconds", "streamed", "task_tokens",
    "weight_bytes", "work_kind",
]  # fmt: skip

PASSES = ("calibrate", "perplexity", "tasks", "fidelity", "recover", "scan")
"""Kinds of work that are mostly passes: one that no earlier run did is corrected as the others were."""

JUDGING = ("perplexity", "tasks", "fidelity", "speed")
"""Parts of an evaluation."""

DISK_BYTES_A_SECOND = 300e6
START_S = {"cpu": 5.0, "cuda": 12.0}
"""A process that imports torch and transformers; the saved model is verified in a second one."""
SPEED_S = 18.0
"""A model's share of a speed measurement, which goes on for about as long on every device."""
ROUNDING_S_A_PARAMETER = 5e-8
"""Writing a weight into a quantised GGUF file, and reading it again."""
"""Of one model; a pruned one is measured in turn with the dense one."""
TASK_START_S = 2.0
PROCESS_BYTES = {"cpu": 700 << 20, "cuda": 600 << 20}
FIDELITY_TOKENS = 16 * 512
KL_TOKENS = {"cpu": 512, "cuda": 8192}
"""That KL by layer reads: core/evaluation/layer_kl.py."""


@dataclass(frozen=True)
class TaskSize:
    """How much reading a task is: documents, tokens of one with all its answers, tokens of an example before it."""

    documents: int
    tokens: float
    example: float


# Documents of the scored split; tokens by SmolLM2's tokenizer, what the answers of a document share counted once.
TASK_SIZES = {
    "boolq": TaskSize(3270, 137, 156),
    "piqa": TaskSize(1838, 48, 37),
    "hellaswag": TaskSize(10042, 161, 80),
    "winogrande": TaskSize(1267, 23, 23),
    "arc_easy": TaskSize(2376, 37, 33),
    "arc_challenge": TaskSize(1172, 47, 42),
    "openbookqa": TaskSize(500, 19, 20),
}
UNKNOWN_TASK = TaskSize(2000, 200, 100)
CORPUS_TOKENS = {
    ("passages", "heldout"): 38_478,
    ("passages", "train"): 276_637,
    ("wikitext2", "train"): 2_600_000,
    ("ptb", "train"): 1_200_000,
    ("ptb", "heldout"): 106_000,
    ("ptb", "test"): 106_000,
}
"""Tokens of a corpus and split by SmolLM2's tokenizer; what is not listed counts as WikiText-2's test split."""
WIKITEXT2_TEST_TOKENS = 303_415
BYTES_A_TOKEN = 4.3
"""Of English text in UTF-8."""


# --- time


def stage_seconds(work: Work) -> dict[str, float]:
    """Seconds by the stated model of load, calibrate, prune, save, recover, perplexity, tasks, fidelity and speed.

    With recovery the model is judged twice, before and after: both count.
    """
    evaluation = work.experiment.evaluation
    kind = work.device.kind
    weights = weight_bytes(work.before)
    seconds = {"load": START_S[kind] + weights / DISK_BYTES_A_SECOND}
    if work.experiment.scan is not None and work.plan is not None:
        return {name: value for name, value in {**seconds, **scan_seconds(work)}.items() if value > 0}
    if work.plan is not None:
        seconds |= cut_seconds(work)
        seconds["save"] = START_S[kind] + 3 * weight_bytes(work.after) / DISK_BYTES_A_SECOND
    texts = [(perplexity_tokens(text), text.window) for text in evaluation.perplexity]
    seconds["perplexity"] = sum(pass_seconds(work, work.after, tokens, window) for tokens, window in texts)
    seconds["tasks"] = sum(
        TASK_START_S + pass_seconds(work, work.after, *task_tokens(name, evaluation)) for name in evaluation.tasks
    )
    compared = not work.experiment.dense
    if work.experiment.model.quantised is not None:  # written, read again, and loaded from what it holds
        seconds["save"] = START_S[kind] + ROUNDING_S_A_PARAMETER * work.before.params
    if evaluation.fidelity and compared:
        tokens, window = min((FIDELITY_TOKENS, 512), *texts) if texts else (FIDELITY_TOKENS, 512)
        seconds["fidelity"] = sum(pass_seconds(work, side, tokens, window) for side in (work.before, work.after))
        seconds["fidelity"] += _by_layer_seconds(work, min(tokens, KL_TOKENS[kind]), window)
    if evaluation.speed:
        seconds["speed"] = SPEED_S * (2 if compared else 1)
    if work.plan is not None and work.experiment.recovery is not None:
        seconds |= {name: 2 * seconds[name] for name in JUDGING if name in seconds}
        seconds["recover"] = recovery_seconds(work)
    return {name: value for name, value in seconds.items() if value > 0}


def _by_layer_seconds(work: Work, tokens: int, window: int) -> float:
    """KL by layer: from each layer that is cut, or above one that is, through the dense layers above it."""
    if work.plan is None or work.plan.kind == "hidden" or not work.plan.selected:
        return 0.0
    n = work.before.n_layers
    above = sum(n - layer - 1 for layer in range(work.plan.selected[0], n)) / n
    return above * pass_seconds(work, work.before, max(tokens, window), window)


def scan_seconds(work: Work) -> dict[str, float]:
    """Calibration, and then for each layer (and each part of it, where asked for) the layers above it and the head."""
    plan, scan, (text,) = work.plan, work.experiment.scan, work.experiment.evaluation.perplexity
    assert plan is not None
    assert scan is not None
    found, n = cut_seconds(work), work.before.n_layers
    tokens, window = perplexity_tokens(text), text.window
    whole = pass_seconds(work, work.before, tokens, window)
    logits = tokens * work.before.vocab_size * work.before.hidden_size
    head = min(1.0, logits / max(work.before.macs(tokens, window), 1))
    parts = work.experiment.pruning.parts if work.experiment.pruning is not None else ()
    variants = 1 + (len(parts) if scan.by == "part" and len(parts) > 1 else 0)
    above = sum(variants * (head + (1 - head) * (n - layer) / n) for layer in plan.selected)
    return {"calibrate": found.get("calibrate", 0.0), "scan": whole * (2 + above) + found.get("prune", 0.0)}


def perplexity_tokens(text: PerplexityCorpus) -> int:
    """Tokens that a perplexity reads; a file's from its size. 0 for a file that is not there."""
    if text.path is None:
        corpus = (text.corpus or "").removesuffix("-joined")
        tokens = CORPUS_TOKENS.get((corpus, text.split), WIKITEXT2_TEST_TOKENS)
    else:
        file = Path(text.path).expanduser()
        tokens = int(file.stat().st_size / BYTES_A_TOKEN) if file.is_file() else 0
    return tokens if text.max_tokens is None else min(tokens, text.max_tokens)


def task_tokens(name: str, evaluation: Evaluation) -> tuple[int, int]:
    """Tokens that a task reads, and those of one row: a document with its answers."""
    size = TASK_SIZES.get(name, UNKNOWN_TASK)
    documents = size.documents if evaluation.limit is None else min(size.documents, evaluation.limit)
    length = size.tokens + evaluation.shots * size.example
    return int(documents * length), max(int(length), 1)


# --- what earlier runs took


def work_kind(timing: str) -> str | None:
    """The kind of work that a name in `timings` of results.json stands for; None for a sum or something unknown."""
    head, _, part = timing.partition(".")
    if head in ("evaluate", "judge_recovered"):
        return {"perplexity": "perplexity", "task": "tasks", "fidelity": "fidelity", "speed": "speed"}.get(
            part.partition(".")[0]
        )
    if head == "scan" and part:
        return None  # of one layer: in the sum already
    return head if head in {"load", "calibrate", "prune", "scan", "save", "recover"} else None


def by_kind(timings: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Measured seconds of each kind of work in one run."""
    totals: dict[str, float] = {}
    for name, seconds in timings:
        kind = work_kind(name)
        if kind is not None and seconds is not None and seconds > 0:
            totals[kind] = totals.get(kind, 0.0) + seconds
    return totals


@dataclass(frozen=True)
class Pace:
    """How much slower each kind of work was than the model says, as the median over earlier runs; empty: none known."""

    factors: Mapping[str, float] = field(default_factory=dict)
    runs: int = 0

    @classmethod
    def of(cls, pairs: Iterable[tuple[Mapping[str, float], Mapping[str, float]]]) -> "Pace":
        """From pairs (by the model, measured) of earlier runs."""
        ratios: dict[str, list[float]] = {}
        runs = 0
        for modelled, measured in pairs:
            shared = [kind for kind, seconds in modelled.items() if seconds > 0 and measured.get(kind, 0) > 0]
            runs += bool(shared)
            for kind in shared:
                if kind == "calibrate" and measured[kind] < modelled[kind] / 10:
                    continue  # its scores were kept from a run at another ratio: this says nothing of the device
                ratios.setdefault(kind, []).append(measured[kind] / modelled[kind])
        return cls({kind: median(values) for kind, values in ratios.items()}, runs)

    def apply(self, modelled: Mapping[str, float]) -> dict[str, float]:
        """The model's seconds, corrected."""
        passes = [self.factors[kind] for kind in PASSES if kind in self.factors]
        other = median(passes) if passes else 1.0
        return {
            kind: seconds * self.factors.get(kind, other if kind in PASSES else 1.0)
            for kind, seconds in modelled.items()
        }

    def basis(self, device: DeviceInfo, dtype: str) -> str:
        """Where the estimate comes from, in words."""
        if self.runs:
            runs = "one earlier run" if self.runs == 1 else f"{self.runs} earlier runs"
            return f"From the stage times of {runs} on this device, scaled by the work of this one."
        speed = f"{flops_a_second(device, dtype) / 1e9:,.0f} GFLOP/s in {dtype}"
        where = f"{cores()} CPU cores" if device.kind == "cpu" else device.name
        return f"No run has finished on this device yet: assumes {speed} for {where}. May be off by a factor of two."


# --- memory


def memory_bytes(work: Work) -> int:
    """Rough peak of the worker on its device; the model in its dtype, and the largest of what the stages add to it."""
    return max(pruning_bytes(work), judging_bytes(work), recovering_bytes(work))


def recovering_bytes(work: Work) -> int:
    """The worker's peak on its device while it trains; 0 without recovery."""
    held = recovery_bytes(work)
    return PROCESS_BYTES[work.device.kind] + held if held else 0


def pruning_bytes(work: Work) -> int:
    """The worker's peak on its device until the cut model is saved; 0 for the dense model."""
    if work.plan is None:
        return 0
    held = layer_bytes(work) if layerwise(work) else weight_bytes(work.before, work.dtype)
    return PROCESS_BYTES[work.device.kind] + held + cut_bytes(work)


def judging_bytes(work: Work) -> int:
    """The worker's peak on its device while it evaluates: the judged model whole, at the end the dense one too."""
    kind, evaluation = work.device.kind, work.experiment.evaluation
    if not (evaluation.perplexity or evaluation.tasks or evaluation.fidelity or evaluation.speed):
        return 0
    held = weight_bytes(work.after, work.dtype) + activation_bytes(work, TOKENS_A_PASS[kind]) + 2 * LOGIT_BYTES[kind]
    if not work.experiment.dense and (evaluation.fidelity or evaluation.speed):
        held += weight_bytes(work.before, work.dtype)
    return PROCESS_BYTES[kind] + held


def disk_bytes(work: Work) -> int:
    """What the run leaves on disk: the saved model, if it is kept, and a little for logs and outcomes."""
    kept, quantised = work.experiment.save_model and work.experiment.scan is None, work.experiment.model.quantised
    if quantised is not None and kept:
        return about_bytes(work.before, quantised) + (4 << 20)
    models = 0 if work.plan is None or not kept else 1 if work.experiment.recovery is None else 2
    return models * weight_bytes(work.after) + (4 << 20)
