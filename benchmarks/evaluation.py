"""The seven tasks through Espalier's scorer and through the harness's own model, on the same documents.

    python -m benchmarks.evaluation [--limit 100] [--tasks piqa …] [--device cuda:0] [--dtype bfloat16] [--stock float32]

Seconds are CPU seconds of the process on a CPU and wall seconds on a GPU, of requests, tokenising, passes and metrics;
loading the model and the tasks' data is left out. `--stock none` leaves the harness's own model out, whose dtype is
else that of `--dtype` unless it is named. Answers are compared document by document: the largest difference of a
log-likelihood, and choices that differ, with the two best log-likelihoods of each model.
"""

import argparse
import sys
import time
from typing import Any

import torch

from benchmarks.common import row
from core.evaluation import harness, tasks
from core.experiment import SEVEN_TASKS, ModelChoice
from core.models.loading import load

TIE = 1e-3  # nats


def clock(device: str) -> float:
    """Seconds of work so far."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Stock(harness.WatchedLM):
    """The harness's own ways: requests tokenised one by one, whole logits, no shared beginnings."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int | str, progress: Any) -> None:
        super().__init__(model, tokenizer, batch_size=batch_size, progress=progress)
        self.batch_size_per_gpu = 64 if model.device.type == "cuda" else 8

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """HFLM's."""
        return harness.HFLM.loglikelihood(self, requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = True, override_bs: Any = None) -> Any:
        return harness.HFLM._loglikelihood_tokens(self, requests, disable_tqdm=True, override_bs=override_bs)


def judged(kind: type[Any], model: Any, tokenizer: Any, name: str, limit: int | None, device: str) -> tuple[float, Any]:
    """Seconds for a task, and its result."""
    ours = harness.WatchedLM
    harness.WatchedLM = kind  # type: ignore[misc]
    try:
        begun = clock(device)
        result = tasks.evaluate_task(model, tokenizer, name, limit=limit)
        return clock(device) - begun, result
    finally:
        harness.WatchedLM = ours  # type: ignore[misc]


def compared(one: Any, other: Any) -> tuple[float, list[str]]:
    """(largest difference of a log-likelihood, choices that differ)."""
    worst, differing = 0.0, []
    for a, b in zip(one.samples, other.samples, strict=True):
        if a["loglikelihoods"] is None:
            continue
        worst = max(worst, *(abs(x - y) for x, y in zip(a["loglikelihoods"], b["loglikelihoods"], strict=True)))
        if a["choice"] != b["choice"] or a["choice_norm"] != b["choice_norm"]:
            best = [sorted(each["loglikelihoods"])[-2:] for each in (a, b)]
            tie = all(top - second <= TIE for second, top in best)
            differing.append(f"{a['task']} {a['doc']}: {best}{' (tie)' if tie else ''}")
    return worst, differing


def main(arguments: list[str]) -> None:
    """Print a row a task, and the sums."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=int, default=100, help="documents of each task; 0 is all")
    parser.add_argument("--tasks", nargs="*", default=list(SEVEN_TASKS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--stock", default=None, help="dtype of the harness's own model, or none")
    chosen = parser.parse_args(arguments)
    limit = chosen.limit or None
    stock = chosen.stock or chosen.dtype
    ours = load(ModelChoice(), device=chosen.device, dtype=chosen.dtype)
    other = None if stock == "none" else load(ModelChoice(), device=chosen.device, dtype=stock)
    tasks.evaluate_task(ours.model, ours.tokenizer, "openbookqa", limit=2)  # what is loaded once
    for name in chosen.tasks:
        tasks.prepare_tasks([name])
    row("task", f"harness {stock}, s", f"ours {chosen.dtype}, s", "ratio", "largest difference", "choices that differ")
    row("---", *["---"] * 5)
    totals, worst_of_all, lines, scores = [0.0, 0.0], 0.0, [], []
    for name in chosen.tasks:
        mine, result = judged(harness.WatchedLM, ours.model, ours.tokenizer, name, limit, chosen.device)
        totals[1] += mine
        scores += [f"{m.task} {m.metric} {m.value:.4f} ± {m.stderr or 0:.4f} ({m.n})" for m in result.metrics]
        if other is None:
            row(name, "", f"{mine:.2f}", "", "", "")
            continue
        theirs, expected = judged(Stock, other.model, other.tokenizer, name, limit, chosen.device)
        totals[0] += theirs
        worst, differing = compared(result, expected)
        worst_of_all = max(worst, worst_of_all)
        lines += differing
        row(name, f"{theirs:.2f}", f"{mine:.2f}", f"{mine / theirs:.2f}", f"{worst:.1e}", str(len(differing)))
    ratio = f"{totals[1] / totals[0]:.3f}" if totals[0] else ""
    row("all", f"{totals[0]:.2f}", f"{totals[1]:.2f}", ratio, f"{worst_of_all:.1e}", str(len(lines)))
    print("\n".join(["", *lines, *scores]))


if __name__ == "__main__":
    main(sys.argv[1:])
