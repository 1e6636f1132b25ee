"""Recovery of SmolLM2-135M at 77.8 % of its parameters: LoRA and distillation side by side at equal time.

    python -m benchmarks.recovery --valid wiki.valid.tokens --test wiki.test.tokens --home DIR
                                  [--rows alpaca.jsonl] [--minutes 5] [--devices 0 1] [--slots 2] [--stretch 9]

Protocol P (benchmarks/quality.py): float32; calibration on 32 windows of 512 tokens of WikiText-2's validation text,
perplexity of the first 64 windows of 512 tokens of its test text; what is learned from is not WikiText. Two cuts: the
best one-shot structured one, and plain Taylor over layers 4–25. Each is one run of the program, judged before and
after, with the seven tasks; --minutes is the time of each training. Resumable like benchmarks/stretch.py, whose options
--devices and --slots are; --only-list prints the table of what is there.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import row
from benchmarks.stretch import Stretch, listed
from core.jobs.rundir import RunDirectory
from core.study import Study, expand

TAYLOR = {"method": "taylor", "ratio": 0.4, "layers": [4, 25], "round_to": 1}
OBS = {"method": "obs", "ratio": 0.222, "target": "model", "allocation": "measured", "reconstruct": True}
WRITTEN = {"corpus": "generated", "max_samples": 12288}
LONG = {"cutoff": 512, "epochs": 1000, "micro_batch": 16, "data": WRITTEN}
DISTILLED = {
    "kind": "distillation", "full_weights": True, "temperature": 1.0, "loss_mix": 1.0, "learning_rate": 5e-4, **LONG,
}  # fmt: skip
LORA = {"kind": "lora", "learning_rate": 1e-3, **LONG}


def study_of(chosen: argparse.Namespace) -> Study:
    """Two cuts, each recovered in two ways at equal time, and by LLM-Pruner's own recipe where rows are given."""
    recoveries = [{**each, "max_minutes": chosen.minutes} for each in (DISTILLED, LORA)]
    if chosen.rows:
        rows = {"path": str(chosen.rows.resolve()), "format": "instructions"}
        recoveries.append({"kind": "lora", "data": rows, "max_minutes": chosen.minutes})
    calibration = {"path": str(chosen.valid.resolve()), "samples": 32, "length": 512}
    judged = {"path": str(chosen.test.resolve()), "window": 512, "max_tokens": 64 * 512}
    return Study.parse(
        {
            "name": "Recovery",
            "base": {
                "model": {"dtype": "float32"},
                "evaluation": {"perplexity": [judged], "fidelity": False, "speed": False},
            },
            "runs": [
                {"pruning": {**cut, "calibration": calibration}, "recovery": recovery}
                for recovery in recoveries
                for cut in (OBS, TAYLOR)
            ],
        }
    )


def value(results: dict[str, Any], stage: str, task: str) -> str:
    """A metric of a stage with its standard error; perplexity of whatever file."""
    for metric in results["metrics"]:
        if metric["stage"] == stage and metric["task"].startswith(task) and metric["metric"] in ("perplexity", "acc"):
            scale, digits = (1, 2) if metric["metric"] == "perplexity" else (100, 1)
            error = f" ± {scale * metric['stderr']:.{digits}f}" if metric["stderr"] is not None else ""
            return f"{scale * metric['value']:.{digits}f}{error}"
    return ""


def table(directories: list[RunDirectory]) -> None:
    """A line a run: before, after, and what the training was."""
    row("cut", "recovery", "perplexity before", "after", "mean of seven before", "after", "steps", "tokens", "s")
    row("---", *["---"] * 8)
    for directory in directories:
        results = directory.results()
        if results is None:
            continue
        pruning, recovery = results["experiment"].get("pruning"), results["experiment"].get("recovery") or {}
        cut = pruning["method"] if pruning else "dense"
        training = (results.get("recovery") or {}).get("training") or {}
        means = [value(results, stage, "mean of the seven") for stage in ("pruned", "recovered")]
        texts = [value(results, stage, "perplexity") for stage in ("pruned", "recovered")]
        name = f"{recovery.get('kind', '')} {(recovery.get('data') or {}).get('corpus') or ''}".strip()
        spent = [training.get(key, "") for key in ("steps", "tokens", "seconds")]
        row(cut, name, texts[0], texts[1], means[0], means[1], *spent)


def main(arguments: list[str]) -> None:
    """Work for one stretch, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("valid", "test", "home"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=Path, help="instruction rows, as JSONL, for LLM-Pruner's recipe")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training")
    parser.add_argument("--devices", nargs="+", default=["0"])
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--stretch", type=float, default=9.0, help="minutes until everything is cut off")
    parser.add_argument("--kinds", nargs="*", default=["lora", "distillation"], help="of recovery")
    parser.add_argument("--only-list", action="store_true")
    chosen = parser.parse_args(arguments)
    until = time.monotonic() + 60 * chosen.stretch
    study = study_of(chosen)
    every = expand(study).runs
    runs = [run for run in every if getattr(run.experiment.recovery, "kind", "dense") in chosen.kinds]
    slots = [device for _ in range(chosen.slots) for device in chosen.devices]
    stretch = Stretch(study, chosen.home.resolve(), slots, until)
    if not chosen.only_list:
        stretch.work(runs)
    listed(stretch, runs)
    table([stretch.known[run.key] for run in every if run.key in stretch.known])


if __name__ == "__main__":
    main(sys.argv[1:])
