"""Pruning SmolLM2-135M on one CPU thread, in CPU seconds, beside one dense float32 forward pass over the same tokens.

    python -m benchmarks.cpu [--only wanda taylor …]

Each method is measured on a fresh copy of the model, after the baseline, in one process. The lower, the better.
"""

import argparse
import copy
import os
import sys
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.common import cpu_seconds, cut, peak_memory, random_windows, row, smollm2
from core.experiment import Pruning

SAMPLES, LENGTH = 32, 512
CASES: dict[str, tuple[dict[str, Any], float]] = {
    "magnitude": ({"method": "magnitude", "ratio": 0.5}, 0.1),
    "wanda": ({"method": "wanda", "ratio": 0.5}, 0.8),
    "sparsegpt": ({"method": "sparsegpt", "ratio": 0.5}, 1.6),
    "taylor": ({"method": "taylor", "ratio": 0.3}, 1.6),
}


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    wanted = parser.parse_args(arguments).only
    torch.set_num_threads(1)
    model = smollm2().model
    windows = random_windows(SAMPLES, LENGTH, 49152)

    def forward() -> None:
        with torch.inference_mode():
            for batch in torch.split(windows, 4):
                model(input_ids=batch, use_cache=False)

    forward()
    dense = cpu_seconds(forward)
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    sys.stdout.write(f"One dense float32 pass over {SAMPLES} × {LENGTH} tokens: {dense:.1f} CPU s\n\n")
    row("50 % (taylor: 30 %)", "CPU s", "of the dense pass", "to reach", "peak above the weights, MB", "of the weights")
    row("---", *["---"] * 5)
    for name in wanted:
        fields, goal = CASES[name]
        pruned = copy.deepcopy(model)
        with peak_memory() as memory:
            seconds = cpu_seconds(lambda p=pruned, f=fields: cut(p, Pruning(**f), windows))
        share = memory.above / weights
        row(name, f"{seconds:.1f}", f"{seconds / dense:.2f}", goal, f"{memory.above / 1e6:.0f}", f"{share:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
