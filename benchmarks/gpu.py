"""Pruning TinyLlama-1.1B's architecture (random weights) on one GPU, in seconds, beside a dense forward pass.

    python -m benchmarks.gpu [--only wanda taylor …] [--device cuda:0]

Each case gets a fresh model in host memory; the time runs from there until every layer is cut, so moving the weights to
the GPU counts. Peak memory is that of torch's allocator on the GPU. A small warm-up run comes first.
"""

import argparse
import gc
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import cut, random_windows, row, tinyllama
from core.experiment import Pruning
from core.models.body import Resident

GIB = 2**30


@dataclass(frozen=True)
class Case:
    """One line of the table. `to_reach`: seconds and GiB, or None."""

    name: str
    fields: dict[str, Any]
    samples: int
    length: int
    dtype: torch.dtype
    to_reach: tuple[float | None, float | None] = (None, None)
    layer_by_layer: bool = False


HALF, BRAIN = torch.float16, torch.bfloat16
SECOND = {"method": "taylor", "ratio": 0.3, "options": {"order": "second"}}
CASES = [
    Case("magnitude 50 %", {"method": "magnitude", "ratio": 0.5}, 1, 64, HALF),
    Case("wanda 50 %", {"method": "wanda", "ratio": 0.5}, 128, 2048, HALF, (4.0, None)),
    Case("wanda 2:4", {"method": "wanda", "pattern": "2:4"}, 128, 2048, HALF, (4.0, None)),
    Case("sparsegpt 50 %", {"method": "sparsegpt", "ratio": 0.5}, 128, 2048, HALF, (25.0, 3.5)),
    Case("sparsegpt 50 %, streamed", {"method": "sparsegpt", "ratio": 0.5}, 128, 2048, HALF, (None, 2.0), True),
    Case("sparsegpt 2:4", {"method": "sparsegpt", "pattern": "2:4"}, 128, 2048, HALF),
    Case("taylor first 30 %, 10 × 64", {"method": "taylor", "ratio": 0.3}, 10, 64, BRAIN, (1.0, None)),
    Case("taylor first 30 %, 128 × 512", {"method": "taylor", "ratio": 0.3}, 128, 512, BRAIN, (6.0, 6.0)),
    Case("taylor first 30 %, 128 × 512, float16", {"method": "taylor", "ratio": 0.3}, 128, 512, HALF, (6.0, 6.0)),
    Case("taylor second 30 %, 32 × 512", SECOND, 32, 512, BRAIN),
]  # fmt: skip


def forward_seconds(model: Any, windows: Tensor, device: str) -> float:
    """One dense pass over all windows, without the head, in batches of 8192 tokens."""
    with torch.inference_mode():
        for _ in range(2):
            torch.cuda.synchronize(device)
            begun = time.perf_counter()
            for batch in torch.split(windows, max(1, 8192 // windows.shape[1])):
                model.model(input_ids=batch.to(device), use_cache=False)
            torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def measure(case: Case, device: str) -> None:
    """Print one line."""
    model = tinyllama(case.dtype, device=device)
    windows = random_windows(case.samples, case.length, 32000)
    dense = forward_seconds(model, windows, device)
    model.to("cpu")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    body = Resident(model, device, whole=False) if case.layer_by_layer else model
    cut(body, Pruning(**case.fields), windows, device, **({"store": "cpu"} if case.layer_by_layer else {}))
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begun
    peak = torch.cuda.max_memory_allocated(device) / GIB
    goals = [f"≤ {goal:g}" if goal else "" for goal in case.to_reach]
    dtype = str(case.dtype).removeprefix("torch.")
    text = f"{case.samples} × {case.length}"
    row(case.name, dtype, text, f"{seconds:.1f}", f"{seconds / dense:.1f}", goals[0], f"{peak:.2f}", goals[1])
    del model, body
    gc.collect()
    torch.cuda.empty_cache()


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="words that a case's name must hold one of")
    parser.add_argument("--device", default="cuda:0")
    chosen = parser.parse_args(arguments)
    for fields in ({"method": "wanda", "ratio": 0.5}, {"method": "taylor", "ratio": 0.3}):  # libraries start here
        warm = tinyllama(torch.bfloat16, device=chosen.device)
        cut(warm, Pruning(**fields), random_windows(2, 64, 32000), chosen.device)
        del warm
    sys.stdout.write(f"torch {torch.__version__}, {torch.cuda.get_device_name(chosen.device)}\n\n")
    row("method", "weights", "windows", "s", "of one dense pass", "to reach", "peak GiB", "to reach")
    row("---", *["---"] * 7)
    for case in CASES:
        if not chosen.only or any(word in case.name for word in chosen.only):
            measure(case, chosen.device)


if __name__ == "__main__":
    main(sys.argv[1:])
