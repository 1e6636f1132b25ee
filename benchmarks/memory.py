"""Peak host memory of pruning a model from disk to disk: TinyLlama-1.1B's architecture in bfloat16 (2.2 GB of weights).

    python -m benchmarks.memory [--method wanda] [--in-memory]

The model is written once to a temporary folder by another process, so that only the pruning counts: the peak of the
resident set of the process, with Python, torch and transformers in it. `--in-memory` measures the baseline, the same
cut with the whole model in memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

SAMPLES, LENGTH = 32, 512
_WRITE = (
    "import sys, torch; from benchmarks.common import tinyllama; tinyllama(torch.bfloat16).save_pretrained(sys.argv[1])"
)


def prune(source: Path, target: Path, method: str, in_memory: bool) -> None:
    """Cut the model in `source`; called in a process of its own."""
    import torch

    from benchmarks.common import TINYLLAMA, cut, highest_memory, random_windows
    from core.experiment import Pruning
    from core.models.streaming import Streamed, Writer

    torch.set_num_threads(1)
    begun = time.perf_counter()
    pruning = Pruning(method=method, ratio=0.5)
    windows = random_windows(SAMPLES, LENGTH, TINYLLAMA["vocab_size"])
    if in_memory:
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        cut(model, pruning, windows)
        model.save_pretrained(target)
    else:
        body = Streamed(source, "cpu", Writer(target))
        cut(body, pruning, windows)
        body.finish()
    written = sum(path.stat().st_size for path in target.iterdir())
    how = "in memory" if in_memory else "streamed"
    sys.stdout.write(
        f"{method}, {how}: peak {highest_memory() / 2**30:.2f} GiB in {time.perf_counter() - begun:.0f} s, "
        f"{written / 1e9:.2f} GB written\n"
    )


def main(arguments: list[str]) -> None:
    """Make the model, cut it in a fresh process, print the peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--from-folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--to-folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.from_folder:
        prune(chosen.from_folder, chosen.to_folder, chosen.method, chosen.in_memory)
        return
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "source", Path(scratch) / "target"
        subprocess.run([sys.executable, "-c", _WRITE, str(source)], check=True)
        flags = ["--in-memory"] if chosen.in_memory else []
        places = ["--from-folder", str(source), "--to-folder", str(target)]
        command = [sys.executable, "-m", "benchmarks.memory", "--method", chosen.method, *flags, *places]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
