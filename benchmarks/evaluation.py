"""The seven tasks on SmolLM2-135M: this program's evaluation against lm-eval's own HFLM, in one process.

    python -m benchmarks.evaluation [--device cuda:0] [--dtype float32 bfloat16] [--limit N] [--tasks …] [--ours]

On a CPU: CPU seconds on one thread, stock once, in float32 unless `--stock-dtype` says otherwise. On a GPU: wall
seconds, stock in the same dtype. A table for each dtype. Both ways load the same tasks and do all that a task asks for:
prompts, tokenising, passes, metrics, rows of documents. Stock's batch size is its own default of 1 on a CPU and 64 on
a GPU, where there is room (`--stock-batch`). The model is loaded and warmed up before.

The agreement of answers is that of documents: log-likelihoods of all choices, and which is the highest. A different
choice counts as a tie where stock itself has both within 1e-3.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["TQDM_DISABLE"] = "1"

import torch

from benchmarks.common import row
from core.evaluation import harness, scoring, tasks
from core.experiment import BUILTIN_MODEL, SEVEN_TASKS, ModelChoice
from core.models.loading import load

TIE = 1e-3


@dataclass
class Measured:
    """One task: seconds, tokens that ran through the model (padding included), log-likelihoods by document."""

    seconds: float
    tokens: int
    answers: list[list[float]]


class Clock:
    """CPU seconds of this process on a CPU, wall seconds on a GPU."""

    def __init__(self, device: str) -> None:
        self._gpu = device.startswith("cuda")
        self._begun = self._now()

    def _now(self) -> float:
        if not self._gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self) -> float:
        """Since the beginning."""
        return self._now() - self._begun


def stock(model: Any, tokenizer: Any, name: str, limit: int | None, batch: str, device: str) -> Measured:
    """lm-eval's own class and loop, with rows of documents as ours."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    tokens = 0
    call = HFLM._model_call

    def counted(self: Any, inps: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal tokens
        tokens += inps.numel()
        return call(self, inps, *arguments, **named)

    clock = Clock(device)
    HFLM._model_call = counted
    try:
        with harness.quiet_harness():
            lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch)
            loaded = tasks._load(name, 0, 0)
            results = evaluator.evaluate(lm, loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    finally:
        HFLM._model_call = call
    answers = [[float(each[0]) for each in sample["filtered_resps"]] for sample in results["samples"][name]]
    return Measured(clock.seconds(), tokens, answers)


def ours(model: Any, tokenizer: Any, name: str, limit: int | None, device: str) -> Measured:
    """What a run does for a task."""
    made: list[Any] = []
    begin = harness.WatchedLM.__init__

    def noted(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        made.append(self)

    clock = Clock(device)
    harness.WatchedLM.__init__ = noted  # type: ignore[method-assign]
    try:
        result = tasks.evaluate_task(model, tokenizer, name, limit=limit)
    finally:
        harness.WatchedLM.__init__ = begin  # type: ignore[method-assign]
    answers = [sample["loglikelihoods"] for sample in result.samples]
    return Measured(clock.seconds(), sum(lm.scorer.tokens for lm in made), answers)


def compare(name: str, own: Measured, other: Measured) -> tuple[float, int, list[str]]:
    """(largest difference of a log-likelihood, other choices that are no ties, ties in words)."""
    largest, wrong, ties = 0.0, 0, []
    for document, (a, b) in enumerate(zip(own.answers, other.answers, strict=True)):
        largest = max(largest, *(abs(x - y) for x, y in zip(a, b, strict=True)))
        mine, theirs = a.index(max(a)), b.index(max(b))
        if mine == theirs:
            continue
        gap = b[theirs] - b[mine]
        if gap <= TIE:
            ties.append(f"{name} {document}: choice {mine} for {theirs}, {gap:.1e} apart")
        else:
            wrong += 1
    return largest, wrong, ties


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What was asked for, with the defaults that depend on the device filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--stock-dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--stock-batch", help="a number, or auto")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--tasks", nargs="*", default=list(SEVEN_TASKS), choices=SEVEN_TASKS)
    parser.add_argument("--most-tokens", type=int, help="padded tokens in one of our passes at most")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--stock", action="store_true", help="measure stock alone")
    only.add_argument("--ours", action="store_true", help="measure ours alone")
    chosen = parser.parse_args(arguments)
    gpu = chosen.device.startswith("cuda")
    chosen.stock_dtype = chosen.stock_dtype or ("" if gpu else "float32")
    chosen.stock_batch = chosen.stock_batch or ("64" if gpu else "1")
    return chosen


def main(arguments: list[str]) -> None:
    """Print the table."""
    chosen = parsed(arguments)
    device = chosen.device
    if chosen.most_tokens:
        scoring.MOST_TOKENS[torch.device(device).type] = chosen.most_tokens
    if device == "cpu":
        torch.set_num_threads(1)
    dtypes = {*chosen.dtype, chosen.stock_dtype} - {""}
    models = {dtype: load(ModelChoice(name=BUILTIN_MODEL), device=device, dtype=dtype) for dtype in dtypes}
    for each in models.values():  # libraries start here
        with torch.inference_mode():
            each.model(input_ids=torch.zeros(1, 64, dtype=torch.int64, device=device))
        tasks.evaluate_task(each.model, each.tokenizer, "openbookqa", limit=2)
    kind = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU, one thread"
    sys.stdout.write(f"torch {torch.__version__}, {kind}; limit {chosen.limit}\n")
    found = [measure(chosen, models, name) for name in chosen.tasks]
    for dtype in chosen.dtype:
        table(chosen, dtype, found)


Found = dict[tuple[str, str], Measured]
"""What one task came to: ("stock" or "ours", dtype) → Measured."""


def measure(chosen: argparse.Namespace, models: dict[str, Any], name: str) -> Found:
    """One task in every way, one right after the other, so that all have the same machine; stock once a dtype."""
    found: Found = {}
    for dtype in chosen.dtype:
        theirs = chosen.stock_dtype or dtype
        if not chosen.ours and ("stock", theirs) not in found:
            held = models[theirs]
            found["stock", theirs] = stock(
                held.model, held.tokenizer, name, chosen.limit, chosen.stock_batch, chosen.device
            )
        if not chosen.stock:
            held = models[dtype]
            found["ours", dtype] = ours(held.model, held.tokenizer, name, chosen.limit, chosen.device)
    return found


def table(chosen: argparse.Namespace, dtype: str, found: list[Found]) -> None:
    """All tasks in one dtype beside stock."""
    theirs = chosen.stock_dtype or dtype
    unit = "s" if chosen.device.startswith("cuda") else "CPU s"
    sys.stdout.write(f"\nours in {dtype}, stock in {theirs} with batch size {chosen.stock_batch}\n\n")
    row("task", f"stock {unit}", f"ours {unit}", "ratio", "tokens stock", "tokens ours", "max |Δ|", "other choices")
    row("---", *["---:"] * 7)
    total, every_tie, unlike, largest = [Measured(0, 0, []), Measured(0, 0, [])], [], 0, 0.0
    for name, one in zip(chosen.tasks, found, strict=True):
        pair = [one.get(("stock", theirs)), one.get(("ours", dtype))]
        for whole, each in zip(total, pair, strict=True):
            if each is not None:
                whole.seconds += each.seconds
                whole.tokens += each.tokens
        delta, wrong, ties = compare(name, pair[1], pair[0]) if pair[0] and pair[1] else (0.0, 0, [])
        every_tie += ties
        unlike += wrong
        largest = max(largest, delta)
        line(name, pair[0], pair[1], delta, wrong)
    line("all", total[0], total[1], largest, unlike)
    sys.stdout.write("".join(f"\ntie: {each}" for each in every_tie) + "\n")


def line(name: str, other: Measured | None, own: Measured | None, delta: float, wrong: int) -> None:
    """One line of the table; what was not measured stays empty."""
    both = other is not None and own is not None and other.seconds > 0
    row(
        name,
        f"{other.seconds:.2f}" if other else "",
        f"{own.seconds:.2f}" if own else "",
        f"{own.seconds / other.seconds:.3f}" if both and own and other else "",
        f"{other.tokens:,}" if other else "",
        f"{own.tokens:,}" if own else "",
        f"{delta:.1e}" if both else "",
        wrong if both else "",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
