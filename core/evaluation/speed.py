"""How fast models are, measured alternately in one process, so that whatever slows the machine down hits all of them.

For one sequence, and for a batch whose size is stated (`BATCHES`). Prefill: tokens a second of one pass over a prompt,
with the last position's logits. First token, one sequence only: milliseconds from a short prompt to the first chosen
token. Decode: tokens a second after it, greedy, with the KV cache, of all sequences together. Values are medians over
the repetitions; `details` holds the quartiles around them and, where other programs used the device meanwhile, what
they did; `stderr` is the standard error of a median from the quartiles, widened where repetitions are few.

The caller sees to it that other runs and the chat pause meanwhile: core/device_use.py.
"""

import contextlib
import ctypes
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from core.evaluation.load import watch
from core.evaluation.metrics import Metric
from core.evaluation.precision import dtype_name
from core.progress import Progress, silent

TASK = "speed"
BUDGET = 30.0  # seconds for all models together
REPETITIONS = (5, 15)  # at least, at most
SHORT_PROMPT = 32
PREFILL, FIRST, DECODE, PEAK = (
    "prefill_tokens_per_second",
    "first_token_milliseconds",
    "decode_tokens_per_second",
    "peak_memory_bytes",
)
_log = logging.getLogger(__name__)


class Load(NamedTuple):
    """Sequences side by side, tokens of each one's prompt, tokens decoded after it."""

    batch: int
    prompt: int
    decoded: int


BATCHES = {
    "cpu": (Load(1, 256, 16), Load(4, 64, 16)),
    "cuda": (Load(1, 1024, 64), Load(8, 1024, 64)),
}


def measure(models: dict[str, Any], *, device: str, progress: Progress = silent, beside: str = "") -> list[Metric]:
    """Speed and peak memory of loaded models, e.g. {"pruned": …, "dense": …}; a metric's stage is its model's name.

    Repetitions go round the models until about BUDGET seconds are used, at least five each. Peak memory is the
    weights and the most that a repetition took on top of what was in use before it; on a CPU it is left out where the
    system does not tell. A batch that does not fit into the device's memory is left out for all models. `beside`: what
    is known already to disturb the measurement, in words. `progress` counts repetitions.
    """
    import torch

    kind = "cuda" if device.startswith("cuda") else "cpu"
    watcher = watch(device)
    with torch.inference_mode():
        probes, one_round = _warmed(models, device, BATCHES[kind], progress)
        found: dict[tuple[str, int], list[dict[str, float]]] = {key: [] for key in probes}
        rounds = int(min(REPETITIONS[1], max(REPETITIONS[0], (BUDGET - one_round) // max(one_round, 1e-9))))
        for turn in range(rounds):
            for number, (key, probe) in enumerate(probes.items()):
                found[key].append(probe.repetition(_at(progress, turn * len(probes) + number, rounds * len(probes))))
    progress(rounds * len(probes), rounds * len(probes), "repetitions")
    disturbed = beside or watcher.verdict()
    return [
        metric
        for key, probe in probes.items()
        for metric in _summary(key[0], found[key], probe.protocol(kind), disturbed)
    ]


def _warmed(
    models: dict[str, Any], device: str, loads: tuple[Load, ...], progress: Progress
) -> "tuple[dict[tuple[str, int], _Probe], float]":
    """A probe of each load and model, in the order of measurement, after one repetition of each (caches, kernels,
    clocks); and the seconds that those took."""
    import torch

    probes: dict[tuple[str, int], _Probe] = {}
    total = len(models) * len(loads) * REPETITIONS[0]
    begin = time.monotonic()
    for load in loads:
        batch = {(name, load.batch): _Probe(model, device, load) for name, model in models.items()}
        try:
            for probe in batch.values():
                probe.repetition(lambda: progress(0, total, "repetitions"))
        except torch.OutOfMemoryError:
            if load.batch == 1:
                raise
            _log.warning("Speed of %d sequences side by side is left out: they do not fit into memory.", load.batch)
            torch.cuda.empty_cache()
            continue
        probes |= batch
    return probes, time.monotonic() - begin


def _at(progress: Progress, done: float, total: float) -> Callable[[], None]:
    return lambda: progress(done, total, "repetitions")


def _summary(
    stage: str, repetitions: list[dict[str, float]], protocol: dict[str, Any], disturbed: str = ""
) -> list[Metric]:
    """Medians (of peak memory the most), with quartiles in `details`."""
    metrics = []
    for name in (PREFILL, FIRST, DECODE, PEAK):
        values = [row[name] for row in repetitions if name in row]
        if not values:
            continue
        details: dict[str, Any] = {"disturbed": disturbed} if disturbed else {}
        if name == PEAK:
            metrics.append(Metric(stage, TASK, name, max(values), None, len(values), protocol))
            continue
        if len(values) > 1:
            details = {"quartiles": list(quartiles(values)), **details}
        value = statistics.median(values)
        metrics.append(Metric(stage, TASK, name, value, median_error(values), len(values), protocol, details))
    return metrics


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third, interpolated between the values in their order."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def median_error(values: Sequence[float]) -> float | None:
    """Standard error of a median of nearly normal values; None for a single one.

    √(π/2) · s / √n, with s = (q₃ − q₁) over what that is for n normal values of σ = 1 (Blom 1958), which one disturbed
    value of five does not move; times t / 1.96, Student's quantile of n − 1 degrees of freedom, so that 1.96 of it
    reach as far to each side as a 95 % interval of so few values has to.
    """
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    n, (low, high) = len(values), quartiles(values)
    expected = 2 * NormalDist().inv_cdf((0.75 * (n - 1) + 1 - 0.375) / (n + 0.25))
    widened = float(stdtrit(n - 1, 0.975)) / NormalDist().inv_cdf(0.975)
    return widened * math.sqrt(math.pi / 2) * (high - low) / expected / math.sqrt(n)


class _Probe:
    """One model, and how one repetition of all measurements on it is made."""

    def __init__(self, model: Any, device: str, load: Load) -> None:
        import torch

        self.model, self.device = model, device
        self.batch, prompt, decoded = load
        self.prompt, self.decoded = prompt, decoded
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None and prompt + decoded > limit:
            self.prompt, self.decoded = max(1, limit - decoded), min(decoded, max(2, limit // 2))
            self.prompt = max(1, limit - self.decoded)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(vocabulary, (self.batch, self.prompt), generator=generator).to(model.device)

    def protocol(self, kind: str) -> dict[str, Any]:
        """What the values depend on."""
        import torch

        memory = "CUDA allocator" if kind == "cuda" else "resident set"
        threads = {"threads": torch.get_num_threads()} if kind == "cpu" else {}
        return {
            "batch": self.batch,
            "prompt": self.prompt,
            "short_prompt": self.ids[:, :SHORT_PROMPT].shape[1],
            "decoded": self.decoded,
            "dtype": dtype_name(self.model),
            "device": kind,
            "memory": memory,
            **threads,
        }

    def repetition(self, tick: Callable[[], None]) -> dict[str, float]:
        """Prefill, first token, decode, each timed once; `tick` is called between them, never inside."""
        meter = _Memory(self.device, self.model)
        tick()
        prefill = self._timed(lambda: self._step(self.ids, None))
        tick()
        begin = time.perf_counter()
        token, cache = self._step(self.ids[:, :SHORT_PROMPT], None)
        self._wait()
        first = time.perf_counter() - begin
        tick()
        begin = time.perf_counter()
        for _ in range(self.decoded):
            token, cache = self._step(token, cache)
        self._wait()
        decode = time.perf_counter() - begin
        row = {PREFILL: self.batch * self.prompt / prefill, DECODE: self.batch * self.decoded / decode}
        if self.batch == 1:
            row[FIRST] = 1000 * first
        peak = meter.peak()
        return row if peak is None else {**row, PEAK: float(peak)}

    def _step(self, ids: Any, cache: Any) -> tuple[Any, Any]:
        output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1:].argmax(-1), output.past_key_values

    def _timed(self, work: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.model.device)


class _Memory:
    """The most memory in use since it was made, less what was in use before, plus one model's weights."""

    def __init__(self, device: str, model: Any) -> None:
        self.cuda = device.startswith("cuda")
        self.device = model.device
        tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        self.before = self._start()

    def _start(self) -> int | None:
        if self.cuda:
            import torch

            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return int(torch.cuda.memory_allocated(self.device))
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)  # else memory that was freed but kept hides what is taken anew
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM, on Linux
        except OSError:
            return None
        return _status("VmRSS")

    def peak(self) -> int | None:
        """Bytes, or None where the system does not tell."""
        if self.before is None:
            return None
        if self.cuda:
            import torch

            most: int | None = int(torch.cuda.max_memory_allocated(self.device))
        else:
            most = _status("VmHWM")
        return None if most is None else self.weights + max(0, most - self.before)


def _status(field: str) -> int | None:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
