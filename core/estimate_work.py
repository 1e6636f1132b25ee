"""What the cost of a run is estimated from: one experiment on one model and device, and how fast devices are."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from core.device import DeviceInfo
from core.experiment import Experiment
from core.models.plans import Plan
from core.models.sizes import Architecture
from core.pruning.registry import Method, get

CPU_FLOPS_A_CORE = 85e9
"""float32 FLOP/s of one core in forward passes of a 135 M model: 600 to 700 tokens/s on two."""
CPU_BFLOAT16 = 2.5
"""How much faster calibration passes are where the CPU multiplies bfloat16 in hardware."""
MOST_CORES = 16
GPU_FLOPS = {(9, 0): 120e12, (8, 0): 50e12, (0, 0): 10e12}
"""bfloat16 or float16 FLOP/s reached in evaluation, from this compute capability on: a third of the peak or less."""
FLOAT32_ON_GPU = 0.15
SECONDS_A_PASS = {"cpu": 0.0, "cuda": 0.03}
"""What launching the kernels of one pass takes, however small it is."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
TOKENS_A_PASS = {"cpu": 2048, "cuda": 16384}
LOGIT_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}


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
        """What calibration gathers for the method: inputs, gram, gradients, …; allocation and refit apart."""
        pruning, method = self.experiment.pruning, self.method
        return frozenset() if pruning is None or method is None else frozenset(method.needs_for(pruning.options))

    @property
    def pass_dtype(self) -> str:
        """The format that calibration passes compute in."""
        fast = self.device.kind == "cpu" and self.dtype == "float32" and bfloat16_in_hardware()
        return "bfloat16" if fast else self.dtype


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


@cache
def bfloat16_in_hardware() -> bool:
    """Whether this processor multiplies bfloat16 (AVX512-BF16 or AMX), so that the engine calibrates in it."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    line = next((line for line in flags.splitlines() if line.startswith("flags")), "")
    return bool({"avx512_bf16", "amx_bf16", "amx_tile"} & set(line.split()))


def pass_seconds(work: Work, architecture: Architecture, tokens: int, length: int) -> float:
    """A forward pass of a model over `tokens` tokens in sequences of `length`."""
    flops = 2 * architecture.macs(max(tokens, 1), length) if tokens else 0
    passes = tokens / TOKENS_A_PASS[work.device.kind]
    return flops / flops_a_second(work.device, work.dtype) + passes * SECONDS_A_PASS[work.device.kind]


def weight_bytes(architecture: Architecture, dtype: str | None = None) -> int:
    """Bytes of all weights, in the dtype they are stored in or the one given."""
    return architecture.params * BYTES.get(dtype or architecture.dtype, 4)


def activation_bytes(work: Work, tokens: int) -> int:
    """The tensors of one decoder layer in one pass over `tokens` tokens."""
    widest = max(sizes.mlp for sizes in work.before.layers)
    heads = max(sizes.heads for sizes in work.before.layers) * work.before.head_dim
    return tokens * (3 * widest + 4 * heads + 4 * work.before.hidden_size) * BYTES.get(work.dtype, 4)
