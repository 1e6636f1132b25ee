"""Five ratios of a width method beside one, with scores kept between them: SmolLM2-135M on one CPU thread.

python -m benchmarks.sweep [--method taylor]
"""

import argparse
import copy
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common import cpu_seconds, cut, random_windows, row, smollm2
from core.experiment import Pruning
from core.pruning.scores import ScoreCache

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
SAMPLES, LENGTH = 32, 512


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="taylor")
    method = parser.parse_args(arguments).method
    torch.set_num_threads(1)
    model = smollm2().model
    windows = random_windows(SAMPLES, LENGTH, 49152)
    row("ratio", "CPU s")
    row("---", "---")
    with tempfile.TemporaryDirectory() as folder:
        cache = ScoreCache(Path(folder), {"model": "smollm2"})
        spent = []
        for ratio in RATIOS:
            pruned = copy.deepcopy(model)
            pruning = Pruning(method=method, ratio=ratio, parts=("mlp",))
            spent.append(cpu_seconds(lambda p=pruned, q=pruning: cut(p, q, windows, cache=cache)))
            row(f"{ratio:.0%}", f"{spent[-1]:.1f}")
    sys.stdout.write(f"\nFive ratios take {sum(spent) / spent[0]:.2f} times what one takes (to reach: 1.5).\n")


if __name__ == "__main__":
    main(sys.argv[1:])
