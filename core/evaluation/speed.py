"""How fast models are, measured alternately in one process, so that whatever slows the machine down hits all of them.

Batch 1. Prefill: tokens a second of one pass over a prompt, with the last position's logits. First token: milliseconds
from a short prompt to the first chosen token. Decode: tokens a second after it, greedy, with the KV cache. Values are
medians over the repetitions; `stderr` is the standard error of a median from their spread.
"""

import contextlib
import ctypes
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.evaluation.metrics import Metric
from core.evaluation.precision import dtype_name
from core.progress import Progress, silent

TASK = "speed"
BUDGET = 18.0  # seconds for all models together
REPETITIONS = (3, 15)  # at least, at most
LENGTHS = {"cpu": (256, 16), "cuda": (1024, 128)}  # tokens of the prompt, tokens decoded
SHORT_PROMPT = 32
_METRICS = (
    "prefill_tokens_per_second",
    "first_token_milliseconds",
    "decode_tokens_per_second",
    "peak_memory_bytes",
)


def measure(
    models: dict[str, Any],
    tokenizer: Any = None,  # noqa: ARG001 (speed depends on shapes, not on which tokens)
    *,
    device: str,
    progress: Progress = silent,
) -> list[Metric]:
    """Speed and peak memory of loaded models, e.g. {"pruned": …, "dense": …}; a metric's stage is its model's name.

    Repetitions go round the models until about BUDGET seconds are used, at least three each. Peak memory is the
    weights and the most that a repetition took on top of what was in use before it; on a CPU it is left out where the
    system does not tell. `progress` counts repetitions.
    """
    import torch

    kind = "cuda" if device.startswith("cuda") else "cpu"
    probes = {name: _Probe(model, device, *LENGTHS[kind]) for name, model in models.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    begin = time.monotonic()
    with torch.inference_mode():
        for number, probe in enumerate(probes.values()):
            progress(number, len(models) * REPETITIONS[0], "repetitions")
            probe.repetition(
                lambda: progress(0, len(models) * REPETITIONS[0], "repetitions")
            )  # caches, kernels, clocks
        one_round = time.monotonic() - begin
        rounds = int(min(REPETITIONS[1], max(REPETITIONS[0], (BUDGET - one_round) // max(one_round, 1e-9))))
        for turn in range(rounds):
            for number, (name, probe) in enumerate(probes.items()):
                done = turn * len(models) + number
                found[name].append(probe.repetition(_at(progress, done, rounds * len(models))))
    progress(rounds * len(models), rounds * len(models), "repetitions")
    return [metric for name, probe in probes.items() for metric in _summary(name, found[name], probe.protocol(kind))]


def _at(progress: Progress, done: float, total: float) -> Callable[[], None]:
    return lambda: progress(done, total, "repetitions")


def _summary(stage: str, repetitions: list[dict[str, float]], protocol: dict[str, Any]) -> list[Metric]:
    metrics = []
    for name in _METRICS:
        values = [row[name] for row in repetitions if name in row]
        if not values:
            continue
        value = max(values) if name == "peak_memory_bytes" else statistics.median(values)
        stderr = None if name == "peak_memory_bytes" else _median_error(values)
        metrics.append(Metric(stage, TASK, name, value, stderr, len(values), protocol))
    return metrics


def _median_error(values: list[float]) -> float | None:
    """Standard error of a median of nearly normal values, √(π/2) · s / √n; s from the median absolute deviation."""
    if len(values) < 2:
        return None
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values)
    return math.sqrt(math.pi / 2) * spread / math.sqrt(len(values))


class _Probe:
    """One model, and how one repetition of all measurements on it is made."""

    def __init__(self, model: Any, device: str, prompt: int, decoded: int) -> None:
        import torch

        self.model, self.device, self.prompt, self.decoded = model, device, prompt, decoded
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None and prompt + decoded > limit:
            self.prompt, self.decoded = max(1, limit - decoded), min(decoded, max(2, limit // 2))
            self.prompt = max(1, limit - self.decoded)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(vocabulary, (1, self.prompt), generator=generator).to(model.device)

    def protocol(self, kind: str) -> dict[str, Any]:
        """What the values depend on."""
        import torch

        memory = "CUDA allocator" if kind == "cuda" else "resident set"
        threads = {"threads": torch.get_num_threads()} if kind == "cpu" else {}
        return {
            "batch": 1,
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
        row = {
            "prefill_tokens_per_second": self.prompt / prefill,
            "first_token_milliseconds": 1000 * first,
            "decode_tokens_per_second": self.decoded / decode,
        }
        peak = meter.peak()
        return row if peak is None else {**row, "peak_memory_bytes": float(peak)}

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
