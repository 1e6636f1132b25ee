"""Rough time and memory of a run, from shapes alone. No model is loaded for it.

Time: multiply-accumulates of every pass (architecture × tokens), two FLOPs each, over the FLOP/s that the device
reaches with models of this kind; plus the seconds that starting, saving and verifying take. `Pace` corrects each kind
of work by what earlier runs on the same device took. Memory: weights, what the method keeps, and the largest tensors
of one pass.

Good to a factor of about two before the first run, and closer after it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from core.device import DeviceInfo
from core.experiment import Evaluation, Experiment, PerplexityCorpus
from core.models.plans import Plan
from core.models.sizes import Architecture
from core.pruning.registry import Method, get

PASSES = ("calibrate", "perplexity", "tasks", "fidelity")
"""Kinds of work that are forward passes: one that no earlier run did is corrected as the others were."""

CPU_FLOPS_A_CORE = 85e9
"""float32 FLOP/s of one core in forward passes of a 135 M model: 600 to 700 tokens/s on two."""
MOST_CORES = 16
GPU_FLOPS = {(9, 0): 120e12, (8, 0): 50e12, (0, 0): 10e12}
"""bfloat16 or float16 FLOP/s reached in evaluation, from this compute capability on: a third of the peak or less."""
FLOAT32_ON_GPU = 0.15
SECONDS_A_PASS = {"cpu": 0.0, "cuda": 0.03}
"""What launching the kernels of one pass takes, however small it is."""
DISK_BYTES_A_SECOND = 300e6
START_S = {"cpu": 5.0, "cuda": 12.0}
"""A process that imports torch and transformers; the saved model is verified in a second one."""
SPEED_S = 9.0
"""Of one model; a pruned one is measured in turn with the dense one."""
TASK_START_S = 2.0
TEXT_S = 3.0
"""Reading calibration text and drawing its windows."""
WEIGHTS_A_SECOND = 25e6
"""Scored and sorted by a mask method."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
PROCESS_BYTES = {"cpu": 700 << 20, "cuda": 600 << 20}
TOKENS_A_PASS = {"cpu": 2048, "cuda": 16384}
LOGIT_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
FIDELITY_TOKENS = 16 * 512


@dataclass(frozen=True)
class TaskSize:
    """How much reading a task is: documents, answers to score for each, tokens of one answer with its question."""

    documents: int
    requests: float
    tokens: float


# Documents of the scored split; tokens by SmolLM2's tokenizer. boolq's answers are one token each: one pass for both.
TASK_SIZES = {
    "boolq": TaskSize(3270, 1, 156),
    "piqa": TaskSize(1838, 2, 37),
    "hellaswag": TaskSize(10042, 4, 80),
    "winogrande": TaskSize(1267, 2, 23),
    "arc_easy": TaskSize(2376, 4, 33),
    "arc_challenge": TaskSize(1172, 4, 42),
    "openbookqa": TaskSize(500, 4, 20),
}
UNKNOWN_TASK = TaskSize(2000, 4, 100)
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


@dataclass(frozen=True)
class Work:
    """One experiment on one model and device, as far as its cost goes."""

    experiment: Experiment
    before: Architecture
    plan: Plan | None
    device: DeviceInfo
    dtype: str

    @property
    def after(self) -> Architecture:
        return self.before if self.plan is None else self.plan.after

    @property
    def method(self) -> Method | None:
        return None if self.experiment.pruning is None else get(self.experiment.pruning.method)

    @property
    def needs(self) -> frozenset[str]:
        """What calibration gathers: inputs, gradients, fisher."""
        pruning, method = self.experiment.pruning, self.method
        return frozenset() if pruning is None or method is None else frozenset(method.needs_for(pruning.options))


# --- time


def flops_a_second(device: DeviceInfo, dtype: str) -> float:
    """What the device is taken to reach where no earlier run says so."""
    if device.kind == "cpu":
        return CPU_FLOPS_A_CORE * min(cores(), MOST_CORES)
    capability = device.compute_capability or (0, 0)
    best = next(flops for least, flops in GPU_FLOPS.items() if capability >= least)
    return best * (FLOAT32_ON_GPU if dtype == "float32" else 1.0)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stage_seconds(work: Work) -> dict[str, float]:
    """Seconds by the stated model of load, calibrate, prune, save, perplexity, tasks, fidelity and speed."""
    evaluation = work.experiment.evaluation
    kind = work.device.kind
    weights = weight_bytes(work.before)
    seconds = {"load": START_S[kind] + weights / DISK_BYTES_A_SECOND}
    if work.plan is not None:
        seconds |= _pruning_seconds(work)
        seconds["save"] = START_S[kind] + 3 * weight_bytes(work.after) / DISK_BYTES_A_SECOND
    texts = [(perplexity_tokens(text), text.window) for text in evaluation.perplexity]
    seconds["perplexity"] = sum(_pass_seconds(work, work.after, tokens, window) for tokens, window in texts)
    seconds["tasks"] = sum(
        TASK_START_S + _pass_seconds(work, work.after, *task_tokens(name, evaluation)) for name in evaluation.tasks
    )
    if evaluation.fidelity and work.plan is not None:
        tokens, window = min((FIDELITY_TOKENS, 512), *texts) if texts else (FIDELITY_TOKENS, 512)
        seconds["fidelity"] = sum(_pass_seconds(work, side, tokens, window) for side in (work.before, work.after))
    if evaluation.speed:
        seconds["speed"] = SPEED_S * (1 if work.plan is None else 2)
    return {name: value for name, value in seconds.items() if value > 0}


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
    """Tokens that a task reads, and those of one sequence."""
    size = TASK_SIZES.get(name, UNKNOWN_TASK)
    documents = size.documents if evaluation.limit is None else min(size.documents, evaluation.limit)
    length = size.tokens * (1 + evaluation.shots)
    return int(documents * size.requests * length), max(int(length), 1)


def _pass_seconds(work: Work, architecture: Architecture, tokens: int, length: int) -> float:
    flops = 2 * architecture.macs(max(tokens, 1), length) if tokens else 0
    passes = tokens / TOKENS_A_PASS[work.device.kind]
    return flops / flops_a_second(work.device, work.dtype) + passes * SECONDS_A_PASS[work.device.kind]


def _pruning_seconds(work: Work) -> dict[str, float]:
    """Gradients are gathered before the cut; statistics of inputs while it goes from layer to layer."""
    pruning, cut = work.experiment.pruning, work.plan
    if pruning is None or cut is None:
        return {}
    share = len(cut.selected) / work.before.n_layers
    seconds = {"calibrate": TEXT_S if work.needs else 0.0, "prune": 1.0}
    if cut.kind == "mask":
        seconds["prune"] += share * work.before.params / WEIGHTS_A_SECOND
    text = pruning.calibration
    once = _pass_seconds(work, work.before, text.samples * text.length, text.length)
    if work.needs & {"gradients", "fisher"}:
        seconds["calibrate"] += 3 * once  # forward, and twice that backward
    elif work.needs:
        seconds["prune"] += 2 * share * once  # each layer runs before and after its cut
    return seconds


# --- what earlier runs took


def work_kind(timing: str) -> str | None:
    """The kind of work that a name in `timings` of results.json stands for; None for a sum or something unknown."""
    head, _, part = timing.partition(".")
    if head == "evaluate":
        return {"perplexity": "perplexity", "task": "tasks", "fidelity": "fidelity", "speed": "speed"}.get(
            part.partition(".")[0]
        )
    return head if head in {"load", "calibrate", "prune", "save"} else None


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


def weight_bytes(architecture: Architecture, dtype: str | None = None) -> int:
    """Bytes of all weights, in the dtype they are stored in or the one given."""
    return architecture.params * BYTES.get(dtype or architecture.dtype, 4)


def memory_bytes(work: Work) -> int:
    """Rough peak of the worker on its device; the model in its dtype, and the largest of what the stages add to it."""
    kind = work.device.kind
    evaluation = work.experiment.evaluation
    weights = weight_bytes(work.before, work.dtype)
    evaluating = (
        weight_bytes(work.after, work.dtype) + _activation_bytes(work, TOKENS_A_PASS[kind]) + 2 * LOGIT_BYTES[kind]
    )
    if work.plan is not None and (evaluation.fidelity or evaluation.speed):
        evaluating += weights
    pruning = weights + _pruning_bytes(work) if work.plan is not None else 0
    return PROCESS_BYTES[kind] + max(evaluating, pruning)


def _pruning_bytes(work: Work) -> int:
    pruning = work.experiment.pruning
    if pruning is None or work.plan is None:
        return 0
    calibration, element = pruning.calibration, BYTES.get(work.dtype, 4)
    largest = max(rows * columns for i in work.plan.selected for rows, columns in work.before.matrix_shapes(i).values())
    total = 3 * 4 * largest
    if not work.needs:
        return total
    if work.needs & {"gradients", "fisher"}:
        selected = sum(work.before.layer_params(i) for i in work.plan.selected)
        copies = 2 if "fisher" in work.needs else 1
        batch = calibration.length if "fisher" in work.needs else max(calibration.length, 512)
        kept = work.before.n_layers * _activation_bytes(work, batch)
        return total + copies * 4 * selected + kept + 4 * LOGIT_BYTES["cpu"]
    hidden = calibration.samples * calibration.length * work.before.hidden_size * element
    return total + 2 * hidden + _activation_bytes(work, TOKENS_A_PASS[work.device.kind])


def _activation_bytes(work: Work, tokens: int) -> int:
    """The tensors of one decoder layer in one pass over `tokens` tokens."""
    widest = max(sizes.mlp for sizes in work.before.layers)
    heads = max(sizes.heads for sizes in work.before.layers) * work.before.head_dim
    return tokens * (3 * widest + 4 * heads + 4 * work.before.hidden_size) * BYTES.get(work.dtype, 4)


def disk_bytes(work: Work) -> int:
    """What the run leaves on disk: the saved model, if it is kept, and a little for logs and outcomes."""
    kept = work.plan is not None and work.experiment.save_model
    return (weight_bytes(work.after) if kept else 0) + (4 << 20)
