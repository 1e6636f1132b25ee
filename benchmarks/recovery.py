"""Recovery of SmolLM2-135M at 77.8 % of its parameters: LoRA and distillation side by side at equal time.

    python -m benchmarks.recovery --valid wiki.valid.tokens --test wiki.test.tokens --home DIR
                                  [--settings distil lora …] [--cuts obs taylor] [--rows alpaca.jsonl] [--minutes 5]
                                  [--micro-batch 16] [--devices 0 1] [--slots 2] [--stretch 9]

Protocol P (benchmarks/quality.py): float32; calibration on 32 windows of 512 tokens of WikiText-2's validation text,
perplexity of the first 64 windows of 512 tokens of its test text; what is learned from is not WikiText. Two cuts: the
best one-shot structured one, and plain Taylor over layers 4–25. Each is one run of the program, judged before and
after, with the seven tasks; --minutes is the time of each training. SETTINGS are in the order in which to try them;
what speaks for each stands in docs/recovery.md. Resumable like benchmarks/stretch.py, whose options --devices and
--slots are; --only-list prints the table of what is there.
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
CUTS = {"obs": OBS, "taylor": TAYLOR}
WRITTEN = {"corpus": "generated", "max_samples": 12288, "prompt_tokens": 16}
PROMPTED = {"corpus": "generated", "max_samples": 16384, "prompt_tokens": 128}
LONG = {"cutoff": 512, "epochs": 1000, "data": WRITTEN}
DISTILLED = {"kind": "distillation", "temperature": 1.0, "loss_mix": 1.0, **LONG}
FULL = {**DISTILLED, "full_weights": True, "learning_rate": 5e-4}
SETTINGS: dict[str, dict[str, Any]] = {
    "distil": FULL,
    "lora": {**LONG, "kind": "lora", "learning_rate": 1e-3},
    "distil, 2e-4": {**FULL, "learning_rate": 2e-4},
    "distil, prompted": {**FULL, "data": PROMPTED},
    "distil, prompted, 2e-4": {**FULL, "learning_rate": 2e-4, "data": PROMPTED},
    "distil, prompted, small batch": {**FULL, "batch_size": 16, "learning_rate": 3e-4, "data": PROMPTED},
    "distil, passages, KL": {**FULL, "learning_rate": 2e-4, "epochs": 10, "data": {}},
    "distil, passages": {**FULL, "learning_rate": 2e-4, "loss_mix": 0.5, "epochs": 10, "data": {}},
    "distil, small batch": {**FULL, "batch_size": 32},
    "distil, lora 64": {**DISTILLED, "rank": 64, "alpha": 128, "dropout": 0, "learning_rate": 1e-3},
}


def study_of(chosen: argparse.Namespace) -> Study:
    """The chosen cuts, recovered at equal time in each way, and by LLM-Pruner's own recipe where rows are given."""
    recoveries = [{**SETTINGS[name], "micro_batch": chosen.micro_batch} for name in chosen.settings]
    if chosen.rows:
        rows = {"path": str(chosen.rows.resolve()), "format": "instructions"}
        recoveries.append({"kind": "lora", "data": rows})
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
                {
                    "pruning": {**CUTS[cut], "calibration": calibration},
                    "recovery": {**recovery, "max_minutes": chosen.minutes},
                }
                for recovery in recoveries
                for cut in chosen.cuts
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


def table(directories: dict[str, RunDirectory]) -> None:
    """A line a run, by name: before, after, and what the training was."""
    row("run", "perplexity before", "after", "mean of seven before", "after", "steps", "tokens", "s")
    row(*["---"] * 8)
    for name, directory in directories.items():
        results = directory.results()
        if results is None:
            continue
        training = (results.get("recovery") or {}).get("training") or {}
        means = [value(results, stage, "mean of the seven") for stage in ("pruned", "recovered")]
        texts = [value(results, stage, "perplexity") for stage in ("pruned", "recovered")]
        spent = [training.get(key, "") for key in ("steps", "tokens", "seconds")]
        row(name, texts[0], texts[1], means[0], means[1], *spent)


def main(arguments: list[str]) -> None:
    """Work for one stretch, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("valid", "test", "home"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=Path, help="instruction rows, as JSONL, for LLM-Pruner's recipe")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training")
    parser.add_argument("--micro-batch", type=int, default=16, help="rows in one pass; the batch stays as it is")
    parser.add_argument("--devices", nargs="+", default=["0"])
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--stretch", type=float, default=9.0, help="minutes until everything is cut off")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=["distil", "lora"], help="of the training")
    parser.add_argument("--cuts", nargs="+", choices=CUTS, default=list(CUTS))
    parser.add_argument("--only-list", action="store_true")
    chosen = parser.parse_args(arguments)
    until = time.monotonic() + 60 * chosen.stretch
    study = study_of(chosen)
    runs = expand(study).runs
    slots = [device for _ in range(chosen.slots) for device in chosen.devices]
    stretch = Stretch(study, chosen.home.resolve(), slots, until)
    if not chosen.only_list:
        stretch.work(runs)
    listed(stretch, runs)
    settings = [*chosen.settings, *(["LLM-Pruner's recipe"] if chosen.rows else [])]
    names = ["dense", *(f"{cut}, {setting}" for setting in settings for cut in chosen.cuts)]
    known = {name: stretch.known.get(run.key) for name, run in zip(names, runs, strict=True)}
    table({name: directory for name, directory in known.items() if directory is not None})


if __name__ == "__main__":
    main(sys.argv[1:])
